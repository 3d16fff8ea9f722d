"""Greedy generation one step at a time, and the timing that the hardware evaluators share."""

from __future__ import annotations

import contextlib
import gc
import inspect
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from llmquant.engine.support import cache_name
from llmquant.errors import RunError, first_line
from llmquant.loading.memory import is_out_of_memory
from llmquant.loading.token_rows import embedding_rows
from llmquant.study.call import Json

if TYPE_CHECKING:
    from llmquant.evaluators.speed.options import LatencyOptions, ThroughputOptions
    from llmquant.plugins.context import Context
    from llmquant.plugins.evaluator import LoadedModel

# Decode steps of a warm-up pass: enough to load and choose the kernels for one token.
_WARMUP_STEPS = 8
# The warm-up takes at most a quarter of the budget, because most of the budget is for measured passes.
_WARMUP_SHARE = 0.25
# A median of fewer readings would be a single reading.
LEAST_REPEATS = 3


def random_prompts(subject: LoadedModel, *, batch: int, tokens: int, seed: int) -> torch.Tensor:
    """Draw prompts of random words of the vocabulary, without special tokens.

    Returns:
        ``(batch, tokens)`` int64 ids on the subject's device, equal for an equal seed.
    """
    rows = embedding_rows(subject.module)
    special = set(subject.tokenizer.all_special_ids)
    words = torch.tensor([i for i in range(min(rows, len(subject.tokenizer))) if i not in special])
    generator = torch.Generator().manual_seed(seed)
    ids: torch.Tensor = words[torch.randint(len(words), (batch, tokens), generator=generator)]
    return ids.to(subject.device)


class Generation:
    """A sequence (or a batch of sequences) during generation, with its key-value cache.

    As in ``generate``, the head computes only the last position if the model supports that.

    Attributes:
        cache: the model's own cache; ``None`` before `prefill`.
        last_only: whether `prefill` computes only the logits that it needs.
    """

    def __init__(self, module: Any) -> None:  # Any: a PreTrainedModel, whose forward differs by architecture
        self._module = module
        self.last_only = "logits_to_keep" in inspect.signature(module.forward).parameters
        self._cache_name = cache_name(module)
        self.cache: Any = None  # Any: caches differ by architecture
        self._logits: Any = None  # Any: a tensor once there is one

    def prefill(self, prompts: torch.Tensor) -> None:
        """Read the prompts, ``(batch, tokens)``.

        Raises:
            RunError: if the model returns no cache.
        """
        self._forward(prompts)
        if self.cache is None:
            raise RunError(
                f"{type(self._module).__name__} returned no key-value cache",
                hint="Recurrent models such as Mamba have no such cache, which separates prefill from decode.",
            )

    def pick(self) -> torch.Tensor:
        """Choose the likeliest next token: ``(batch, 1)``."""
        picked: torch.Tensor = self._logits[:, -1:].argmax(dim=-1)
        return picked

    def step(self, token: torch.Tensor) -> torch.Tensor:
        """Feed one token per sequence, ``(batch, 1)``, and choose the next token."""
        self._forward(token)
        return self.pick()

    def _forward(self, ids: torch.Tensor) -> None:
        last = {"logits_to_keep": 1} if self.last_only else {}
        given = {} if self.cache is None else {self._cache_name: self.cache}
        output = self._module(input_ids=ids, use_cache=True, **given, **last)
        self.cache, self._logits = getattr(output, self._cache_name, None), output.logits


@dataclass(frozen=True)
class Pass:
    """The times of one generation, in milliseconds.

    Attributes:
        prefill_ms: time of reading the prompts.
        first_token_ms: time of choosing the first token after that and copying it to the host.
        decode_ms: time of each further token, chosen and copied to the host.
    """

    prefill_ms: float
    first_token_ms: float
    decode_ms: tuple[float, ...]

    @property
    def ttft_ms(self) -> float:
        """Time to the first token."""
        return self.prefill_ms + self.first_token_ms

    @property
    def total_ms(self) -> float:
        """Time to the last token."""
        return self.ttft_ms + sum(self.decode_ms)


@dataclass(frozen=True)
class Passes:
    """Repeats of one measurement.

    Attributes:
        warmup: number of passes before the measurement.
        wanted: number of requested repeats; there are fewer if the budget was spent.
    """

    passes: tuple[Pass, ...]
    warmup: int
    wanted: int
    last_only: bool

    def details(self) -> dict[str, Json]:
        """Describe the repeats."""
        return {
            "repeats": len(self.passes),
            "repeats_wanted": self.wanted,
            "warmup": self.warmup,
            "last_position_logits_only": self.last_only,
        }


