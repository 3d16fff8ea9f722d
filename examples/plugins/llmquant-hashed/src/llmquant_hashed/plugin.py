"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import EmbedderInfo, EmbedderOptions, PluginSpec, hookimpl
from llmquant.errors import OptionError


@dataclass(frozen=True)
class HashedOptions(EmbedderOptions):
    """What is opened, and how.

    Attributes:
        checkpoint: must be empty, because there is none.
        width: dimensions of a vector, for example 2048; with few, different words share a dimension.
    """

    checkpoint: str = ""
    width: int = 2048

    def __post_init__(self):
        if self.checkpoint or self.width < 16:
            raise OptionError(f"hashed takes no checkpoint, and a width of 16 or more, found {self}")

    def info(self, model):
        """Describe the vectors from the configuration alone."""
        return EmbedderInfo(self.width, (self.width,), ("text",), "cosine")


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="embedder",
            name="hashed",
            summary="Words and parts of words, hashed to coordinates: retrieval without a model, a floor that models must beat.",
            options="llmquant_hashed.plugin:HashedOptions",
            target="llmquant_hashed.embedder:Hashed",
            accepts=(),
            requires=("torch>=2.8", "transformers>=5.22"),
            install="pip install 'llmquant-hashed' 'llmquant[embed]'",
        )
    ]
