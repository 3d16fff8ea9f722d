"""One number of a study beside its baseline's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from llmquant.study.call import Json
from llmquant.study.experiment import RunId
from llmquant.study.run import FailureKind

if TYPE_CHECKING:
    from llmquant.stats.paired import Method, Verdict


@dataclass(frozen=True)
class Row:
    """One number of one variant beside its baseline's; or, for an experiment that gave none, why.

    Attributes:
        model: its name, of a local path the last part.
        model_digest: what it is: rows of one digest share a baseline.
        variant: label of the quantizer, and of the form of its vectors if there are several.
        is_baseline: whether the other variants are compared with this one.
        evaluator: its label.
        evaluator_key: equal for like measurements: evaluator, options, documents, seed and hardware.
        run_id: of the run; ``""`` for a mean over tasks.
        status: ``missing``: not run yet; tasks that a failed run finished are ``completed``.
        attempt: which attempt of the run this is; ``None`` for a missing one.
        hardware: where it was measured, for evaluators whose numbers depend on it.
        task: with `metric` and `at` what was measured; ``""`` where the run gave nothing.
        mean_of: the tasks that a mean is over, each counting the same; empty for the number of one task.
        at: the conditions.
        headline: whether tables show it.
        stderr: standard error of the value.
        n: samples or repeats behind the value.
        baseline: label of the baseline; ``None`` on its own rows.
        baseline_value: the same number of the baseline.
        difference: value minus baseline; over the paired documents where they pair.
        difference_stderr: its standard error, from pairs.
        difference_low: lower end of its 95% interval.
        difference_high: upper end.
        pairs: documents scored in both on the same prompt; ``None`` where none pair.
        pairs_higher: of these, documents in which the variant scores higher.
        pairs_lower: documents in which it scores lower.
        interval_method: how the interval was made, see `llmquant.stats.paired`.
        ratio: value over baseline, for sizes, times, rates and perplexity.
        ratio_low: lower end of its 95% interval, for perplexity.
        ratio_high: upper end.
        ratio_stderr: its standard error, for perplexity.
        verdict: what the pairs show; ``None`` where nothing pairs.
        no_interval: why nothing pairs; ``""`` where it does, and on the baseline's rows.
        failure: message of a failed run.
        failure_kind: such as ``out_of_memory``.
        reused: whether the run is older than the study; ``None`` where that is not known.
        provenance_differences: versions and devices in which the run differs from its baseline's.
        compute_dtype: in which the quantized layers multiply, read back from the loaded model.
        applied_note: what else the quantizer said about what it put into the weights.
        evaluator_note: what the evaluator said that a reader of the table must know, such as prompts that were cut.
        dollars: about what the whole run cost; ``None`` where nothing was paid for.
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
    verdict: Verdict | None = None
    no_interval: str = ""
    failure: str | None = None
    failure_kind: FailureKind | None = None
    reused: bool | None = None
    provenance_differences: tuple[str, ...] = ()
    compute_dtype: str | None = None
    applied_note: str = ""
    evaluator_note: str = ""
    dollars: float | None = None

    def to_json(self) -> dict[str, Json]:
        """Return a JSON object; numbers that are not finite become strings, since JSON has none."""
        lists = {name: list(value) for name, value in vars(self).items() if isinstance(value, tuple)}
        fields = {**vars(self), "at": dict(self.at), **lists}
        return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}


def failures(rows: Iterable[Row]) -> list[Row]:
    """Pick the experiments that failed."""
    return [row for row in rows if row.status == "failed"]


def missing(rows: Iterable[Row]) -> list[Row]:
    """Pick the experiments that have not run yet."""
    return [row for row in rows if row.status == "missing"]
