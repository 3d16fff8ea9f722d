"""Stored runs compared with their baseline's, as plain rows: values, paired differences, verdicts, missing runs.

A difference is only computed for comparable measurements: the same evaluator with the same options, documents, seed and
hardware, the same task, metric and conditions. An interval is only given if the same documents were scored on the same
prompts. A missing value is ``None``, never zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from llmquant.errors import DamagedError
from llmquant.results.costs import running_rows
from llmquant.results.means import mean_rows, task_of
from llmquant.results.pooled import pooled_rows
from llmquant.results.row import SAME_AS_PERPLEXITY, Row, with_verdict
from llmquant.study.call import Json
from llmquant.study.experiment import Documents, Experiment, RunId, Variant, VectorForm, hex_digest
from llmquant.study.margins import Margins, margin_of
from llmquant.study.record import StudyRecord
from llmquant.study.run import Measurement, Run, Sample

if TYPE_CHECKING:
    from llmquant.stats.paired import PairedDifference
    from llmquant.stats.samples import SamplePairs

ByTask: TypeAlias = Mapping[str, Sequence[Sample]]
"""A run's samples by task."""

Samples: TypeAlias = Callable[[RunId], ByTask]
"""Returns a run's samples."""

Watch: TypeAlias = Callable[[Sequence[Row], ByTask, ByTask], None]
"""Gets the rows of a variant's run, its samples and the baseline's samples."""

# Of a run's provenance, what can make equal questions give unequal answers; packages are compared one by one.
_COMPARED = ("python", "platform", "device", "cuda", "threads")


def rows(
    record: StudyRecord,
    runs: Mapping[RunId, Run],
    samples: Samples,
    margins: Margins | None = None,
    watch: Watch = lambda rows, variant, baseline: None,
) -> list[Row]:
    """Compare every measurement of a study with its baseline's.

    Args:
        record: the study's record.
        runs: stored runs of the study's experiments; other runs are ignored.
        samples: called once per run with measurements.
        margins: the largest acceptable losses; ``None`` for the study's own.
        watch: called per variant's run while its samples are in memory; its rows have no intervals yet.

    Returns:
        One row per measurement, in the order of the study; one row for each experiment that failed or is missing. A
        partly failed experiment has both: rows of its finished tasks, and one of its failure. Last come means over
        tasks, see `llmquant.results.means`, and one row per variant for all its tasks, see `llmquant.results.pooled`.
    """
    margins = record.margins if margins is None else margins
    baselines = {
        _likeness(experiment): experiment for experiment in record.experiments if _is_baseline(record, experiment)
    }
    read: dict[RunId, Mapping[str, Sequence[Sample]]] = {}

    def samples_of(run_id: RunId) -> Mapping[str, Sequence[Sample]]:
        if run_id not in read:
            read[run_id] = samples(run_id)
        return read[run_id]

    found: list[Row] = []
    pairs: list[SamplePairs | None] = []  # of each row
    for experiment in record.experiments:
        run = runs.get(experiment.run_id)
        head = _head(record, experiment, run)
        if run is None:
            found.append(Row(**head))
            pairs.append(None)
            continue
        beside = baselines.get(_likeness(experiment))
        other = None if beside is None else runs.get(beside.run_id)
        # A partly failed run has rows of its finished tasks, and one of its failure.
        finished = {**head, "status": "completed", "failure": None, "failure_kind": None}
        if other is not None:
            finished["provenance_differences"] = _provenance_differences(run, other)
        first = len(found)
        for measurement in run.measurements:
            like = None if other is None else _like(measurement, other.measurements)
            compared, pair = ({}, None) if head["is_baseline"] else _compare(measurement, like, run, other, samples_of)
            note, total = _note(run, measurement.task), population(run, measurement.task)
            found.append(Row(**finished, **vars(measurement), **compared, evaluator_note=note, population=total))
            pairs.append(pair)
        if not head["is_baseline"]:
            mine, theirs = read.pop(run.run_id, {}), {} if other is None else read.get(other.run_id, {})
            watch(found[first:], mine, theirs)
        if run.status == "failed":
            found.append(Row(**head))
            pairs.append(None)
    differences = [None if pair is None else pair.difference() for pair in pairs]
    found = _without_signal(_judged(found, pairs, differences, margins), pairs)
    linear = [
        d if pair is not None and pair.scale == "linear" else None for pair, d in zip(pairs, differences, strict=True)
    ]
    means = mean_rows(found, linear, record.benchmarks, margins)
    return [*found, *running_rows(found), *means, *pooled_rows(found, differences, margins)]


