"""The light part: options that check themselves before anything is loaded."""

from dataclasses import dataclass
from typing import Literal

from llmquant import EvaluatorOptions, QuantizerOptions
from llmquant.errors import OptionError, UnsupportedError


@dataclass(frozen=True)
class RtnOptions(QuantizerOptions):
    """Bits per weight, and the number of weights along a row that share a scale and an offset."""

    bits: Literal[2, 3, 4, 8] = 4
    group_size: int = 32

    def check(self, model, device):
        """Refuse a model whose rows cannot be cut into groups."""
        for tensor in model.linear_layers():
            if tensor.shape[-1] % self.group_size:
                raise UnsupportedError(
                    f"group_size {self.group_size} does not divide the {tensor.shape[-1]} inputs of {tensor.name}",
                    hint="Choose a group_size that divides them.",
                )

    def weight_bytes(self, model, device):
        """Predict the loaded weights: they are simulated, so as many bytes as in bfloat16."""
        return 2 * sum(tensor.elements for tensor in model.weights)

    def requests(self):
        """Name what `Rtn.applied` must find in the weights."""
        return {"bits": float(self.bits), "block_size": self.group_size}


@dataclass(frozen=True)
class LoglikelihoodOptions(EvaluatorOptions):
    """The texts."""

    text: tuple[str, ...] = (
        "Water boils at a lower temperature on a mountain.",
        "The boy asked why the river was brown.",
    )

    def __post_init__(self):
        if not all(text.strip() for text in self.text):
            raise OptionError("loglikelihood_of: a text is empty")
