"""Groups experiments into jobs: experiments with the same model and quantizer, split if there is room for more jobs."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.plugins.registry import Registry
from llmquant.study.experiment import Experiment, digest_of


def make_groups(
    experiments: Sequence[Experiment], rest: Sequence[Experiment], registry: Registry, room: int
) -> list[list[Experiment]]:
    """Group experiments, one job per group.

    Args:
        experiments: the experiments that can start now.
        rest: all experiments without a job. An experiment that waits for a file of a group, with the same model and
            quantizer, joins the group.
        room: the number of jobs with room. While there are fewer groups, the largest group that can be split is split.
    """
    by_loading: dict[str, list[Experiment]] = {}
    for experiment in experiments:
        by_loading.setdefault(_loading(experiment), []).append(experiment)
    for loading, group in by_loading.items():
        ids = {e.run_id for e in group}
        group += [e for e in rest if e.reference in ids and _loading(e) == loading and e.run_id not in ids]
    groups = list(by_loading.values())
    while groups and len(groups) < room:
        largest = max(groups, key=lambda group: len(_movable(group, registry)))
        movable = _movable(largest, registry)
        if not movable:
            break
        moved = movable[len(movable) // 2 :]
        groups[groups.index(largest)] = [e for e in largest if e not in moved]
        groups.append(moved)
    return groups


def _movable(group: Sequence[Experiment], registry: Registry) -> list[Experiment]:
    """List the experiments of a group that could move to another job.

    Hardware experiments stay, because they must run alone; so do experiments that share a file: a checkpoint that the
    job makes first, or a file of the baseline.
    """
    ids = {e.run_id for e in group}
    quantizer = registry.restore("quantizer", group[0].variant.quantizer)
    if len(group) == 1 or quantizer.plugin.spec.checkpoint or any(e.reference in ids for e in group):
        return []
    return [e for e in group if e.hardware is None]


def _loading(experiment: Experiment) -> str:
    """Return a digest of an experiment's model and quantizer, and of its slice: a later one may not be needed."""
    start = 0 if experiment.slice is None else experiment.slice.start
    return digest_of([experiment.variant.model.identity(), experiment.variant.quantizer.identity(), start])
