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
    """How long a prompt takes to read, and a token to write.

    Attributes:
        prompt_tokens: lengths of the prompts, each measured by itself.
        decode_tokens: forward passes of one token each after the prompt.
        batch: prompts at a time.
        warmup: passes before the measured ones; fewer, but one, when they take a quarter of the budget.
        repeats: measured passes for each length.
        budget_s: seconds for each length; when they are spent no repeat is started, after three at least.
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
        """Refuse prompts that the model cannot hold."""
        longest = max(self.prompt_tokens)
        require_positions(model, prompt_tokens=longest, generated_tokens=self.decode_tokens, name="decode_tokens")

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of all repeats: the most it can be, since a budget ends it earlier."""
        passes = self.warmup + self.repeats
        return Cost(
            prefill_tokens=sum(self.prompt_tokens) * self.batch * passes,
            decode_tokens=len(self.prompt_tokens) * self.decode_tokens * self.repeats,
        )
