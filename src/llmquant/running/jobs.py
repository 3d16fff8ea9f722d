"""Which experiments share a job: what loads the same, spread over more jobs where there is room for them."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.plugins.registry import Registry
from llmquant.study.experiment import Experiment, digest_of


def make_groups(
    experiments: Sequence[Experiment], rest: Sequence[Experiment], registry: Registry, room: int
) -> list[list[Experiment]]:
    """Make groups of experiments, a job each.

    Args:
        experiments: those that can start now.
        rest: all that are in no job yet. Those that wait for a file of a group's, and load the same, join it.
        room: how many jobs there is room for. While there are fewer, the largest group that can be is split.
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
    """List what of a group another job could do meanwhile.

    Hardware experiments stay, since nothing may run beside them; and so does all that shares a file: a checkpoint that
    the job makes first, or a baseline's.
    """
    ids = {e.run_id for e in group}
    quantizer = registry.restore("quantizer", group[0].variant.quantizer)
    if len(group) == 1 or quantizer.plugin.spec.checkpoint or any(e.reference in ids for e in group):
        return []
    return [e for e in group if e.hardware is None]


def _loading(experiment: Experiment) -> str:
    """Name what has to be loaded for an experiment."""
    return digest_of([experiment.variant.model.identity(), experiment.variant.quantizer.identity()])
