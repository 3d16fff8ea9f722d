"""What this package offers, and its options: the light half, which imports nothing heavy."""

from dataclasses import dataclass

from llmquant import PluginSpec, QuantizerOptions, hookimpl, plain_bytes
from llmquant.errors import OptionError, UnsupportedError


@dataclass(frozen=True)
class SinqOptions(QuantizerOptions):
    """Weights of 4 bits in groups, with a scale per column.

    Attributes:
        group_size: weights along a row that share a scale and an offset, for example 64.
    """

    group_size: int = 64

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
        """Predict half a byte per weight, and 2 bytes per scale and offset of a group and per column."""
        layers = model.linear_layers()
        weights = sum(layer.elements for layer in layers)
        columns = sum(layer.shape[1] for layer in layers)
        state = 4 * weights // self.group_size + 2 * columns
        return plain_bytes(model, 2, quantized=layers) + weights // 2 + state

    def requests(self):
        """Name what must be found in the loaded weights."""
        return {"bits": 4.0, "block_size": self.group_size}


@hookimpl
def llmquant_register():
    """Return the plugins of this package."""
    return [
        PluginSpec(
            kind="quantizer",
            name="sinq",
            summary="Weights of 4 bits after Sinkhorn normalization (SINQ, arXiv 2509.22944): a scale per group and one per column.",
            options="llmquant_sinq.plugin:SinqOptions",
            target="llmquant_sinq.quantizer:Sinq",
            presets={"sinq_g32": {"group_size": 32}, "sinq_g64": {"group_size": 64}},
            accepts=("causal_lm", "embedder"),
            requires=("torch>=2.8", "transformers>=5.22"),
            install="pip install llmquant-sinq",
        )
    ]