def measure_sizes(
    subject: LoadedModel,
    ctx: Context,
    options: LatencyOptions | ThroughputOptions,
    shapes: Mapping[int, tuple[int, int]],
    *,
    decode_steps: int,
) -> tuple[dict[int, Passes], str]:
    """Measure the sizes in their order until one does not fit in memory.

    Args:
        shapes: number of prompts and of their tokens, by size.

    Returns:
        The measurements by size, and the message of the first failure, which is empty if all sizes fit.

    Raises:
        Exception: the out-of-memory error if not even the first size fits; any other error.
    """
    total = len(shapes) * options.repeats
    measured: dict[int, Passes] = {}
    problem = ""

    def done(passes: int) -> None:
        ctx.progress(len(measured) * options.repeats + passes, total)

    for size, (batch, tokens) in shapes.items():
        try:
            prompts = random_prompts(subject, batch=batch, tokens=tokens, seed=ctx.seed)
            measured[size] = _repeat(subject, prompts, options, decode_steps=decode_steps, done=done)
        except Exception as error:  # backends raise different classes when memory runs out
            if not measured or not is_out_of_memory(error):
                raise
            problem = first_line(error)
            break
    if problem:
        # The failed pass's tensors are freed only here, outside the except block, whose traceback kept them.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    ctx.progress(total, total)
    return measured, problem


def _repeat(
    subject: LoadedModel,
    prompts: torch.Tensor,
    options: LatencyOptions | ThroughputOptions,
    *,
    decode_steps: int,
    done: Callable[[int], None],
) -> Passes:
    """Warm up, then time generation from `prompts`, ``(batch, tokens)``, repeatedly.

    After `LEAST_REPEATS` repeats, no repeat starts after the budget's seconds. `done` is called with the number of
    finished repeats.
    """
    repeats, budget_s = options.repeats, options.budget_s
    start = time.perf_counter()
    with undisturbed(), torch.inference_mode():
        warmed = 0
        while warmed < options.warmup and (not warmed or time.perf_counter() - start < _WARMUP_SHARE * budget_s):
            time_pass(subject, prompts, decode_steps=min(decode_steps, _WARMUP_STEPS))
            warmed += 1
        passes: list[Pass] = []
        while len(passes) < repeats and (len(passes) < LEAST_REPEATS or time.perf_counter() - start < budget_s):
            passes.append(time_pass(subject, prompts, decode_steps=decode_steps))
            done(len(passes))
    return Passes(tuple(passes), warmed, repeats, Generation(subject.module).last_only)


def time_pass(subject: LoadedModel, prompts: torch.Tensor, *, decode_steps: int) -> Pass:
    """Time one generation, waiting for every token like a server that checks for the end of the text."""
    gc.collect()
    generation, clock = Generation(subject.module), _Clock(subject.device)
    clock.mark()
    generation.prefill(prompts)
    clock.mark()
    token = generation.pick()
    token.tolist()
    clock.mark()
    for _ in range(decode_steps):
        token = generation.step(token)
        token.tolist()
        clock.mark()
    prefill, first, *decode = clock.intervals_ms()
    return Pass(prefill, first, tuple(decode))


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Keep Python's garbage collector and log lines out of a measurement; explicit collections inside are fast.

    bitsandbytes' int8 layers log one warning per layer and pass for float32 input, which is not the model's work.
    """
    was_enabled, was_disabled = gc.isenabled(), logging.root.manager.disable
    gc.collect()
    frozen = gc.get_freeze_count()  # in a worker, what was imported, which stays frozen
    gc.freeze()  # existing objects are not scanned again, which takes 0.2 s each time with transformers loaded
    gc.disable()
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(was_disabled)
        if not frozen:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


@dataclass
class _Clock:
    """Timestamps on a device, each taken after the device has finished all earlier work."""

    device: str
    _marks: list[Any] = field(default_factory=list)  # Any: CUDA events, or seconds

    def mark(self) -> None:
        if self.device == "cuda":
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            event.synchronize()
            self._marks.append(event)
            return
        if self.device == "mps":
            torch.mps.synchronize()
        self._marks.append(time.perf_counter())

    def intervals_ms(self) -> list[float]:
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self.device == "cuda":
            return [float(before.elapsed_time(after)) for before, after in pairs]
        return [1000 * (after - before) for before, after in pairs]
