"""Options of the latency evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.evaluators.speed.generation_limits import require_positions, require_positive, require_sizes
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class LatencyOptions:
    """The time to read a prompt, and the time to generate a token.

    Attributes:
        prompt_tokens: prompt lengths in tokens, each measured separately, for example 128,1024.
        decode_tokens: number of forward passes of one token each after the prompt, for example 32.
        batch: number of prompts at a time, for example 1.
        warmup: number of passes before the measured ones, for example 2; if they take a quarter of the budget, there
            are fewer, but at least one.
        repeats: number of measured passes per length, for example 10.
        budget_s: seconds per length, for example 60; no repeat starts later, except the first three.
    """

    prompt_tokens: tuple[int, ...] = (128, 256, 512, 1024)
    decode_tokens: int = 128
    batch: int = 1
    warmup: int = 5
    repeats: int = 20
    budget_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        require_sizes("prompt_tokens", self.prompt_tokens)
        require_positive(
            decode_tokens=self.decode_tokens,
            batch=self.batch,
            warmup=self.warmup,
            repeats=self.repeats,
            budget_s=self.budget_s,
        )

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse prompts that are too long for the model."""
        longest = max(self.prompt_tokens)
        require_positions(model, prompt_tokens=longest, generated_tokens=self.decode_tokens, name="decode_tokens")

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of all repeats, an upper bound because a budget may end them earlier."""
        passes = self.warmup + self.repeats
        return Cost(
            prefill_tokens=sum(self.prompt_tokens) * self.batch * passes,
            decode_tokens=len(self.prompt_tokens) * self.decode_tokens * self.repeats,
        )
