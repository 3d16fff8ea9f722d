"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import EmbedderInfo, EmbedderOptions, PluginSpec, hookimpl
from llmquant.errors import ModelError, OptionError


@dataclass(frozen=True)
class NewPluginOptions(EmbedderOptions):
    """What is opened, and how.

    Attributes:
        checkpoint: a Hub id or a folder.
        max_tokens: tokens of a text that are read; the rest is cut off.
    """

    checkpoint: str
    max_tokens: int = 256

    def __post_init__(self):
        if self.max_tokens < 2:
            raise OptionError(f"max_tokens is {self.max_tokens}", hint="Use 2 or more, for example 256.")

    def info(self, model):
        """Describe the vectors from the configuration alone."""
        width = model.text_config.get("hidden_size")
        if width is None:
            raise ModelError(f"{model.source} has no hidden_size in its config.json")
        return EmbedderInfo(width, (width,), ("text",), "cosine")


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="embedder",
            name="newplugin",
            summary="SUMMARY",
            options="llmquant_newplugin.plugin:NewPluginOptions",
            target="llmquant_newplugin.embedder:NewPlugin",
            accepts=(),
            requires=("torch>=2.8", "transformers>=5.22"),
            install="pip install 'llmquant-newplugin' 'llmquant[embed]'",
        )
    ]
