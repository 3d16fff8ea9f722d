"""A study before anything is loaded: model sizes, experiments, and the presets that support its models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmquant.planning.estimate import SizeEstimate, estimate_all, estimate_size
from llmquant.planning.hub_rows import is_made, missing_rows, unreachable
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
from llmquant.study.model_names import model_names
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
            names = model_names(info.use() for info in infos)
            every = {
                (name := names[info.digest]): [
                    replace(size, refused=size.refused and size.refused.replace(info.source, name))
                    for size in estimate_all(info, registry(), where.device)
                ]
                for info in infos
            }
            return Preview(every, None, {})
        planned = resolve(study, registry(), Cache.default(), where)
        sizes = {
            planned.record.model_names[digest]: [estimate_size(info, each, where.device) for each in planned.quantizers]
            for digest, info in planned.models.items()
        }
        offer = Scheduler(planned, registry(), store, where).check()
    runs = {experiment.run_id: store.readable(experiment.run_id) for experiment in planned.record.experiments}
    return Preview(sizes, planned.record, runs, offer, tuple(precisions(planned.record, store)))


def with_all_presets(study: Study, *, executor: str | Executor = "local") -> tuple[Study, list[str]]:
    """Add every installed preset that supports all models of a study on the executor's device.

    Returns:
        The study, and a note per reason with the presets that are left out.

    Raises:
        RequestError: if a model is wrong.
    """
    known, cache = registry(), Cache.default()
    presets = known.ready("quantizer")
    reasons: dict[str, str] = {}
    with open_executor(executor) as where:
        installs = where.installs
        for request in study.models:
            sizes = estimate_all(inspect_subject(request, known, cache), known, where.device)
            refused = {size.quantizer: size.refused for size in sizes}
            reasons |= {name: why for _, name in presets if (why := refused.get(name, "not for this kind of model"))}
    if not installs:
        reasons |= {name: error.message for plugin, name in presets if (error := known.missing(plugin)) is not None}
        named = [known.choose("quantizer", Call(name)) for _, name in presets if name not in reasons]
        lacking = [each.use.label for each in named if missing_rows(each) and not is_made(each, cache)]
        if lacking and (offline := unreachable()):
            reasons |= dict.fromkeys(lacking, f"calibration text is on the Hub, which cannot be reached: {offline}")
    alike: dict[str, list[str]] = {}
    for name, why in reasons.items():
        alike.setdefault(why, []).append(name)
    calls = [call for _, name in presets if name not in reasons and (call := Call(name)) not in study.quantizers]
    notes = [f"left out: {', '.join(names)}: {why}" for why, names in alike.items()]
    return replace(study, quantizers=(*study.quantizers, *calls)), notes
