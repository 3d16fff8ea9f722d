"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import Cost, EvaluatorOptions, PluginSpec, hookimpl
from llmquant.errors import OptionError

TEXTS = (
    "Water boils at a lower temperature on a mountain, because",
    "When the fog was thick she rang the bell. On the next morning",
    "The farmer sold nine sacks of barley on Monday. His daughter",
    "Dear Sir or Madam, I am writing to you about",
    "The three most important inventions of the last century are",
)


@dataclass(frozen=True)
class RepetitionOptions(EvaluatorOptions):
    """What is measured.

    Attributes:
        text: beginnings of texts, for example (one text, another text).
        tokens: tokens to generate per text, for example 64.
    """

    text: tuple[str, ...] = TEXTS
    tokens: int = 64

    def __post_init__(self):
        if not self.text or not all(len(text.split()) > 1 for text in self.text):
            raise OptionError("text needs one text or more, each of two words or more")
        if self.tokens < 8:
            raise OptionError(f"tokens is {self.tokens}", hint="Use 8 or more, for example 64.")

    def cost(self, model, documents):
        """Estimate the tokens that are read and generated, for the estimate of the time."""
        texts = self.text[: documents.limit]
        return Cost(sum(len(text) for text in texts) // 3, self.tokens * len(texts))


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="evaluator",
            name="repetition",
            summary="Share of repeated four-token sequences in greedily generated text: damage that likelihoods miss.",
            options="llmquant_repetition.plugin:RepetitionOptions",
            target="llmquant_repetition.evaluator:Repetition",
            documents=True,  # a study's --limit applies
            requires=("torch>=2.8", "transformers>=5.22"),
            install="pip install llmquant-repetition",
        )
    ]
