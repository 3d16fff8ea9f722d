"""From a study to experiments: looks up all names, reports all mistakes at once, and lists what is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from llmquant.errors import OptionError, RequestError, UnsupportedError, collecting, raise_all
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_local_files
from llmquant.planning.defaults import (
    DEFAULT_BASELINE,
    DEFAULT_EVALUATORS,
    DEFAULT_QUANTIZERS,
    EMBEDDER_QUANTIZERS,
    PAGE_EVALUATORS,
    TEXT_EVALUATORS,
)
from llmquant.planning.lookup import inspect_embedder, inspect_subject
from llmquant.planning.margins import unknown_margins
from llmquant.planning.notes import BASELINE, applicable, left_out, overlaps
from llmquant.planning.slicing import documents_of, runs_whole
from llmquant.plugins.executor import Executor
from llmquant.plugins.options import input_files
from llmquant.plugins.registry import Chosen, Registry
from llmquant.storage.blanking import blank_secrets
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import (
    Digest,
    Experiment,
    InputFile,
    ModelRequest,
    PluginKind,
    RunId,
    Variant,
    VectorForm,
    VectorGrid,
    digest_of,
    hex_digest,
)
from llmquant.study.model_names import model_names
from llmquant.study.plain import wrong_seed
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run
from llmquant.study.study import Study

_KINDS = {"causal_lm": "a causal LM", "embedder": "an embedder"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Planned:
    """A study whose names, options and widths have been looked up and checked; nothing is loaded.

    Attributes:
        record: the study's record for the store.
        models: models by digest.
        quantizers: the quantizers; an added baseline comes first.
        evaluators: one evaluator per part.
        inputs: paths of the files named in options, by content digest.
    """

    record: StudyRecord
    models: Mapping[str, ModelInfo]
    quantizers: tuple[Chosen, ...]
    evaluators: tuple[Chosen, ...]
    inputs: Mapping[Digest, Path]


def resolve(study: Study, registry: Registry, cache: Cache, executor: Executor, *, fresh: bool = False) -> Planned:
    """Look up all models, quantizers and evaluators of a study.

    Args:
        fresh: read local weights again even if their files look unchanged.

    Raises:
        RequestError: for one mistake.
        RequestErrors: for several mistakes, all at once.
    """
    if not isinstance(study, Study):
        raise OptionError(f"study is {study!r}", hint="Give Study.from_file(path) or Study.of(models, ...).")
    if fresh:
        cache.forget_digests()
    errors: list[RequestError] = _wrong_numbers(study)
    notes: list[str] = []
    infos = [_try(errors, _inspect, study, request, registry, cache) for request in dict.fromkeys(study.models)]
    known = _once([info for info in infos if info is not None], notes)
    quantizers_if_none, evaluators_if_none = _defaults(known)
    quantizers = _choose(registry, "quantizer", study.quantizers or quantizers_if_none, errors, notes)
    if not study.quantizers:
        quantizers = _usable(registry, quantizers, known, executor, notes)
    evaluators = _choose(registry, "evaluator", study.evaluators or evaluators_if_none, errors, notes)
    baseline = None
    if all(registry.offers("quantizer", call.name) for call in study.quantizers):
        baseline = _try(errors, _baseline, study, registry, quantizers)
        if baseline is not None and baseline not in quantizers:
            quantizers.insert(0, baseline)
            notes.append(f"{baseline.use.label} was added as the baseline")
    split = [
        (each.use.label, part) for each in evaluators for part in _try(errors, parts_of, registry, each, known) or ()
    ]
    parts = [part for _, part in split]
    for info in known:
        _try(errors, check_subject, registry, info, executor)
        for chosen in [*applicable(info, quantizers, baseline), *parts]:
            _try(errors, check_choice, registry, chosen, info, executor)
    forms = {info.digest: _try(errors, forms_of, study.vectors, info) or () for info in known}
    whole = _try(errors, runs_whole, study, parts)
    errors += [] if errors else unknown_margins(study.margins, parts)
    raise_all(errors)
    # Experiments that leave a file for others come first.
    first = sorted(quantizers, key=lambda chosen: chosen is not baseline)
    ordered = first if any(part.plugin.spec.reference for part in parts) else quantizers
    experiments = {
        experiment.run_id: experiment
        for info in known
        for part in sorted(parts, key=_order)
        for experiment in _of_evaluator(
            study, info, forms[info.digest], applicable(info, ordered, baseline), baseline, part, executor.hardware
        )
    }
    # Experiments of one process, with the same model and quantizer, follow each other.
    models, uses = [info.digest for info in known], [chosen.use for chosen in ordered]
    by_variant = sorted(
        experiments.values(), key=lambda e: (models.index(e.variant.model.digest), uses.index(e.variant.quantizer))
    )
    names = model_names(info.use() for info in known)
    notes += [f"{names[info.digest]}: {info.note}" for info in known if info.note]
    notes += overlaps(quantizers, parts) + left_out(study, known, quantizers, baseline, parts) + (whole or [])
    record = StudyRecord(
        study_id=hex_digest([e.run_id for e in by_variant])[:12],
        title=blank_secrets(", ".join(names.values())),
        experiments=tuple(by_variant),
        baselines={info.digest: baseline.use.label for info in known if baseline is not None},
        notes=tuple(map(blank_secrets, (*notes, *executor.notices))),
        limit=study.limit,
        seed=study.seed,
        margins=study.margins,
        benchmarks=_benchmarks([label for label, _ in split], parts, by_variant),
    )
    inputs = {digest: path for chosen in [*quantizers, *parts] for digest, path in input_files(chosen.options).items()}
    return Planned(record, {info.digest: info for info in known}, tuple(quantizers), tuple(parts), inputs)


def _defaults(models: Sequence[ModelInfo]) -> tuple[Sequence[Call], Sequence[Call]]:
    """Return the quantizers and the evaluators for these models: pages only if all of them encode images."""
    embedders = [info.embeds for info in models if info.embeds is not None]
    if not embedders or len(embedders) < len(models):
        return DEFAULT_QUANTIZERS, DEFAULT_EVALUATORS
    pages = all("image" in each.modalities for each in embedders)
    return EMBEDDER_QUANTIZERS, PAGE_EVALUATORS if pages else TEXT_EVALUATORS


def plan(record: StudyRecord, runs: Mapping[RunId, Run]) -> tuple[Experiment, ...]:
    """Return the experiments that are missing from `runs` and can start now.

    An experiment that is compared with the baseline's file waits for the run that leaves the file.
    """
    return tuple(
        experiment
        for experiment in record.experiments
        if experiment.run_id not in runs and (experiment.reference is None or experiment.reference in runs)
    )


def _wrong_numbers(study: Study) -> list[RequestError]:
    errors: list[RequestError] = []
    if not study.models:
        errors.append(OptionError("the study has no models", hint="Give a Hub id, a folder (./...) or a .gguf file."))
    if study.limit is not None and study.limit < 1:
        errors.append(
            OptionError(
                f"limit must be at least 1, found {study.limit}",
                hint='For all documents write limit = "all".',
            )
        )
    return errors + wrong_seed(study.seed)


def _inspect(study: Study, request: ModelRequest, registry: Registry, cache: Cache) -> ModelInfo:
    """Inspect a model; an embedder of any width gets a width that all widths of the study can be cut from."""
    info = inspect_subject(request, registry, cache)
    if info.embedder is None or not study.vectors.dims:
        return info
    chosen = registry.restore("embedder", info.embedder)
    widened = chosen.ask("for_dims", study.vectors.dims)
    if widened is None:
        return info
    return inspect_embedder(registry.chosen(chosen.plugin, widened, label=info.embedder.label), request, cache)


def _once(infos: Sequence[ModelInfo], notes: list[str]) -> list[ModelInfo]:
    """Keep one of several models with the same content, and note this."""
    found: dict[str, ModelInfo] = {}
    for info in infos:
        first = found.setdefault(info.digest, info)
        if first.source != info.source:
            notes.append(f"{info.source} has the same content as {first.source}; the model is compared once")
    return list(found.values())


def _choose(
    registry: Registry, kind: PluginKind, calls: Sequence[Call], errors: list[RequestError], notes: list[str]
) -> list[Chosen]:
    """Look up calls; of several calls with the same meaning the first is kept, and a note names the others."""
    found: list[Chosen] = []
    for call in calls:
        chosen = _try(errors, registry.choose, kind, call)
        first = next((other for other in found if chosen is not None and _same(chosen, other)), None)
        if chosen is not None and first is None:
            if any(chosen.use.label == other.use.label for other in found):  # files in other folders
                chosen = registry.chosen(chosen.plugin, chosen.options, label=blank_secrets(str(call)))
            found.append(chosen)
        elif chosen is not None and first is not None and chosen.use.label != first.use.label:
            notes.append(f"{chosen.use.label} means the same as {first.use.label}; the variant is compared once")
    return found


def _usable(
    registry: Registry,
    chosen: Sequence[Chosen],
    infos: Sequence[ModelInfo],
    executor: Executor,
    notes: list[str],
) -> list[Chosen]:
    """Leave out defaults that cannot run here or are slow here, and note this; the baseline stays."""
    found = []
    for quantizer in chosen:
        errors: list[RequestError] = []
        if quantizer.plugin.spec.checkpoint and executor.device == "cpu":
            name = quantizer.use.label
            slow = "calibration on a CPU takes minutes per 100 million parameters"
            errors.append(UnsupportedError(slow, hint=f"To include it anyway: -q {name}"))
        for info in infos:
            _try(errors, check_choice, registry, quantizer, info, executor)
        if errors and quantizer.plugin.full_name != BASELINE:
            notes.append(f"{quantizer.use.label} is left out: " + str(errors[0]).replace("\n", ". "))
        else:
            found.append(quantizer)
    return found


def _same(one: Chosen, other: Chosen) -> bool:
    return one.use.identity() == other.use.identity()


def _baseline(study: Study, registry: Registry, quantizers: Sequence[Chosen]) -> Chosen:
    """Find the quantizer that the others are compared with, or add a baseline."""
    if study.baseline is None:
        named = [chosen for chosen in quantizers if chosen.plugin.full_name == BASELINE]
        return named[0] if named else registry.choose("quantizer", DEFAULT_BASELINE)
    wanted = registry.choose("quantizer", Call.parse(study.baseline))
    return next((chosen for chosen in quantizers if _same(chosen, wanted)), wanted)


def forms_of(grid: VectorGrid, info: ModelInfo) -> tuple[VectorForm, ...]:
    """List a grid's forms of vectors for a model; empty for a causal LM.

    Raises:
        OptionError: if the model does not support one of them.
    """
    if info.embeds is None:
        if grid != VectorGrid():
            raise OptionError(f"{info.source} is a causal LM and has no vectors", hint="Leave out dims and codecs.")
        return ()
    for dim in (*grid.dims, *([info.embeds.dim] if info.embeds.dim is not None else [])):
        if dim not in info.embeds.dims:
            offered = ", ".join(map(str, info.embeds.dims))
            raise OptionError(f"{info.source} cannot be cut to {dim} dimensions", hint=f"It offers {offered}.")
    if info.embeds.similarity != "maxsim" and any(pool > 1 for pool in grid.pools):
        raise OptionError(
            f"{info.source} has one vector per document, so pooling is not possible", hint="Leave out pools."
        )
    return grid.forms(info.embeds.dim)


def parts_of(registry: Registry, chosen: Chosen, infos: Sequence[ModelInfo]) -> list[Chosen]:
    """Split an evaluator into its parts, for example one per task.

    Raises:
        UnsupportedError: if it does not support one of the models; its catalogue of tasks is not read for that.
        RequestError: for an unknown task.
    """
    for info in infos:
        _check_kind(chosen, info)
    parts = chosen.ask("parts")
    options = [chosen.options] if parts is None else parts
    if len(options) < 2:
        return [chosen]
    return [registry.chosen(chosen.plugin, part, label=_part_label(chosen, part)) for part in options]


def _benchmarks(
    asked: Sequence[str], parts: Sequence[Chosen], experiments: Sequence[Experiment]
) -> dict[str, tuple[str, ...]]:
    """Return the labels of the evaluators that each benchmark was split into, by the benchmark's label."""
    # Two benchmarks may share a task, which is one experiment with one of two labels.
    labels = {digest_of(experiment.evaluator.identity()): experiment.evaluator.label for experiment in experiments}
    found: dict[str, list[str]] = {}
    for label, part in zip(asked, parts, strict=True):
        found.setdefault(label, []).append(labels.get(digest_of(part.use.identity()), part.use.label))
    return {label: tuple(names) for label, names in found.items() if len(names) > 1}


