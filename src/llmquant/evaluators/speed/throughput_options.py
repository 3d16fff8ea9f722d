"""Options of the throughput evaluator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.errors import OptionError
from llmquant.evaluators.speed.generation_limits import require_positions, require_positive, require_sizes
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo


@dataclass(frozen=True)
class ThroughputOptions:
    """Tokens per second when several prompts are answered at a time.

    Attributes:
        batches: numbers of prompts at a time, each measured separately, for example 1,8.
        prompt_tokens: tokens per prompt, for example 512.
        new_tokens: generated tokens per prompt, for example 128, including the token that follows the prompt.
        warmup: number of passes before the measured ones, for example 1; if they take a quarter of the budget, there
            are fewer, but at least one.
        repeats: number of measured passes per batch, for example 5.
        budget_s: seconds per batch, for example 60; no repeat starts later, except the first three.
    """

    batches: tuple[int, ...] = (1, 4, 8)
    prompt_tokens: int = 128
    new_tokens: int = 64
    warmup: int = 2
    repeats: int = 10
    budget_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse sizes that are not positive."""
        require_sizes("batches", self.batches)
        require_positive(
            prompt_tokens=self.prompt_tokens, warmup=self.warmup, repeats=self.repeats, budget_s=self.budget_s
        )
        if self.new_tokens < 2:
            raise OptionError(
                f"new_tokens must be at least 2, found {self.new_tokens}",
                hint="Reading the prompt produces the first token, so a decode rate needs a second one.",
            )

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse sequences that are too long for the model."""
        require_positions(model, prompt_tokens=self.prompt_tokens, generated_tokens=self.new_tokens, name="new_tokens")

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of all repeats, an upper bound because a budget may end them earlier."""
        passes = self.warmup + self.repeats
        return Cost(
            prefill_tokens=sum(self.batches) * self.prompt_tokens * passes,
            decode_tokens=len(self.batches) * (self.new_tokens - 1) * self.repeats,
        )
