"""Options of the memory evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.evaluators.speed.generation_limits import require_positions, require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class MemoryOptions:
    """Memory of the weights, and the peaks of reading a prompt and generating above the weights.

    For an embedder the peaks of encoding a query and a page are measured, and the options have no effect.

    Attributes:
        prompt_tokens: tokens per prompt, for example 512.
        decode_tokens: number of forward passes of one token each after the prompt, for example 16.
        batch: number of prompts at a time, for example 1.
    """

    prompt_tokens: int = 512
    decode_tokens: int = 32
    batch: int = 1

    def __post_init__(self) -> None:
        require_positive(**vars(self))

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse sequences that are too long for the model."""
        if model.embedder is None:
            require_positions(
                model, prompt_tokens=self.prompt_tokens, generated_tokens=self.decode_tokens, name="decode_tokens"
            )

    def cached_tokens(self) -> int:
        """Return the prompts' tokens and the generated ones."""
        return self.batch * (self.prompt_tokens + self.decode_tokens)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work: a warm-up and two measured prompts, and the tokens after one of them."""
        return Cost(prefill_tokens=2 * self.prompt_tokens * self.batch, decode_tokens=self.decode_tokens)