def _part_label(chosen: Chosen, part: Any) -> str:  # Any: plugins bring their own options
    """Write a part's call as by hand: its first option, then the named options."""
    written = Call.parse(chosen.use.label)
    first = fields(part)[0].name
    value = getattr(part, first)
    items = value if isinstance(value, tuple) else (value,)
    args = tuple(item.name if isinstance(item, InputFile) else item for item in items)
    return str(Call(written.name, args, {key: v for key, v in written.options.items() if key != first}))


def check_choice(registry: Registry, chosen: Chosen, info: ModelInfo, executor: Executor) -> None:
    """Refuse early: missing packages, unsupported models, widths, devices, unknown task names.

    Raises:
        RequestError: if the variant or evaluator cannot run.
    """
    _check_packages(registry, chosen, executor)
    _check_kind(chosen, info)
    chosen.ask("check", info, executor.device)


def _check_kind(chosen: Chosen, info: ModelInfo) -> None:
    spec, kind = chosen.plugin.spec, "causal_lm" if info.embedder is None else "embedder"
    if kind not in spec.accepts:
        takes = " or ".join(_KINDS.get(accepted, accepted) for accepted in spec.accepts)
        raise UnsupportedError(f"{spec.kind} {spec.name!r} supports {takes}, but {info.source} is {_KINDS[kind]}")


