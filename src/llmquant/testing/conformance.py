"""The contract of every plugin, as functions that raise `PluginError` for a violation.

::

    def test_my_quantizer_conforms(tmp_path):
        (spec,) = llmquant_register()
        check_spec(spec)
        subject = check_quantizer(spec, "sinq_4bit_g64", Path("a/small/checkpoint"), tmp_path)
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pluggy

from llmquant.errors import PluginError
from llmquant.models.info import inspect_model
from llmquant.planning.lookup import inspect_embedder
from llmquant.plugins.context import Context
from llmquant.plugins.discovery import GROUP, Plugin, checked_spec
from llmquant.plugins.evaluator import LoadedModel
from llmquant.plugins.options import dump, required, restore
from llmquant.plugins.registry import Chosen, Registry
from llmquant.plugins.spec import PluginSpec
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.running.checked_results import checked_results
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, ModelRequest, PluginUse
from llmquant.study.run import Result
from llmquant.study.slices import Slice

_HEAVY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gptqmodel",
    "lm_eval",
    "modal",
    "mteb",
    "ray",
    "torch",
    "transformers",
)


_SLICE = Slice(0, 2)
_TEXTS = ("An invoice.", "The weather in the mountains changes quickly, so the pass was closed for two days.")


def check_spec(spec: PluginSpec) -> None:
    """Check a spec, its light half and its presets.

    Every field must have its type, the options must import without a heavy package, and every preset must build and
    stay the same after conversion to JSON and back.

    Raises:
        PluginError: if one of these is violated.
        RequestError: if a preset has an option that does not exist, or a wrong value.
    """
    checked_spec(spec)
    heavy = _heavy_imports(spec.options.split(":")[0])
    if heavy:
        raise PluginError(
            f"{spec.options} imports {', '.join(heavy)}",
            hint="Import them in the target's module; the options are imported to list, check and plan.",
        )
    known = _registry(spec)
    cls = known.options_class(known.plugins[0])
    for name in spec.presets or (() if required(cls) else (spec.name,)):
        _choose(spec, name)


def check_quantizer(spec: PluginSpec, call: str, model: Path, folder: Path) -> LoadedModel:
    """Quantize a small checkpoint on the CPU, and check that the model computes.

    The weights must have the requested properties, the logits must be finite, and the checkpoint must stay unchanged.
    If the quantizer declares ``row_independent``, a text must have the same logits whatever else is in its batch.

    Args:
        call: the quantizer's name or call, for example ``sinq_4bit_g64`` or ``sinq(bits=3)``.
        model: folder of the checkpoint.
        folder: an empty folder for the quantizer's files.

    Returns:
        The loaded model, to check evaluators with.

    Raises:
        PluginError: if the plugin does not conform.
        NotHonouredError: if the loaded model differs from the request.
    """
    import torch

    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.loading.row_independence import check_row_independence

    known, chosen = _choose(spec, call)
    context = _context(folder)
    info = inspect_model(ModelRequest(str(model)), context.cache)
    if hasattr(chosen.options, "check"):
        chosen.options.check(info, "cpu")
    size = chosen.ask("weight_bytes", info, "cpu")
    if size is not None and not size > 0:
        raise PluginError(f"{call}: weight_bytes is {size!r}, but must be above 0")
    before = _contents(model)
    quantizer = known.construct(chosen)
    out = folder / "checkpoint"
    out.mkdir()
    path = quantizer.prepare(model, out, context) if hasattr(quantizer, "prepare") else model
    if spec.checkpoint and path != out:
        raise PluginError(f"{call} declares checkpoint=True, but returned {path}", hint="Return `out`.")
    subject: LoadedModel = load_causal_lm(path, info, quantizer, chosen.options, context)
    if _contents(model) != before:
        raise PluginError(f"{call} changed the original checkpoint", hint="Write to `out` and return it.")
    _json(dataclasses.asdict(subject.applied), f"{call}: the result of applied()")
    ids = subject.tokenizer("The quick brown fox", return_tensors="pt").input_ids
    with torch.inference_mode():
        logits = subject.module(ids).logits
    if not torch.isfinite(logits).all():
        raise PluginError(f"{call} returned logits that are not finite")
    subject = dataclasses.replace(subject, row_independent=chosen.row_independent and info.row_independent)
    if subject.row_independent:
        check_row_independence(subject, call)
    return subject


def check_evaluator(spec: PluginSpec, call: str, subject: LoadedModel, folder: Path) -> list[Result]:
    """Evaluate a loaded model twice, and check the results.

    A worker must accept the results (`checked_results`); weights, model and process must stay unchanged
    (`llmquant.running.guard`); and, unless the results depend on the machine, both evaluations must give equal results
    on equal samples. An evaluator that can score slices of its documents must score those of a slice, and no others.

    Args:
        call: the evaluator's name or call.
        subject: a loaded model, for example from `check_quantizer`.
        folder: an empty folder for the evaluator's files.

    Returns:
        The results of the first evaluation.

    Raises:
        PluginError: if the plugin does not conform.
    """
    from llmquant.running.guard import Snapshot

    known, chosen = _choose(spec, call)
    if hasattr(chosen.options, "check"):
        chosen.options.check(subject.info, subject.device)
    context = _context(folder)
    evaluators = known.construct(chosen), known.construct(chosen)
    before = Snapshot.take(subject)
    first, second = (list(checked_results(evaluator.evaluate(subject, context), call)) for evaluator in evaluators)
    changed = [change.what for change in before.undo()]
    if changed:
        raise PluginError(f"{call} changed {' and '.join(changed)}", hint="Restore every change.")
    if not spec.hardware:
        _check_equal(first, second, call)
    if spec.documents and chosen.ask("whole") == "":
        sliced = dataclasses.replace(context, documents=Documents(slice=_SLICE))
        _check_slice(first, list(known.construct(chosen).evaluate(subject, sliced)), call)
    return first


def check_embedder(spec: PluginSpec, call: str, folder: Path) -> LoadedEmbedder:
    """Open an embedder in bfloat16 and encode texts alone and together.

    Width, kind and length of the vectors must be as declared, and a text must have the same vectors in every batch, to
    1e-2 because of bfloat16 rounding.

    Args:
        call: the embedder's name or call, for example ``mine(./checkpoint)``.
        folder: an empty folder for the cache.

    Returns:
        The loaded embedder, to check evaluators with.

    Raises:
        PluginError: if the plugin does not conform.
        SanityError: if its vectors are not finite, of wrong length, or all the same.
    """
    import numpy as np

    from llmquant.loading.embedder import load_embedder
    from llmquant.quantizers.baseline.options import BaselineOptions
    from llmquant.quantizers.baseline.quantizer import Baseline

    known, chosen = _choose(spec, call)
    context, options = _context(folder), BaselineOptions()
    info = inspect_embedder(chosen, ModelRequest(call), context.cache)
    if hasattr(chosen.options, "check"):
        chosen.options.check(info, "cpu")
    use = PluginUse("llmquant/baseline", "1", vars(options), "bf16_baseline")
    subject = load_embedder(info, known.construct(chosen), Baseline(options), use, options, context)
    if "text" in subject.embeds.modalities:
        prepared = [subject.opened.prepare(text, None, "document") for text in _TEXTS]
        together = subject.opened.embed(prepared, "document")
        for text, item, vectors in zip(_TEXTS, prepared, together, strict=True):
            (alone,) = subject.opened.embed([item], "document")
            if np.shape(vectors) != np.shape(alone):
                raise PluginError(f"{call}: {text!r} has other vectors in a batch: {vectors.shape}, not {alone.shape}")
            if not np.allclose(vectors, alone, atol=1e-2):
                raise PluginError(f"{call}: {text!r} has other vectors in a batch", hint="Is the padding masked?")
            if subject.embeds.similarity == "maxsim" and np.ndim(vectors) != 2:
                raise PluginError(f"{call} declares maxsim, but returned one vector per item")
    return subject


def _heavy_imports(module: str) -> list[str]:
    code = f"import sys, {module}; print(' '.join(name for name in {_HEAVY!r} if name in sys.modules))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PluginError(f"{module} cannot be imported: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split()


def _registry(spec: PluginSpec) -> Registry:
    return Registry([Plugin(spec, "checked", "0")], [], pluggy.PluginManager(GROUP))


def _choose(spec: PluginSpec, text: str) -> tuple[Registry, Chosen]:
    """Build options like the command line, and convert them to JSON and back."""
    known = _registry(spec)
    chosen = known.choose(spec.kind, Call.parse(text))
    sent = _json(dump(chosen.options), f"{text}: the options")
    if restore(type(chosen.options), sent) != chosen.options:
        raise PluginError(f"{text}: options differ after JSON, {sent}", hint="Do not change fields in __post_init__.")
    return known, chosen


def _context(folder: Path) -> Context:
    files = folder / "files"
    files.mkdir(parents=True, exist_ok=True)
    return Context("cpu", 0, Documents(), Cache(folder / "cache"), {}, None, files, lambda done, total: None)


def _contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def _json(value: Any, what: str) -> Any:  # Any: a JSON value
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginError(f"{what} cannot be written as JSON: {error}") from error


def _check_equal(first: Sequence[Result], second: Sequence[Result], call: str) -> None:
    if [_outline(result) for result in first] != [_outline(result) for result in second]:
        raise PluginError(f"{call}: the second evaluation has different results or samples", hint="Draw from ctx.seed.")
    for one, other in zip(first, second, strict=True):
        for a, b in zip(one.measurements, other.measurements, strict=True):
            both_nan = math.isnan(a.value) and math.isnan(b.value)
            if not (both_nan or math.isclose(a.value, b.value, rel_tol=1e-6)):
                raise PluginError(
                    f"{call}, task {one.task!r}: {a.metric} was {a.value} first and {b.value} the second time",
                    hint="Draw from ctx.seed, or declare hardware=True if the numbers depend on the machine.",
                )


def _check_slice(whole: Sequence[Result], part: Sequence[Result], call: str) -> None:
    for one, other in zip(whole, part, strict=True):
        total = one.details.get("documents_total")
        if total != len(one.samples):
            raise PluginError(
                f"{call}, task {one.task!r}: documents_total is {total!r}, but there are {len(one.samples)} samples",
                hint="Give the number of documents in the whole task.",
            )
        wanted = [one.samples[place].document for place in sorted(_SLICE.places(len(one.samples), 0))]
        found = [sample.document for sample in other.samples]
        if found != wanted:
            raise PluginError(
                f"{call}, task {one.task!r}: a slice has the documents {found}, expected {wanted}",
                hint="Score the documents at sorted(ctx.documents.slice.places(total, ctx.seed)).",
            )


def _outline(result: Result) -> tuple[str, list[str], list[str]]:
    return result.task, [m.metric for m in result.measurements], [sample.document for sample in result.samples]
