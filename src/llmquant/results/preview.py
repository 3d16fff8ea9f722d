"""A study before anything is loaded: model sizes, experiments, and the presets that support its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmquant.planning.estimate import SizeEstimate, estimate_all, estimate_size
from llmquant.planning.lookup import inspect_subject
from llmquant.planning.resolve import resolve
from llmquant.plugins.executor import Executor, Offer
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.results.precision import Precision, precisions
from llmquant.running.scheduler import Scheduler
from llmquant.storage.cache import Cache
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.experiment import RunId
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run
from llmquant.study.study import Study


@dataclass(frozen=True)
class Preview:
    """A study before anything is loaded.

    Attributes:
        sizes: predicted sizes by model, of the study's quantizers, or of every preset if the study has none.
        record: the study's experiments; ``None`` if the study names neither quantizers nor evaluators.
        runs: stored runs by run id; ``None`` for an experiment without a stored run.
        offer: the maximum cost of the remaining experiments; ``None`` if running is free.
        precision: the margin that the documents of each task can reach.
    """

    sizes: Mapping[str, Sequence[SizeEstimate]]
    record: StudyRecord | None
    runs: Mapping[RunId, Run | None]
    offer: Offer | None = None
    precision: tuple[Precision, ...] = ()


def preview(study: Study, *, executor: str | Executor = "local", store: str | Path | Store = "results") -> Preview:
    """Predict a study's sizes and list its stored runs.

    Raises:
        RequestError: if the study is wrong.
    """
    store = store if isinstance(store, Store) else Store(store)
    with open_executor(executor) as where:
        if not (study.quantizers or study.evaluators):
            infos = [inspect_subject(request, registry(), Cache.default()) for request in study.models]
            return Preview({info.use().name: estimate_all(info, registry(), where.device) for info in infos}, None, {})
        planned = resolve(study, registry(), Cache.default(), where)
        sizes = {
            info.use().name: [estimate_size(info, chosen, where.device) for chosen in planned.quantizers]
            for info in planned.models.values()
        }
        offer = Scheduler(planned, registry(), store, where).check()
    runs = {experiment.run_id: store.readable(experiment.run_id) for experiment in planned.record.experiments}
    return Preview(sizes, planned.record, runs, offer, tuple(precisions(planned.record, store)))


def with_all_presets(study: Study, *, executor: str | Executor = "local") -> Study:
    """Add every installed preset that supports all models of a study on the executor's device.

    Raises:
        RequestError: if a model is wrong.
    """
    with open_executor(executor) as where:
        installs = where.installs
        infos = [inspect_subject(request, registry(), Cache.default()) for request in study.models]
        can = [
            {size.quantizer for size in estimate_all(info, registry(), where.device) if not size.refused}
            for info in infos
        ]
    found = [
        Call(name)
        for plugin, name in registry().ready("quantizer")
        if (installs or registry().missing(plugin) is None) and all(name in each for each in can)
    ]
    return replace(study, quantizers=(*study.quantizers, *(call for call in found if call not in study.quantizers)))
