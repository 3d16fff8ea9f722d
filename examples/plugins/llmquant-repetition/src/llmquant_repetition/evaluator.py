"""The heavy half: one score per text, so that variants are compared text by text."""

import torch
from llmquant import Evaluator, Result, Sample


class Repetition(Evaluator):
    """Lets the model continue each text, and counts how often it repeats itself."""

    @torch.inference_mode()
    def evaluate(self, subject, ctx):
        """Yield one result: the mean over the texts, and the samples of that mean."""
        samples = []
        texts = self.options.text[: ctx.documents.limit]  # the limit None means all
        for done, text in enumerate(texts):
            ctx.progress(done, len(texts))
            tokens = self._continue(subject, text)
            score = repeated(tokens)
            answer = subject.tokenizer.decode(tokens)
            samples.append(Sample(document=text, prompt=text, scores={"repeated": score}, answer=answer))
        yield Result.from_samples("texts", samples, "repeated", higher_is_better=False)

    def _continue(self, subject, text):
        inputs = subject.tokenizer(text, return_tensors="pt").to(subject.device)
        length = {"max_new_tokens": self.options.tokens, "min_new_tokens": self.options.tokens}
        ids = subject.module.generate(**inputs, **length, do_sample=False)
        return ids[0, inputs["input_ids"].shape[1] :].tolist()


def repeated(tokens, length=4):
    """Return the share of a text's token sequences of this length that occurred before in it, from 0 to 1."""
    sequences = [tuple(tokens[start : start + length]) for start in range(len(tokens) - length + 1)]
    return 1 - len(set(sequences)) / len(sequences)
