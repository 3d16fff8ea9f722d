"""Pair the samples of two runs, and compute the difference that their measurement needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from llmquant.stats.paired import Floats, PairedDifference, paired_difference
from llmquant.stats.sequences import sequential_difference
from llmquant.study.run import Measurement, Sample


@dataclass(frozen=True, eq=False)
class SamplePairs:
    """Two runs' scores of the same documents, for one measurement.

    Attributes:
        variant: scores of the variant.
        baseline: scores of the same documents.
        weights: weight of each document; ``None`` for equal weights.
        groups: group of each document.
        population: documents in the whole benchmark, if the documents are drawn from it in random order and more may
            follow: the interval is that of `sequential_difference`.
        scale: ``log`` means that a difference is the logarithm of a ratio.
        reason: why no samples pair; ``""`` if some do.
    """

    variant: Floats = field(default_factory=lambda: np.empty(0))
    baseline: Floats = field(default_factory=lambda: np.empty(0))
    weights: Floats | None = None
    groups: Sequence[str] | None = None
    scale: Literal["linear", "log"] = "linear"
    reason: str = ""
    population: int | None = None

    @property
    def silent(self) -> bool:
        """Whether every document has one and the same score in both."""
        return bool((self.variant == self.variant[0]).all() and (self.baseline == self.variant[0]).all())

    def difference(self, *, level: float = 0.95) -> PairedDifference:
        """Estimate variant minus baseline."""
        if self.population is not None:
            return sequential_difference(self.variant, self.baseline, self.population, level=level)
        # Weighted documents are the windows of a text, stored in its order.
        ordered = self.weights is not None
        return paired_difference(
            self.variant, self.baseline, weights=self.weights, groups=self.groups, level=level, ordered=ordered
        )


@dataclass(frozen=True)
class _Sum:
    """The formula of a metric over documents' scores: ``worth * sum(score) / sum(weight)``, or its exponential.

    Attributes:
        weight: name of the score that is a document's weight; ``""`` means weight 1.
    """

    score: str
    weight: str = ""
    worth: float = 1.0
    scale: Literal["linear", "log"] = "linear"

    def weight_of(self, sample: Sample) -> float:
        return sample.scores[self.weight] if self.weight else 1.0

    def has(self, sample: Sample) -> bool:
        return self.score in sample.scores and (not self.weight or self.weight in sample.scores)

    def gives(self, value: float, samples: Sequence[Sample]) -> bool:
        """Return whether the documents' scores add up to the measured value."""
        total = self.worth * sum(sample.scores[self.score] for sample in samples)
        weight = sum(self.weight_of(sample) for sample in samples)
        if not math.isfinite(total) or not weight > 0:
            return False
        mean = total / weight
        if self.scale == "log":
            value = math.log(value) if value > 0 else math.nan
        # Evaluators may add in float32; mteb keeps five decimals.
        return math.isclose(mean, value, rel_tol=1e-4, abs_tol=6e-6)


_FIDELITY = (
    *("kl_divergence", "kl_reverse", "kl_floor", "kl_excess"),
    *("top1_agreement", "top5_agreement", "dp_mean", "ln_ppl_ratio"),
)
_SUMS: Mapping[str, _Sum] = {
    "nll_per_token": _Sum("nll", "tokens"),
    "bits_per_byte": _Sum("nll", "bytes", worth=1 / math.log(2)),
    "perplexity": _Sum("nll", "tokens", scale="log"),
    "word_perplexity": _Sum("nll", "words", scale="log"),
    "byte_perplexity": _Sum("nll", "bytes", scale="log"),
    **{name: _Sum(name, "tokens") for name in _FIDELITY},
}


def _sum_of(metric: str, samples: Sequence[Sample]) -> _Sum:
    found = _SUMS.get(metric, _Sum(metric))
    if metric == "perplexity" and not any(found.weight in sample.scores for sample in samples):
        return _Sum("nll", scale="log")  # lm-eval's metric: each document has weight 1, whatever its length
    if metric in _FIDELITY and not any(found.weight in sample.scores for sample in samples):
        return _Sum(metric)
    return found


def scored_for(measurement: Measurement, samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with the scores that determine a measurement's value."""
    metric = _sum_of(measurement.metric, samples)
    return [sample for sample in samples if metric.has(sample)]


def contradicts(measurement: Measurement, scored: Sequence[Sample]) -> bool:
    """Return whether the scores of a measurement's samples contradict its value."""
    metric = _sum_of(measurement.metric, scored)
    if math.isfinite(measurement.value):
        return not metric.gives(measurement.value, scored)
    # The exponential of a finite mean may be too large for a float.
    overflows = metric.scale == "log" and measurement.value == math.inf
    return not overflows and all(math.isfinite(sample.scores[metric.score]) for sample in scored)


def pair_samples(
    variant: Measurement,
    baseline: Measurement,
    variant_samples: Mapping[str, Sequence[Sample]],
    baseline_samples: Mapping[str, Sequence[Sample]],
    *,
    population: int | None = None,
) -> SamplePairs:
    """Pair two runs' samples of one metric by document, occurrence and prompt.

    No samples pair if the scores of the documents do not add up to the measured values, because an interval for a mean
    does not apply to a metric that is not a mean. Samples are grouped by task, as in runs.

    Args:
        population: as in `SamplePairs`; the samples must be in the order in which their documents were drawn.
    """
    metric = _sum_of(variant.metric, variant_samples.get(variant.task, ()))
    mine, theirs = (
        [sample for sample in samples.get(variant.task, ()) if metric.has(sample)]
        for samples in (variant_samples, baseline_samples)
    )
    if not mine or not theirs:
        return SamplePairs(scale=metric.scale, reason="no scores of single documents were kept")
    for whose, found in (("the", variant), ("the baseline's", baseline)):
        if not math.isfinite(found.value):
            return SamplePairs(scale=metric.scale, reason=f"{whose} value is not a finite number")
    if not (metric.gives(variant.value, mine) and metric.gives(baseline.value, theirs)):
        return SamplePairs(scale=metric.scale, reason="the value is not the mean of its documents' scores")
    beside = {(sample.document, sample.occurrence): sample for sample in theirs}
    pairs = [(one, beside[one.document, one.occurrence]) for one in mine if (one.document, one.occurrence) in beside]
    if not pairs:
        return SamplePairs(scale=metric.scale, reason="the baseline was scored on other documents")
    same = [
        (one, other)
        for one, other in pairs
        if one.prompt == other.prompt and metric.weight_of(one) == metric.weight_of(other)
    ]
    if not any(metric.weight_of(one) > 0 for one, _ in same):
        return SamplePairs(scale=metric.scale, reason="the baseline was given other prompts")
    scores = metric.worth * np.array([one.scores[metric.score] for one, _ in same], np.float64)
    beside_them = metric.worth * np.array([other.scores[metric.score] for _, other in same], np.float64)
    if population is not None:
        if len(same) < len(pairs):
            return SamplePairs(scale=metric.scale, reason="the baseline was given other prompts for some documents")
        if metric.weight or metric.scale == "log" or not _are_shares(scores, beside_them):
            reason = "only scores from 0 to 1 have an interval that stays valid while documents are added"
            return SamplePairs(scale=metric.scale, reason=reason)
    return SamplePairs(
        scores,
        beside_them,
        np.array([metric.weight_of(one) for one, _ in same], np.float64) if metric.weight else None,
        [other.group for _, other in same] if any(other.group for _, other in same) else None,
        metric.scale,
        population=population,
    )


def _are_shares(*scores: Floats) -> bool:
    return all(bool((each >= 0).all() and (each <= 1).all()) for each in scores)
