"""From numbers per token to measurements: means, percentiles, bins, and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from llmquant.evaluators.fidelity.reference import Floor
from llmquant.evaluators.perplexity.reading import Floats, TextWindows, ratio
from llmquant.study.run import Measurement

# Percentiles, by the numbers they are of and the ends of their names.
_PERCENTILES: Mapping[str, tuple[str, Mapping[str, float]]] = {
    "kl_divergence": ("kl", {"median": 50, "p99": 99, "p999": 99.9}),
    "dp_mean": ("dp", {"p1": 1, "p5": 5, "median": 50, "p95": 95, "p99": 99}),
}
_HEADLINES = ("kl_divergence", "top1_agreement", "kl_excess")
_CONFIDENCES = (0.0, 0.25, 0.5, 0.75, 0.9, math.inf)  # the last bin includes 1
_FIRST_POSITIONS = 128
_RESAMPLES = 200


@dataclass(frozen=True)
class Scored:
    """Numbers of all scored tokens.

    Attributes:
        numbers: ``(tokens,)`` by name, as `divergence` returns them.
        sizes: scored tokens per window.
        context: ``(tokens,)`` tokens before each in its window.
        is_baseline: the numbers are those of the baseline compared with itself.
    """

    text: TextWindows
    numbers: Mapping[str, Floats]
    sizes: npt.NDArray[np.int64]
    context: npt.NDArray[np.int64]
    is_baseline: bool

    @classmethod
    def of(cls, text: TextWindows, numbers: Mapping[str, Floats], *, is_baseline: bool) -> Scored:
        """Add the sizes of windows and the context of tokens."""
        lead = len(text.encoded.lead)
        context = [np.arange(w.first, w.end) - w.begin + lead for w in text.windows]
        return cls(text, numbers, np.array([w.scored for w in text.windows]), np.concatenate(context), is_baseline)

    @property
    def means(self) -> Mapping[str, Floats]:
        """The numbers whose mean is a metric."""
        return {name: values for name, values in self.numbers.items() if name != "confidence"}

    def per_window(self, values: Floats) -> Floats:
        """Sum numbers of tokens by window."""
        return np.bincount(self.windows, values, len(self.sizes)).astype(np.float64)

    def excess(self, floor: Floor) -> Floats:
        """Return the divergence above the floor per window of the floor; 0 for the baseline, which is its own floor."""
        if self.is_baseline:
            return np.zeros_like(floor.sums)
        found: Floats = self.per_window(self.numbers["kl_divergence"])[floor.windows] - floor.sums
        return found

    def bins(self) -> dict[str, dict[str, npt.NDArray[np.bool_]]]:
        """Return the tokens in each bin of context length, and of the baseline's largest probability; none is empty."""
        edges = [0, _FIRST_POSITIONS]
        while edges[-1] <= self.context.max():
            edges.append(2 * edges[-1])
        found: dict[str, dict[str, tuple[float, float]]] = {
            "position": {f"{low}-{high - 1}": (low, high) for low, high in pairwise(edges)}
        }
        places: dict[str, npt.NDArray[Any]] = {"position": self.context}  # Any: counts and probabilities
        if "confidence" in self.numbers:
            places["confidence"] = np.minimum(self.numbers["confidence"], 1)
            found["confidence"] = {f"{low:g}-{min(high, 1):g}": (low, high) for low, high in pairwise(_CONFIDENCES)}
        inside = {
            what: {label: (places[what] >= low) & (places[what] < high) for label, (low, high) in bins.items()}
            for what, bins in found.items()
        }
        return {what: {label: mask for label, mask in bins.items() if mask.any()} for what, bins in inside.items()}

    @property
    def windows(self) -> npt.NDArray[np.int64]:
        """The window of each token."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)


def scores_of(scored: Scored, floor: Floor | None) -> list[dict[str, float]]:
    """Return per window the sums that add up to every mean; of the floor only where it was measured."""
    columns = {name: scored.per_window(values) for name, values in scored.means.items()}
    rows = [
        {"tokens": float(size), **{name: float(values[number]) for name, values in columns.items()}}
        for number, size in enumerate(scored.sizes)
    ]
    if floor is not None:
        for number, nats, above in zip(floor.windows, floor.sums, scored.excess(floor), strict=True):
            rows[number] |= {"kl_floor": float(nats), "kl_excess": float(above)}
    return rows


def measurements(
    scored: Scored, floor: Floor | None, seed: int, *, independent_tokens: bool = False
) -> list[Measurement]:
    """Return every measurement of a variant, or of the baseline.

    Args:
        seed: of the resampling.
        independent_tokens: compute errors as if tokens were independent of each other, as llama.cpp does.
    """
    found = list(_means(scored, independent_tokens=independent_tokens))
    found += _spread(scored, seed, independent_tokens=independent_tokens)
    if floor is not None:
        sizes = scored.sizes[floor.windows].astype(float)
        for metric, sums in (("kl_floor", floor.sums), ("kl_excess", scored.excess(floor))):
            found.append(replace(_measurement(scored, metric, *ratio(sums, sizes)), n=len(sizes)))
    return [*found, *_binned(scored)]


def _means(scored: Scored, *, independent_tokens: bool) -> Iterator[Measurement]:
    for metric, values in scored.means.items():
        value, error = _mean(scored, values, independent_tokens=independent_tokens)
        yield _measurement(scored, metric, value, error)


def _mean(scored: Scored, values: Floats, *, independent_tokens: bool) -> tuple[float, float | None]:
    if not independent_tokens:
        return ratio(scored.per_window(values), scored.sizes.astype(float))
    count = len(values)
    return float(values.mean()), float(values.std() / np.sqrt(count - 1)) if count > 10 else None


def _spread(scored: Scored, seed: int, *, independent_tokens: bool) -> Iterator[Measurement]:
    for source, (short, percents) in _PERCENTILES.items():
        values = scored.numbers[source]
        errors = [None] * len(percents) if independent_tokens else _percentile_errors(scored, values, percents, seed)
        for (name, percent), error in zip(percents.items(), errors, strict=True):
            yield _measurement(scored, f"{short}_{name}", float(np.percentile(values, percent)), error)
    yield _measurement(scored, "kl_max", float(scored.numbers["kl_divergence"].max()), None)
    square, error = _mean(scored, scored.numbers["dp_mean"] ** 2, independent_tokens=independent_tokens)
    rms = float(np.sqrt(square))
    # By the delta method: d sqrt(x) = dx / (2 sqrt(x)).
    yield _measurement(scored, "dp_rms", rms, None if error is None else error / (2 * rms) if rms else 0.0)


def _percentile_errors(
    scored: Scored, values: Floats, percents: Mapping[str, float], seed: int
) -> Sequence[float | None]:
    """Estimate standard errors by drawing whole windows with replacement (block bootstrap)."""
    count = len(scored.sizes)
    if count < 2 or not np.isfinite(values).all():
        return [None] * len(percents)
    order = np.argsort(values)
    ordered, windows = values[order], scored.windows[order]
    draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), _RESAMPLES)
    found = np.empty((_RESAMPLES, len(percents)))
    for number, drawn in enumerate(draws):
        weights = np.cumsum(drawn[windows])
        found[number] = ordered[np.searchsorted(weights, np.array(list(percents.values())) / 100 * weights[-1])]
    return [float(error) for error in found.std(axis=0, ddof=1)]


def _binned(scored: Scored) -> Iterator[Measurement]:
    """Yield the divergence by the length of the context, and by the baseline's largest probability."""
    for what, bins in scored.bins().items():
        for label, inside in bins.items():
            sizes = scored.per_window(inside.astype(float))
            sums = scored.per_window(np.where(inside, scored.numbers["kl_divergence"], 0.0))
            value, error = ratio(sums[sizes > 0], sizes[sizes > 0])
            yield _measurement(scored, "kl_divergence", value, error, {what: label})


def _measurement(
    scored: Scored, metric: str, value: float, stderr: float | None, at: Mapping[str, str] | None = None
) -> Measurement:
    return Measurement(
        scored.text.name,
        metric,
        value,
        "nats" if metric.startswith(("kl_", "ln_")) else "",
        # A smaller divergence is not a better model, so neither direction is a verdict; a smaller perplexity is better.
        higher_is_better=False if metric == "ln_ppl_ratio" else None,
        stderr=stderr,
        n=None if at else len(scored.sizes),
        at=at or {},
        headline=metric in _HEADLINES and not at,
    )
