"""Before a study starts: the margin that its documents can reach, and how many documents its own margin needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from llmquant.errors import LlmquantError
from llmquant.results.rows import rows
from llmquant.results.slices import joined
from llmquant.storage.store import Store
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.margins import SHARES, is_share, points
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run, Sample

# Without a pilot: one answer in ten changes between right and wrong, as with good 4-bit weights.
_DISCORDANCE = 0.1
# Scores other than right and wrong are not planned without a pilot.
_PLANNED = "lm_eval"


@dataclass(frozen=True)
class Precision:
    """What the documents of one task can show of a variant without loss, in four of five studies.

    Attributes:
        task: label of the evaluator, with the model's name if the study has several.
        documents: number of documents; ``None`` for all of an unknown number.
        reachable: smallest margin that so many documents can prove, as a share of 1; ``None`` if unknown.
        margin: the study's margin, as a share of 1.
        needed: documents that the study's margin needs; ``None`` for a margin of 0.
        pilot: whether the spread comes from earlier runs of the model on this task, and not from an assumption.
    """

    task: str
    documents: int | None
    reachable: float | None
    margin: float
    needed: int | None
    pilot: bool

    def __str__(self) -> str:
        source = "by earlier runs" if self.pilot else f"if {100 * _DISCORDANCE:.0f}% of answers change"
        parts = []
        if self.reachable is not None:
            count = f"{self.documents:,} document{'' if self.documents == 1 else 's'}"
            parts.append(f"{count} can prove a margin of about {100 * self.reachable:.1f} points")
        if self.needed is not None and not (self.documents and self.documents >= self.needed):
            digits = max(0, len(str(self.needed)) - 2)
            parts.append(f"a margin of {points(100 * self.margin)} needs about {round(self.needed, -digits):,}")
        return f"{self.task}: {'; '.join(parts)} ({source})"


def precisions(record: StudyRecord, store: Store) -> list[Precision]:
    """Plan each task of a study; tasks whose spread is unknown are left out."""
    from llmquant.stats.planning import documents_needed, reachable_margin

    asked = {_key(each): each for each in record.experiments if each.documents is not None}
    if not asked:
        return []
    spreads = _spreads(record, store, set(asked))
    margin, found = record.margins[SHARES], []
    for key, experiment in asked.items():
        plugin = experiment.evaluator.plugin.rpartition("/")[2]
        sd, total = spreads.get(key, (math.sqrt(_DISCORDANCE) if plugin == _PLANNED else None, None))
        if sd is None:
            continue
        documents = min((n for n in (record.limit, total) if n is not None), default=None)
        reach = None if documents is None else reachable_margin(documents, sd, largest=1.0)
        needed = documents_needed(margin, sd, largest=1.0) if margin else None
        model = record.model_names[experiment.variant.model.digest]
        task = experiment.evaluator.label if len(record.model_names) < 2 else f"{model}: {experiment.evaluator.label}"
        found.append(Precision(task, documents, reach, margin, needed, key in spreads))
    return list(dict.fromkeys(found))


def _key(experiment: Experiment) -> tuple[str, str]:
    return experiment.variant.model.digest, repr(experiment.evaluator.identity())


def _spreads(
    record: StudyRecord, store: Store, wanted: set[tuple[str, str]]
) -> Mapping[tuple[str, str], tuple[float, int | None]]:
    """Return the largest spread of a share over variants in the newest study that has it, and the size of its task."""
    found: dict[tuple[str, str], tuple[float, int | None]] = {}
    for name in reversed(store.studies()):
        try:
            old = store.read_study(name, StudyRecord.from_json)
            left = wanted - set(found)
            alike = tuple(each for each in old.experiments if _key(each) in left)
            runs = {each.run_id: run for each in alike if (run := store.readable(each.run_id)) is not None}
            old = replace(old, experiments=alike, baselines=record.baselines)
            compared = rows(*joined(old, runs, partial(_samples, store, runs), {})[:3])
        except LlmquantError:  # a damaged study is no pilot
            continue
        keys = {each.run_id: _key(each) for each in alike}
        for row in compared:
            if row.pairs and row.interval_method and row.difference_stderr is not None and is_share(row.metric):
                # One more document that changes: a pilot without changes does not show that nothing ever will.
                sd = math.hypot(row.difference_stderr * math.sqrt(row.pairs), 1 / math.sqrt(row.pairs))
                key = keys.get(row.run_id)
                if key is not None:
                    total = row.population
                    if total is None and (old.limit is None or row.pairs < old.limit):  # it had no more documents
                        total = row.pairs
                    found[key] = max(found.get(key, (0.0, None)), (sd, total), key=lambda each: each[0])
    return found


def _samples(store: Store, runs: Mapping[RunId, Run], run_id: RunId) -> Mapping[str, Sequence[Sample]]:
    return store.samples(runs[run_id])