def _judged(
    rows: Sequence[Row],
    pairs: Sequence[SamplePairs | None],
    differences: Sequence[PairedDifference | None],
    margins: Margins,
) -> list[Row]:
    """Fill in the intervals and verdicts of rows with pairs; a model's headline comparisons are one family."""
    if not any(pairs):
        return list(rows)
    # Here, since numpy and scipy take most of a second, which a command that compares nothing should not wait for.
    from llmquant.stats.significance import holm, sidak_level

    families: dict[str, list[int]] = {}
    with_perplexity = {task_of(row) for row in rows if row.metric == "perplexity"}
    for place, (row, difference) in enumerate(zip(rows, differences, strict=True)):
        repeated = row.metric in SAME_AS_PERPLEXITY and task_of(row) in with_perplexity
        tested = row.headline and row.higher_is_better is not None and not repeated
        if tested and difference is not None and difference.p is not None:
            families.setdefault(row.model_digest, []).append(place)
    found = [
        row if pair is None or difference is None else _compared(row, difference, pair.scale, margins)
        for row, pair, difference in zip(rows, pairs, differences, strict=True)
    ]
    for family in families.values():
        level, adjusted = sidak_level(len(family)), holm([found[place].p for place in family])
        for place, p in zip(family, adjusted, strict=True):
            pair = pairs[place]
            assert pair is not None
            wide = pair.difference(level=level)
            low, high = _ends(wide, pair.scale)
            found[place] = replace(found[place], p_holm=p, sidak_low=low, sidak_high=high)
    return found


def _compared(row: Row, paired: PairedDifference, scale: Literal["linear", "log"], margins: Margins) -> Row:
    """Fill in a difference, its interval and the verdict."""
    from llmquant.stats.verdicts import judge

    margin = margin_of(row.metric, margins)
    judged = judge(paired, higher_is_better=row.higher_is_better, margin=margin)
    no_verdict = "" if judged.verdict else f"{row.metric} needs a margin: --margin {row.metric}=NUMBER"
    found = replace(with_verdict(row, paired, judged, margin), no_verdict=no_verdict, no_interval=_why_none(paired))
    if scale == "linear":
        return found
    ratio = _exp(paired.value)
    low, high = _ends(paired, scale)
    return replace(
        found,
        difference=row.difference,  # of the values themselves
        difference_stderr=None,
        difference_low=None,
        difference_high=None,
        margin=margin if margin is None else math.expm1(margin),
        no_worse_than=judged.no_worse_than if judged.no_worse_than is None else _exp(judged.no_worse_than),
        ratio=ratio,
        ratio_stderr=None if paired.stderr is None else ratio * paired.stderr,
        ratio_low=low,
        ratio_high=high,
    )


def _why_none(paired: PairedDifference) -> str:
    from llmquant.stats.paired import MIN_CHANGED

    if paired.low is not None:
        return ""
    if paired.changed < MIN_CHANGED:
        return f"fewer than {MIN_CHANGED} scores differ"
    return "too few windows of the text, each like the one before it"


def _ends(paired: PairedDifference, scale: Literal["linear", "log"]) -> tuple[float | None, float | None]:
    """Return the ends of an interval, as ratios on a scale of logarithms."""
    low, high = (end if end is None or scale == "linear" else _exp(end) for end in (paired.low, paired.high))
    return low, high


def _without_signal(rows: Sequence[Row], pairs: Sequence[SamplePairs | None]) -> list[Row]:
    """Give the verdict *no signal* if every variant has the same score on every document, such as 0 or 1.

    Such documents cannot distinguish a good variant from a broken one.
    """
    measured: dict[tuple[str, ...], list[int]] = {}
    for place, row in enumerate(rows):
        if pairs[place] is not None:
            key = (row.model_digest, row.evaluator_key, row.task, row.metric, repr(row.at))
            measured.setdefault(key, []).append(place)
    silent = {
        place
        for alike in measured.values()
        if all(pair.silent for each in alike if (pair := pairs[each]) is not None)
        for place in alike
    }
    return [
        replace(row, verdict="no signal", no_verdict="", documents_needed=None) if place in silent else row
        for place, row in enumerate(rows)
    ]


def label(record: StudyRecord, variant: Variant) -> str:
    """Return a variant's label in tables, with the form of its vectors if the study has several."""
    forms = _forms(record, variant)
    name = variant.quantizer.label
    return name if len(forms) < 2 else f"{name} · {variant.vectors or forms[0]}"


def variants(record: StudyRecord) -> list[Variant]:
    """List a study's variants, by model, the baseline first."""
    models = list(dict.fromkeys(experiment.variant.model.digest for experiment in record.experiments))
    firsts: dict[str, Experiment] = {}
    for experiment in record.experiments:
        variant = experiment.variant
        firsts.setdefault(f"{variant.model.digest} {label(record, variant)}", experiment)
    ordered = sorted(firsts.values(), key=lambda e: (models.index(e.variant.model.digest), not _is_baseline(record, e)))
    return [experiment.variant for experiment in ordered]


def _is_baseline(record: StudyRecord, experiment: Experiment) -> bool:
    variant = experiment.variant
    if record.baselines.get(variant.model.digest) != variant.quantizer.label:
        return False
    return variant.vectors is None or variant.vectors == _forms(record, variant)[0]