def check_subject(registry: Registry, info: ModelInfo, executor: Executor) -> None:
    """Refuse a model early: an embedder's missing packages and what its options refuse, a causal LM's missing files.

    Raises:
        RequestError: if the model cannot run.
    """
    if info.embedder is None:
        check_local_files(info)
    else:
        chosen = registry.restore("embedder", info.embedder)
        _check_packages(registry, chosen, executor)
        chosen.ask("check", info, executor.device)


def _check_packages(registry: Registry, chosen: Chosen, executor: Executor) -> None:
    missing = None if executor.installs else registry.missing(chosen.plugin)
    if missing is not None:
        raise missing


def _order(chosen: Chosen) -> tuple[bool, bool]:
    """Order experiments: memory, then other hardware, then the rest; earlier ones may leave memory allocated."""
    return (not chosen.plugin.spec.hardware, chosen.plugin.full_name != "llmquant/memory")


def _of_evaluator(
    study: Study,
    info: ModelInfo,
    forms: tuple[VectorForm, ...],
    quantizers: Sequence[Chosen],
    baseline: Chosen | None,
    evaluator: Chosen,
    hardware: str,
) -> list[Experiment]:
    """List one evaluator's experiments on one model: per quantizer, vector form if vectors matter, and slice."""
    spec = evaluator.plugin.spec
    found = [
        Experiment(
            Variant(info.use(), quantizer.use, form),
            evaluator.use,
            documents,
            study.seed,
            hardware if spec.hardware else None,
        )
        for quantizer in quantizers
        for form in (forms if spec.vectors and forms else (None,))
        for documents in documents_of(study, evaluator)
    ]
    if not spec.reference or baseline is None:
        return found
    (reference,) = [e for e in found if e.variant.quantizer == baseline.use and e.variant.vectors in (None, *forms[:1])]
    return [e if e is reference else replace(e, reference=reference.run_id) for e in found]


def _try(errors: list[RequestError], step: Callable[..., _T], *args: Any) -> _T | None:  # Any: the step's arguments
    found: list[_T] = []
    with collecting(errors):
        found.append(step(*args))
    return found[0] if found else None
