"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import Cost, EvaluatorOptions, PluginSpec, hookimpl
from llmquant.errors import OptionError

TEXTS = (
    "Water boils at a lower temperature on a mountain, because the air presses on it with less weight.",
    "When the fog was thick she rang the bell every four minutes; only the sailors heard it.",
    "The farmer sold nine sacks of barley on Monday, and kept the rest for the winter and for the horses.",
)


@dataclass(frozen=True)
class NewPluginOptions(EvaluatorOptions):
    """What is measured.

    Attributes:
        text: the texts, for example (one text, another text).
    """

    text: tuple[str, ...] = TEXTS

    def __post_init__(self):
        if not self.text or not all(len(text.split()) > 1 for text in self.text):
            raise OptionError("text needs one text or more, each of two words or more")

    def cost(self, model, documents):
        """Estimate the tokens that are read, for the estimate of the time."""
        return Cost(prefill_tokens=sum(len(text) for text in self.text[: documents.limit]) // 3)


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="evaluator",
            name="newplugin",
            summary="SUMMARY",
            options="llmquant_newplugin.plugin:NewPluginOptions",
            target="llmquant_newplugin.evaluator:NewPlugin",
            documents=True,  # a study's --limit applies
            requires=("torch>=2.8", "transformers>=5.22"),
            install="pip install llmquant-newplugin",
        )
    ]