def _forms(record: StudyRecord, variant: Variant) -> tuple[VectorForm, ...]:
    """Return a study's forms of vectors for a variant's model, in order."""
    return record.forms.get(variant.model.digest, ())


def _baseline_label(record: StudyRecord, variant: Variant) -> str | None:
    name, forms = record.baselines.get(variant.model.digest), _forms(record, variant)
    return f"{name} · {forms[0]}" if name is not None and len(forms) > 1 else name


def _evaluator_key(experiment: Experiment) -> str:
    documents = experiment.documents or Documents()
    # Slices of one random order are comparable, however many of them a variant has.
    limit = documents.limit if documents.slice is None else "slices"
    identity = [experiment.evaluator.identity(), limit, experiment.seed, experiment.hardware]
    return hex_digest(identity)[:12]


def _likeness(experiment: Experiment) -> tuple[str, str]:
    return experiment.variant.model.digest, _evaluator_key(experiment)


def _head(record: StudyRecord, experiment: Experiment, run: Run | None) -> dict[str, Any]:  # Any: fields of Row
    """Return the fields shared by all rows of an experiment."""
    variant = experiment.variant
    is_baseline = _is_baseline(record, experiment)
    applied = (run.applied if run is not None else None) or {}
    failure = run.failure if run is not None else None
    return {
        # The record's names, not the run's: a reused run may come from another study.
        "model": record.model_names[variant.model.digest],
        "model_digest": variant.model.digest,
        "variant": label(record, variant),
        "is_baseline": is_baseline,
        "baseline": None if is_baseline else _baseline_label(record, variant),
        "evaluator": experiment.evaluator.label,
        "evaluator_key": _evaluator_key(experiment),
        "run_id": experiment.run_id,
        "status": "missing" if run is None else run.status,
        "attempt": None if run is None else run.attempt,
        "hardware": experiment.hardware,
        "failure": None if failure is None else failure.message,
        "failure_kind": None if failure is None else failure.kind,
        "reused": run.started_at < record.started_at if run is not None and record.started_at else None,
        "compute_dtype": applied.get("compute_dtype"),
        "applied_note": applied.get("note") or "",
    }


def _detail(run: Run, task: str, key: str) -> Json:
    details = run.details.get(task)
    return details.get(key) if isinstance(details, Mapping) else None


def _note(run: Run, task: str) -> str:
    """Join the ``notes`` that an evaluator left in the details of a task."""
    notes = _detail(run, task, "notes")
    return "; ".join(map(str, notes)) if isinstance(notes, list | tuple) else ""


def population(run: Run, task: str) -> int | None:
    """Return how many documents the whole task has."""
    total = _detail(run, task, "documents_total")
    return total if isinstance(total, int) and not isinstance(total, bool) else None


def _like(measurement: Measurement, others: Iterable[Measurement]) -> Measurement | None:
    wanted = (measurement.task, measurement.metric, measurement.at, measurement.unit)
    return next((other for other in others if (other.task, other.metric, other.at, other.unit) == wanted), None)


def _compare(
    measurement: Measurement, like: Measurement | None, run: Run, other: Run | None, samples_of: Samples
) -> tuple[dict[str, Any], SamplePairs | None]:  # Any: fields of Row
    """Return the fields that come from comparing a measurement with the baseline's, and its pairs if there are any."""
    from llmquant.stats.samples import pair_samples

    if other is None:
        return {"no_interval": "the baseline has not run with these settings"}, None
    if like is None:
        reason = "the baseline failed" if other.status == "failed" else "the baseline has no such value"
        return {"no_interval": reason}, None
    value, baseline = measurement.value, like.value
    found: dict[str, Any] = {"baseline_value": baseline, "difference": value - baseline}
    try:
        whole = None if run.experiment.slice is None else population(run, measurement.task)
        paired = pair_samples(measurement, like, samples_of(run.run_id), samples_of(other.run_id), population=whole)
    except DamagedError as error:
        return {**found, "no_interval": error.message}, None
    if paired.population is not None:  # the baseline may have continued for another variant
        found["baseline_value"] = math.fsum(paired.baseline) / len(paired.baseline)
    if (paired.scale == "log" or measurement.unit) and value > 0 and baseline > 0:
        found["ratio"] = value / baseline
    reason = paired.reason and str(_detail(run, measurement.task, "no_scores") or paired.reason)
    return {**found, "no_interval": reason}, None if reason else paired


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


def _provenance_differences(run: Run, other: Run) -> tuple[str, ...]:
    mine, theirs = _flat_provenance(run), _flat_provenance(other)
    both = [key for key in mine if key in theirs and mine[key] != theirs[key]]
    return tuple(f"{key} {mine[key]}, the baseline {theirs[key]}" for key in both)


def _flat_provenance(run: Run) -> dict[str, Json]:
    packages = run.provenance.get("packages")
    found = dict(packages) if isinstance(packages, Mapping) else {}
    return found | {key: run.provenance[key] for key in _COMPARED if key in run.provenance}
