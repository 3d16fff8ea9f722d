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
    """How many tokens a second come out when several prompts are answered at a time.

    Attributes:
        batches: how many prompts at a time, each measured by itself.
        prompt_tokens: length of every prompt.
        new_tokens: generated for every prompt, the one that follows the prompt included.
        warmup: passes before the measured ones; fewer, but one, when they take a quarter of the budget.
        repeats: measured passes for each batch.
        budget_s: seconds for each batch; when they are spent no repeat is started, after three at least.
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
                hint="The first token comes out of reading the prompt; only from the second on is there a decode rate.",
            )

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse sequences that the model cannot hold."""
        require_positions(model, prompt_tokens=self.prompt_tokens, generated_tokens=self.new_tokens, name="new_tokens")

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of all repeats: the most it can be, since a budget ends it earlier."""
        passes = self.warmup + self.repeats
        return Cost(
            prefill_tokens=sum(self.batches) * self.prompt_tokens * passes,
            decode_tokens=len(self.batches) * (self.new_tokens - 1) * self.repeats,
        )
