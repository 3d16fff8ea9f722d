"""Checks of evaluators, on a tiny model or embedder on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from llmquant.errors import PluginError
from llmquant.plugins.context import Context
from llmquant.storage.store import Store
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, Variant
from llmquant.study.run import REFERENCE_FILE, Result, Run
from llmquant.study.slices import Slice
from llmquant.testing import specs
from llmquant.testing.loaded import baseline, load_model, load_vectors
from llmquant.testing.traces import constructed, recorded, refuse_changes
from llmquant.testing.trial import NotApplicable, Trial, contents

_SLICE = Slice(0, 2)
_LIMIT = 2
_NOW = "2026-01-01T00:00:00.000+00:00"


@dataclass(frozen=True)
class _Evaluation:
    """The results of one evaluation, and the folder of its files."""

    results: list[Result]
    files: Path


def results_are_valid(trial: Trial) -> None:
    """Every `Result` has measurements, numbers are numbers, `n` counts the samples, and means are their means.

    To fix: build results with ``Result.from_samples(task, samples, metric, higher_is_better=...)``.
    """
    _first(trial)


def nothing_is_left_behind(trial: Trial) -> None:
    """An evaluation leaves weights, model, tokenizer, process and memory as they were, and no thread or process.

    To fix: restore every change, for example with ``try`` and ``finally``, and keep no tensors after the evaluation.
    """
    refuse_changes(trial)


def results_are_stored(trial: Trial) -> None:
    """Results, samples, details and prompts are the same after they were written to a store and read again.

    To fix: give numbers, texts and JSON only, and texts without surrogates.
    """
    results = _first(trial).results
    store = Store(trial.folder / "store")
    use = PluginUse("llmquant/baseline", "1", {}, "bf16_baseline")
    experiment = Experiment(Variant(ModelUse("tiny", "sha256:0"), use, None), trial.chosen.use, None, 0)
    measurements = tuple(measurement for result in results for measurement in result.measurements)
    details = {result.task: dict(result.details) for result in results}
    run = Run(experiment, "completed", measurements, None, {}, _NOW, _NOW, details)
    partial = store.begin()
    samples = {result.task: list(result.samples) for result in results}
    prompts = {digest: text for result in results for digest, text in result.prompts.items()}
    store.keep(run, partial, samples, prompts)
    store.commit(run, partial, samples)
    stored = store.run(experiment.run_id)
    found = {} if stored is None else store.samples(stored)
    if stored is None or repr(stored.to_json()) != repr(run.to_json()):
        raise PluginError("measurements or details differ after they were stored and read again")
    for task, given in samples.items():
        if repr(found.get(task, [])) != repr(given):
            raise PluginError(f"task {task!r}: samples differ after they were stored and read again")
    if store.prompts(list(prompts)) != prompts:
        raise PluginError("prompts differ after they were stored and read again")


def a_seed_repeats_results(trial: Trial) -> None:
    """A second evaluation with the same seed gives the same samples and numbers, unless they depend on the machine.

    To fix: draw from ``ctx.seed``; declare ``hardware=True`` if the numbers depend on the machine.
    """
    first, second = _first(trial).results, _second(trial).results
    if [_outline(result) for result in first] != [_outline(result) for result in second]:
        raise PluginError("the second evaluation has other results or samples")
    if trial.spec.hardware:
        return
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.measurements, other.measurements, strict=True):
            both_nan = math.isnan(a.value) and math.isnan(b.value)
            if not (both_nan or math.isclose(a.value, b.value, rel_tol=1e-6)):
                raise PluginError(f"task {one.task!r}: {a.metric} was {a.value} first and {b.value} the second time")


def files_are_its_own(trial: Trial) -> None:
    """An evaluation starts with an empty ``ctx.files``, writes and closes the same files again, and changes no others.

    To fix: write to the ``ctx.files`` of this evaluation only, use ``with``, and do not keep the path.
    """
    first = _first(trial)
    before = contents(first.files)
    fresh = _evaluate(trial, _context(trial))
    folders = (first.files.resolve(), fresh.files.resolve())
    open_files = [Path(file.path) for file in psutil.Process().open_files()]
    if left := {path.name for path in open_files if path.parent in folders}:
        raise PluginError(f"it left open, and perhaps incomplete: {', '.join(sorted(left))}")
    if contents(first.files) != before:
        raise PluginError("a later evaluation changed the files of an earlier one")
    if contents(fresh.files).keys() != before.keys():
        raise PluginError(f"it wrote {sorted(contents(fresh.files))}, and {sorted(before)} the first time")


def the_reference_is_used(trial: Trial) -> None:
    """An evaluator with ``reference=True`` leaves its file on the baseline, and accepts it as ``ctx.reference``.

    To fix: write ``ctx.files / "reference.safetensors"`` if ``ctx.reference`` is ``None``.
    """
    if not trial.spec.reference:
        raise NotApplicable("the plugin needs no reference")
    path = _first(trial).files / REFERENCE_FILE
    if not path.is_file():
        raise PluginError(f"it left no {REFERENCE_FILE} in ctx.files on the baseline")
    _evaluate(trial, replace(_context(trial), reference=path))


def the_limit_is_kept(trial: Trial) -> None:
    """An evaluator with ``documents=True`` scores at most ``ctx.documents.limit`` documents per task.

    To fix: take the first documents of each task, and no more than the limit.
    """
    if not trial.spec.documents:
        raise NotApplicable("the plugin uses no limit")
    for result in _evaluate(trial, _context(trial, Documents(_LIMIT))).results:
        if len(result.samples) > _LIMIT:
            raise PluginError(f"task {result.task!r}: {len(result.samples)} samples with a limit of {_LIMIT}")


def slices_are_scored(trial: Trial) -> None:
    """An evaluator whose ``whole()`` is empty scores the documents of a slice, in order, and no others.

    To fix: score the documents at ``sorted(ctx.documents.slice.places(total, ctx.seed))``, and give
    ``documents_total`` in the details.
    """
    if not trial.spec.documents or trial.chosen.ask("whole") != "":
        raise NotApplicable("the plugin scores no slices")
    part = _evaluate(trial, _context(trial, Documents(slice=_SLICE))).results
    for one, other in zip(_first(trial).results, part, strict=True):
        total = one.details.get("documents_total")
        if total != len(one.samples):
            raise PluginError(
                f"task {one.task!r}: documents_total is {total!r}, and there are {len(one.samples)} samples"
            )
        wanted = [one.samples[place].document for place in sorted(_SLICE.places(len(one.samples), 0))]
        found = [sample.document for sample in other.samples]
        if found != wanted:
            raise PluginError(f"task {one.task!r}: a slice has the documents {found}, expected {wanted}")


def _subject(trial: Trial) -> Any:  # Any: a LoadedModel or LoadedEmbedder
    """Load the model or embedder unquantized, once."""

    def make() -> Any:  # Any: see above
        if trial.info.embedder is not None:
            return load_vectors(trial, baseline("bf16_baseline"), trial.info)
        return load_model(trial, baseline("fp32_baseline"), trial.info, trial.cache)

    return trial.once("subject", make)


def _context(trial: Trial, documents: Documents | None = None) -> Context:
    return trial.context(trial.chosen, documents)


def _evaluate(trial: Trial, context: Context) -> _Evaluation:
    """Evaluate as a worker does."""
    from llmquant.running.worker import measure

    specs.check_request(trial, trial.chosen)
    return _Evaluation(list(measure(trial.chosen, replace(_subject(trial)), context)), context.files)


def _first(trial: Trial) -> _Evaluation:
    def make() -> _Evaluation:
        constructed(trial)
        with recorded(trial, _subject(trial)):
            return _evaluate(trial, _context(trial))

    return trial.once("first", make)


def _second(trial: Trial) -> _Evaluation:
    return trial.once("second", lambda: _evaluate(trial, _context(trial)))


def _outline(result: Result) -> tuple[str, Sequence[str], Sequence[str]]:
    return result.task, [m.metric for m in result.measurements], [sample.document for sample in result.samples]


CHECKS = (
    results_are_valid,
    results_are_stored,
    a_seed_repeats_results,
    files_are_its_own,
    the_reference_is_used,
    the_limit_is_kept,
    slices_are_scored,
    nothing_is_left_behind,
)
