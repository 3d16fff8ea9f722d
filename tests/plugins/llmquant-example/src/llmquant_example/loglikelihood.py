"""The log-likelihood of each text: one number per text, so that variants are compared text by text."""

import hashlib
import statistics

import torch

from llmquant import Measurement, Result, Sample


class Loglikelihood:
    def __init__(self, options):
        self.options = options

    @torch.inference_mode()
    def evaluate(self, subject, ctx):
        """Yield one result: the mean log-likelihood per token, and the samples of that mean."""
        samples = []
        for done, text in enumerate(self.options.text):
            ctx.progress(done, len(self.options.text))
            ids = subject.tokenizer(text, return_tensors="pt").input_ids.to(subject.device)
            loss = subject.module(ids, labels=ids).loss  # the mean of -log p(token | tokens before), in nats
            digest = hashlib.sha256(text.encode()).hexdigest()
            samples.append(
                Sample(digest, digest, {"loglikelihood": -loss.item()}, occurrence=self.options.text[:done].count(text))
            )
        values = [sample.scores["loglikelihood"] for sample in samples]
        stderr = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else None
        mean = Measurement("texts", "loglikelihood", statistics.fmean(values), "nats/token", True, stderr, len(values))
        yield Result("texts", [mean], samples)
