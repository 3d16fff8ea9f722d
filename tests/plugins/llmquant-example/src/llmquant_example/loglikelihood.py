"""The log-likelihood of each text: one number per text, so that variants are compared text by text."""

import hashlib

import torch

from llmquant import Evaluator, Result, Sample


class Loglikelihood(Evaluator):
    @torch.inference_mode()
    def evaluate(self, subject, ctx):
        """Yield one result: the mean log-likelihood per token, and the samples of that mean."""
        samples = []
        for done, text in enumerate(self.options.text):
            ctx.progress(done, len(self.options.text))
            ids = subject.tokenizer(text, return_tensors="pt").input_ids.to(subject.device)
            loss = subject.module(ids, labels=ids).loss  # the mean of -log p(token | tokens before), in nats
            digest = hashlib.sha256(text.encode()).hexdigest()
            samples.append(Sample(digest, digest, {"loglikelihood": -loss.item()}))
        yield Result.from_samples("texts", samples, "loglikelihood", higher_is_better=True, unit="nats/token")
