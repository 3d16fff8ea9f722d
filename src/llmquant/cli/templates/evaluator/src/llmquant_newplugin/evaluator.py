"""The heavy half: one score per text, so that variants are compared text by text."""

import torch
from llmquant import Evaluator, Result, Sample


class NewPlugin(Evaluator):
    """Computes the mean log-likelihood per token."""

    @torch.inference_mode()
    def evaluate(self, subject, ctx):
        """Yield one result: the mean over the texts, and the samples of that mean."""
        samples = []
        texts = self.options.text[: ctx.documents.limit]  # the limit None means all
        for done, text in enumerate(texts):
            ctx.progress(done, len(texts))
            score = self._score(subject, text)
            samples.append(Sample(document=text, prompt=text, scores={"loglikelihood": score}))
        yield Result.from_samples("texts", samples, "loglikelihood", higher_is_better=True, unit="nats/token")

    def _score(self, subject, text):
        ids = subject.tokenizer(text, return_tensors="pt").input_ids.to(subject.device)
        return -subject.module(ids, labels=ids).loss.item()
