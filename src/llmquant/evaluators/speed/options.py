"""Options of the evaluators of speed: latency, throughput, and the query latency of embedders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from llmquant.errors import OptionError
from llmquant.evaluators.speed.generation_limits import require_positions, require_positive
from llmquant.plugins.evaluator import Cost
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

# With late interaction a document has about 700 vectors, so a hundredth of the documents is a similar amount of work.
DOCUMENTS = {"cosine": 100_000, "dot": 100_000, "maxsim": 1_000}


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
        require_positive(**vars(self))

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse prompts that are too long for the model."""
        longest = max(self.prompt_tokens)
        require_positions(model, prompt_tokens=longest, generated_tokens=self.decode_tokens, name="decode_tokens")

    def cached_tokens(self) -> int:
        """Return the prompts' tokens and the generated ones."""
        return self.batch * (max(self.prompt_tokens) + self.decode_tokens)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of all repeats, an upper bound because a budget may end them earlier."""
        passes = self.warmup + self.repeats
        return Cost(
            prefill_tokens=sum(self.prompt_tokens) * self.batch * passes,
            decode_tokens=len(self.prompt_tokens) * self.decode_tokens * self.repeats,
        )


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
        if self.new_tokens < 2:
            raise OptionError(
                f"new_tokens must be at least 2, found {self.new_tokens}",
                hint="Reading the prompt produces the first token, so a decode rate needs a second one.",
            )
        require_positive(**vars(self))

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse sequences that are too long for the model."""
        require_positions(model, prompt_tokens=self.prompt_tokens, generated_tokens=self.new_tokens, name="new_tokens")

    def cached_tokens(self) -> int:
        """Return the prompts' tokens and the generated ones."""
        return max(self.batches) * (self.prompt_tokens + self.new_tokens)

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of all repeats, an upper bound because a budget may end them earlier."""
        passes = self.warmup + self.repeats
        return Cost(
            prefill_tokens=sum(self.batches) * self.prompt_tokens * passes,
            decode_tokens=len(self.batches) * (self.new_tokens - 1) * self.repeats,
        )


@dataclass(frozen=True)
class QueryLatencyOptions:
    """The time to encode a query, and the time to search documents of random vectors in the study's vector form.

    Attributes:
        documents: number of documents in the collection, for example 100000; ``None`` is 100,000, or 1,000 with late
            interaction.
        vectors: number of vectors per document with late interaction; 729 is a typical page of ColPali and ColQwen.
        results: number of results per search, for example 10.
        warmup: number of queries before the measured ones, for example 10.
        repeats: number of measured queries, for example 100.
        engine: search engine: ``exact`` scores all documents, the graphs of ``faiss`` and ``usearch`` are approximate.
    """

    documents: int | None = None
    vectors: int = 729
    results: int = 10
    warmup: int = 2
    repeats: int = 20
    engine: Literal["exact", "faiss", "usearch"] = "exact"

    def __post_init__(self) -> None:
        require_positive(**vars(self))

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work of encoding; the work of searching is negligible."""
        return Cost(prefill_tokens=32 * (self.warmup + self.repeats))
