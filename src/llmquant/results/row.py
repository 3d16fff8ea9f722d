"""One measurement of a study, compared with its baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from llmquant.study.call import Json
from llmquant.study.experiment import RunId
from llmquant.study.run import FailureKind

if TYPE_CHECKING:
    from llmquant.stats.paired import Method, PairedDifference
    from llmquant.stats.verdicts import Judgement, Real, Verdict

SAME_AS_PERPLEXITY = frozenset({"bits_per_byte", "nll_per_token"})
"""Metrics with the same information as the perplexity of a task; neither shown nor counted beside it."""


@dataclass(frozen=True)
class Row:
    """One measurement of a variant, compared with its baseline's; or the reason why an experiment has none.

    Attributes:
        model: name of the model; the last part of a local path.
        model_digest: digest of the model; rows with the same digest share a baseline.
        variant: label of the quantizer, and of the form of its vectors if there are several.
        is_baseline: whether the other variants are compared with this one.
        evaluator: label of the evaluator.
        evaluator_key: equal for comparable measurements: evaluator, options, documents, seed and hardware.
        run_id: id of the run; ``""`` for a mean over tasks.
        status: ``missing``: not run yet; tasks that a failed run finished are ``completed``.
        attempt: number of the run's attempt; ``None`` for a missing run.
        hardware: hardware of the measurement, for evaluators whose results depend on it.
        task: task of the measurement, with `metric` and `at`; ``""`` if the run has no results.
        mean_of: the tasks that a mean is over, each counting the same, with their metrics if `pooled`; empty for the
            number of one task.
        at: conditions of the measurement.
        headline: whether tables show the measurement.
        stderr: standard error of the value.
        n: samples or repeats behind the value.
        baseline: label of the baseline; ``None`` on its own rows.
        baseline_value: the baseline's value; of a variant that stopped when it was sure, over its own documents.
        difference: value minus baseline; over the paired documents if there are pairs.
        difference_stderr: standard error of the difference, from pairs.
        difference_low: lower end of the difference's 95% interval.
        difference_high: upper end of this interval.
        pairs: number of documents scored in both on the same prompt; ``None`` if there are no pairs.
        pairs_higher: number of pairs in which the variant scores higher.
        pairs_lower: number of pairs in which the variant scores lower.
        interval_method: method of the interval, see `llmquant.stats.paired`.
        ratio: value over baseline, for sizes, times, rates and perplexity.
        ratio_low: lower end of the ratio's 95% interval, for perplexity.
        ratio_high: upper end of this interval.
        ratio_stderr: standard error of the ratio, for perplexity.
        margin: the largest acceptable loss, in the units of the difference; 0.02 of a perplexity is a ratio of 1.02.
        verdict: conclusion from the pairs at the margin, see `llmquant.stats.verdicts`; ``None`` without pairs or
            margin.
        no_verdict: why there is no verdict although there are pairs.
        real: whether the interval shows a real loss or gain.
        no_worse_than: the smallest loss that the interval excludes, as a difference, or as a ratio for perplexity.
        documents_needed: about how many documents would decide an undecided verdict.
        population: number of documents in the whole task; ``None`` if unknown.
        p: two-sided p-value of no difference.
        p_holm: this p-value, adjusted by Holm for the model's headline comparisons; ``None`` for others.
        sidak_low: lower end of an interval that holds for all these comparisons at once, by Sidak; a ratio for
            perplexity.
        sidak_high: upper end of this interval.
        pooled: whether the row is a variant's mean over its tasks, in margins or points, see `llmquant.results.pooled`.
        no_interval: why there are no pairs, or no interval of their difference; ``""`` where there is one, and on the
            baseline's rows. If `pooled`: the tasks that could not be compared, with the reasons.
        failure: message of a failed run.
        failure_kind: kind of the failure, such as ``out_of_memory``.
        reused: whether the run is older than the study; ``None`` if unknown.
        provenance_differences: versions and devices in which the run differs from its baseline's.
        compute_dtype: dtype of the quantized layers' multiplications, read back from the loaded model.
        applied_note: the quantizer's note about the quantized weights.
        evaluator_note: the evaluator's note for readers of the table, for example about truncated prompts.
        dollars: estimated cost of the whole run in dollars; ``None`` if running was free.
    """

    model: str
    model_digest: str
    variant: str
    is_baseline: bool
    evaluator: str
    evaluator_key: str
    run_id: RunId
    status: Literal["completed", "failed", "missing"]
    attempt: int | None = None
    hardware: str | None = None
    task: str = ""
    metric: str = ""
    mean_of: tuple[str, ...] = ()
    at: Mapping[str, int | float | str] = field(default_factory=dict)
    headline: bool = True
    value: float | None = None
    stderr: float | None = None
    n: int | None = None
    unit: str = ""
    higher_is_better: bool | None = None
    baseline: str | None = None
    baseline_value: float | None = None
    difference: float | None = None
    difference_stderr: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    pairs: int | None = None
    pairs_higher: int | None = None
    pairs_lower: int | None = None
    interval_method: Method = ""
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    ratio_stderr: float | None = None
    margin: float | None = None
    verdict: Verdict | None = None
    no_verdict: str = ""
    real: Real = ""
    no_worse_than: float | None = None
    documents_needed: int | None = None
    population: int | None = None
    p: float | None = None
    p_holm: float | None = None
    sidak_low: float | None = None
    sidak_high: float | None = None
    pooled: bool = False
    no_interval: str = ""
    failure: str | None = None
    failure_kind: FailureKind | None = None
    reused: bool | None = None
    provenance_differences: tuple[str, ...] = ()
    compute_dtype: str | None = None
    applied_note: str = ""
    evaluator_note: str = ""
    dollars: float | None = None

    def __repr__(self) -> str:
        return brief(self, "model", "variant", "task", "metric", "value", "difference", "verdict")

    def to_json(self) -> dict[str, Json]:
        """Return a JSON object; numbers that are not finite become strings, since JSON has none."""
        lists = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        fields = {**vars(self), "at": dict(self.at), **lists}
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def brief(record: object, *names: str) -> str:
    """Write an object with some of its attributes, without those that are empty."""
    known = ((name, getattr(record, name)) for name in names)
    known = ((name, value) for name, value in known if value not in (None, ""))
    shown = (f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value!r}" for name, value in known)
    return f"{type(record).__name__}({', '.join(shown)})"


def with_verdict(row: Row, paired: PairedDifference, found: Judgement, margin: float | None) -> Row:
    """Fill in a paired difference, its interval and the verdict on it."""
    return replace(
        row,
        difference=paired.value,
        difference_stderr=paired.stderr,
        difference_low=paired.low,
        difference_high=paired.high,
        pairs=paired.n,
        pairs_higher=paired.higher,
        pairs_lower=paired.lower,
        interval_method=paired.method,
        margin=margin,
        verdict=found.verdict,
        real=found.real,
        no_worse_than=found.no_worse_than,
        documents_needed=found.documents_needed,
        p=paired.p,
    )


def by_model(rows: Iterable[Row]) -> list[list[Row]]:
    """Group rows by model."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.model_digest, []).append(row)
    return list(found.values())


def failures(rows: Iterable[Row]) -> list[Row]:
    """Pick the experiments that failed."""
    return [row for row in rows if row.status == "failed"]


def missing(rows: Iterable[Row]) -> list[Row]:
    """Pick the experiments that have not run yet."""
    return [row for row in rows if row.status == "missing"]
