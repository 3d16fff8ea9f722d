"""Runs of slices of a task's documents: together one run, until the verdicts are sure.

A study that stops when it is sure has one experiment per slice, see `llmquant.study.slices`. A comparison shows the
runs of a variant's slices as one run, with the id of the last of them; the intervals are those of
`llmquant.stats.sequences`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from llmquant.errors import DamagedError
from llmquant.results.row import Row
from llmquant.results.rows import Samples, population
from llmquant.study.call import Json
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.record import StudyRecord
from llmquant.study.run import Measurement, Run, Sample, numbered


def has_slices(record: StudyRecord) -> bool:
    """Return whether a study stops when its verdicts are sure."""
    return any(experiment.slice is not None for experiment in record.experiments)


def joined(
    record: StudyRecord, runs: Mapping[RunId, Run], samples: Samples, dollars: Mapping[RunId, float]
) -> tuple[StudyRecord, dict[RunId, Run], Samples, dict[RunId, float]]:
    """Join the runs of slices: return a study with one experiment per variant and evaluator, its runs and samples.

    Args:
        dollars: cost of each run, if running was not free; returned for the joined runs.
    """
    experiments = []
    found, paid = dict(runs), dict(dollars)
    parts: dict[RunId, list[Run]] = {}
    for series in _series(record):
        known = _known(series, runs)
        shown = known[-1].experiment if known else series[0]
        experiments.append(shown)
        if known and shown.slice is not None:
            parts[shown.run_id] = [run for run in known if run.status == "completed"]
            costs = [cost for e in series if (cost := paid.pop(e.run_id, None)) is not None]
            for experiment in series:
                found.pop(experiment.run_id, None)
            found[shown.run_id] = _joined(known)
            if costs:
                paid[shown.run_id] = math.fsum(costs)

    def samples_of(run_id: RunId) -> Mapping[str, Sequence[Sample]]:
        return _in_order(parts[run_id], samples) if run_id in parts else samples(run_id)

    return replace(record, experiments=tuple(experiments)), found, samples_of, paid


def needed(record: StudyRecord, runs: Mapping[RunId, Run], rows: Sequence[Row]) -> list[Experiment]:
    """Return the experiments that verdicts need, as far as `runs` shows: all but the slices after a sure verdict.

    A variant needs its next slice while a verdict is not sure and documents are left; its baseline needs the same
    slices.

    Args:
        rows: of the joined runs.
    """
    of_run: dict[RunId, list[Row]] = {}
    for row in rows:
        of_run.setdefault(row.run_id, []).append(row)
    wanted: dict[int, int] = {}
    alike: dict[tuple[str, str], list[int]] = {}
    baselines: dict[tuple[str, str], int] = {}
    every = _series(record)
    for place, series in enumerate(every):
        known = _known(series, runs)
        mine = of_run[known[-1].run_id if known else series[0].run_id]
        key = (mine[0].model_digest, mine[0].evaluator_key)
        wanted[place] = len(known) + (not _ended(known, mine))
        if mine[0].is_baseline:
            baselines[key] = place
        else:
            alike.setdefault(key, []).append(place)
    for key, base in baselines.items():
        variants = alike.get(key, ())
        known = _known(every[base], runs)
        if known and known[-1].status == "failed":  # without a baseline there are no verdicts
            wanted |= {place: min(wanted[place], len(known)) for place in variants}
        elif variants:
            wanted[base] = max(wanted[place] for place in variants)
    chosen = {e.run_id for place, series in enumerate(every) for e in series[: wanted[place]]}
    return [experiment for experiment in record.experiments if experiment.run_id in chosen]


def with_needed(row: Row, limit: int | None) -> Row:
    """Note on a verdict from slices how many documents it needed, of how many."""
    if row.interval_method != "betting sequence" or row.verdict is None or row.mean_of:
        return row
    most = min(number for number in (limit, row.population) if number is not None)
    n = row.n or 0
    if not _is_sure(row):
        note = f"undecided after {n:,} of {most:,} documents"
    elif n < most:
        note = f"{n:,} of {most:,} documents were needed, {most - n:,} were saved"
    else:
        note = f"all {most:,} documents were needed"
    return replace(row, evaluator_note="; ".join(filter(None, (row.evaluator_note, note))))


def _series(record: StudyRecord) -> list[list[Experiment]]:
    """Group the slices of each variant and evaluator, in order; any other experiment is a group of its own."""
    found: dict[RunId, list[Experiment]] = {}
    for experiment in record.experiments:
        key = experiment.run_id if experiment.slice is None else replace(experiment, documents=None).run_id
        found.setdefault(key, []).append(experiment)
    return list(found.values())


def _known(series: Sequence[Experiment], runs: Mapping[RunId, Run]) -> list[Run]:
    """Return the runs of the first slices, up to the first one that is missing or has failed."""
    known: list[Run] = []
    for experiment in series:
        run = runs.get(experiment.run_id)
        if run is None or (known and known[-1].status == "failed"):
            break
        known.append(run)
    return known


def _ended(known: Sequence[Run], rows: Sequence[Row]) -> bool:
    """Return whether a variant needs no more documents: it failed, is sure, or has used all of them."""
    if not known:
        return False
    last = known[-1]
    if last.status == "failed":
        return True
    chosen = last.experiment.slice
    if chosen is None or chosen.end is None:
        return True
    totals = [population(last, measurement.task) for measurement in last.measurements]
    if all(total is not None and chosen.end >= total for total in totals):
        return True
    judged = [row for row in rows if row.headline and row.verdict is not None]
    return bool(judged) and all(map(_is_sure, judged))


def _is_sure(row: Row) -> bool:
    if row.verdict == "no signal":  # so far
        return row.margin is not None and row.no_worse_than is not None and abs(row.no_worse_than) < row.margin
    return row.verdict not in (None, "undecided")


def _joined(known: Sequence[Run]) -> Run:
    completed = [run for run in known if run.status == "completed"]
    if not completed:
        return known[-1]
    measurements = [
        _mean([found for run in completed for found in run.measurements if _key(found) == _key(measurement)])
        for measurement in completed[-1].measurements
    ]
    details = {task: _details(completed, task) for task in completed[-1].details}
    return replace(known[-1], measurements=tuple(measurements), details=details)


def _key(measurement: Measurement) -> tuple[str, str, str]:
    return measurement.task, measurement.metric, repr(sorted(measurement.at.items()))


def _mean(found: Sequence[Measurement]) -> Measurement:
    """Average values over their documents; the standard error is that of all scores together."""
    counts = [measurement.n or 0 for measurement in found]
    n = sum(counts)
    if len(found) == 1 or not all(counts):
        return found[-1]
    value = math.fsum(count * measurement.value for count, measurement in zip(counts, found, strict=True)) / n
    # The squares of a slice's scores from its own mean are (n_i - 1) n_i stderr_i^2.
    squares = [
        count * ((count - 1) * (measurement.stderr or 0.0) ** 2 + (measurement.value - value) ** 2)
        for count, measurement in zip(counts, found, strict=True)
    ]
    return replace(found[-1], value=value, stderr=math.sqrt(math.fsum(squares) / (n - 1) / n), n=n)


def _details(runs: Sequence[Run], task: str) -> Json:
    """Return the last slice's details, with the notes of all."""
    each = [details for run in runs if isinstance(details := run.details.get(task), Mapping)]
    notes = [found for details in each if isinstance(found := details.get("notes"), list | tuple)]
    return {**each[-1], "notes": list(dict.fromkeys(itertools.chain(*notes)))}


def _in_order(runs: Sequence[Run], samples: Samples) -> dict[str, list[Sample]]:
    """Return the samples of slices in the random order in which their documents were drawn.

    Raises:
        DamagedError: if a slice has other documents than were drawn.
    """
    found: dict[str, list[Sample]] = {}
    for run in runs:
        chosen = run.experiment.slice
        for task, scored in samples(run.run_id).items():
            total = population(run, task)
            places = [] if chosen is None or total is None else chosen.places(total, run.experiment.seed)
            if len(places) != len(scored):
                expected = f"its slice of {total} documents has {len(places)}"
                raise DamagedError(f"run {run.run_id} has {len(scored)} samples of {task}; {expected}")
            by_place = dict(zip(sorted(places), scored, strict=True))
            found.setdefault(task, []).extend(by_place[place] for place in places)
    return {task: numbered(scored) for task, scored in found.items()}
