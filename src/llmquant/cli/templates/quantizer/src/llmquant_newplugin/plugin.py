"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import PluginSpec, QuantizerOptions, hookimpl, plain_bytes
from llmquant.errors import OptionError, UnsupportedError


@dataclass(frozen=True)
class NewPluginOptions(QuantizerOptions):
    """Weights of 4 bits in groups.

    Attributes:
        group_size: weights along a row that share a scale and an offset, for example 32.
    """

    group_size: int = 32

    def __post_init__(self):
        if self.group_size < 2 or self.group_size % 2:
            raise OptionError(f"group_size is {self.group_size}", hint="Use an even number, for example 32.")

    def check(self, model, device):
        """Refuse a width that does not fit, before anything is loaded."""
        for layer in model.linear_layers():
            if layer.shape[1] % self.group_size:
                raise UnsupportedError(
                    f"group_size {self.group_size} does not divide the {layer.shape[1]} inputs of {layer.name}"
                )

    def weight_bytes(self, model, device):
        """Predict half a byte per weight, and per group a scale and an offset of 2 bytes each."""
        layers = model.linear_layers()
        weights = sum(layer.elements for layer in layers)
        return plain_bytes(model, 2, quantized=layers) + weights // 2 + 4 * weights // self.group_size

    def requests(self):
        """Name what must be found in the loaded weights."""
        return {"bits": 4.0, "block_size": self.group_size}


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="quantizer",
            name="newplugin",
            summary="SUMMARY",
            options="llmquant_newplugin.plugin:NewPluginOptions",
            target="llmquant_newplugin.quantizer:NewPlugin",
            presets={"newplugin_g32": {"group_size": 32}, "newplugin_g64": {"group_size": 64}},
            accepts=("causal_lm", "embedder"),
            requires=("torch>=2.8", "transformers>=5.22"),
            install="pip install llmquant-newplugin",
        )
    ]
