"""One quantized model in this process: loaded for a notebook, or written as a checkpoint."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from llmquant.errors import OptionError, RequestError
from llmquant.machine.streams import libraries_to_log
from llmquant.models.info import ModelInfo
from llmquant.planning.hub_rows import refuse_missing_rows
from llmquant.planning.lookup import inspect_subject
from llmquant.planning.resolve import check_choice, check_subject, forms_of, parts_of
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import LoadedModel
from llmquant.plugins.opening import open_executor
from llmquant.plugins.options import input_files
from llmquant.plugins.quantizer import AppliedQuantization, SingleFile
from llmquant.plugins.registry import Chosen, registry
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.storage.atomic import replacing
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, ModelRequest, VectorGrid, path_of
from llmquant.study.plain import plain_arguments
from llmquant.study.run import REFERENCE_FILE, Result
from llmquant.study.study import Model, Plugin

# Endings of files, which a folder must not have.
_FILES = (".gguf", ".safetensors", ".bin", ".pt")


@plain_arguments
@libraries_to_log()
def load(model: Model, quantizer: Plugin = "bf16_baseline", *, device: str = "auto", seed: int = 0) -> LoadedModel:
    """Load a causal language model in this process, quantized.

    What other libraries print on standard error is logged at level INFO, which ``logging.basicConfig(level="INFO")``
    shows.

    Raises:
        RequestError: if the model or the quantizer is wrong.
        RunError: if the quantization fails.
        NotHonouredError: if the loaded model differs from the request.
        PluginError: if the quantizer declares ``row_independent``, but rows change each other.
    """
    from llmquant.loading.row_independence import check_row_independence

    with _checked(model, quantizer, device, seed) as (info, chosen, context):
        _refuse_embedder(info)
        independent = chosen.row_independent and info.row_independent
        loaded = replace(_load(info, chosen, context), row_independent=independent)
        if independent:
            check_row_independence(loaded, chosen.use.label)
        return loaded


@plain_arguments
@libraries_to_log()
def load_embedder(
    model: Model, quantizer: Plugin = "bf16_baseline", *, device: str = "auto", seed: int = 0
) -> LoadedEmbedder:
    """Load an embedder in this process, quantized: ``load_embedder("bigemma3", "bnb_4bit_nf4").encode([...])``.

    Args:
        model: an embedder's name, call or Hub id, for example ``bigemma3``.

    Raises:
        RequestError: if the model or the quantizer is wrong, or the model is not an embedder.
        NotHonouredError: if the loaded model differs from the request.
    """
    from llmquant.loading.embedder import load_embedder as load_it

    with _checked(model, quantizer, device, seed) as (info, chosen, context):
        if info.embedder is None:
            raise RequestError(f"{model} is a causal LM", hint="Use lq.load.")
        forms_of(VectorGrid(), info)
        embedder = registry().construct(registry().restore("embedder", info.embedder))
        loaded = load_it(info, embedder, registry().construct(chosen), chosen.use, chosen.options, context)
        return replace(loaded, row_independent=chosen.row_independent)


@plain_arguments
def evaluate(
    loaded: LoadedModel | LoadedEmbedder,
    evaluator: Plugin,
    *,
    limit: int | None = None,
    seed: int = 0,
    baseline: LoadedModel | LoadedEmbedder | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """Evaluate a loaded model in this process, as a worker would; nothing is stored.

    Args:
        loaded: what `load` or `load_embedder` returned.
        limit: maximum number of documents per task; ``None`` for all.
        baseline: for evaluators that compare with a file of the baseline, such as ``drift``: the model in full
            precision.
        progress: called with (done, total).

    Returns:
        One result per task.

    Raises:
        RequestError: if the evaluator, an option or the limit is wrong, or a baseline is missing.
        PluginError: if a result is not in order.
    """
    from llmquant.running.worker import measure

    for each in (loaded, baseline or loaded):
        if not isinstance(each, LoadedModel | LoadedEmbedder):
            raise RequestError(
                f"{each!r} is not a loaded model", hint="Give what lq.load or lq.load_embedder returned."
            )
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, found {limit}", hint="Leave it out for all documents.")
    chosen = registry().choose("evaluator", Call.of(evaluator))
    spec = chosen.plugin.spec
    if spec.reference and baseline is None:
        raise RequestError(
            f"evaluator {spec.name!r} compares with a baseline",
            hint="Load the unquantized model and give it as baseline.",
        )
    results: list[Result] = []
    documents, cache = Documents(limit if spec.documents else None), Cache.default()
    with open_executor(f"local(device={loaded.device})") as executor, tempfile.TemporaryDirectory() as folder:
        for part in parts_of(registry(), chosen, [loaded.info]):
            check_choice(registry(), part, loaded.info, executor)
            inputs, files = input_files(part.options), Path(tempfile.mkdtemp(dir=folder))
            context = Context(loaded.device, seed, documents, cache, inputs, None, files, progress)
            if baseline is not None and spec.reference:
                list(measure(part, baseline, context))
                context = replace(context, reference=files / REFERENCE_FILE, files=Path(tempfile.mkdtemp(dir=folder)))
            results += measure(part, loaded, context)
    return results


@plain_arguments
def quantize(
    model: Model,
    quantizer: Plugin,
    out: str | Path,
    *,
    device: str = "auto",
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> AppliedQuantization:
    """Write a quantized checkpoint for ``transformers``, with its tokenizer and a model card.

    A ``gguf`` quantizer writes a .gguf file for llama.cpp instead: as `out` if that ends in ``.gguf``, and otherwise
    with a model card in the folder `out`.

    Args:
        out: a new or empty folder, or a new file.
        progress: called by calibrated quantizers with the number of finished layers and of all layers.

    Returns:
        The properties read back from the quantized weights.

    Raises:
        RequestError: if the model, the quantizer or the folder is wrong.
        RunError: if the quantization fails.
        NotHonouredError: if the written checkpoint differs from the request.
    """
    if not str(out).strip():
        raise OptionError("the name to write to is empty", hint="Give a new folder or file. Is a variable empty?")
    target = path_of(out).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RequestError(f"{target} exists and is not empty", hint="Give another name, or delete it first.")
    with _checked(model, quantizer, device, seed) as (info, chosen, context):
        _refuse_embedder(info)
        if hasattr(chosen.options, "check_save"):
            chosen.options.check_save(context.device)
        _require_writable(target.parent)
        shown = replace(context, progress=progress)
        single: SingleFile | None = chosen.ask("single_file")
        if single is None and target.suffix in _FILES:
            raise RequestError(
                f"{chosen.use.label} writes a folder, and {out} is the name of a file",
                hint="Give the name of a folder; the gguf presets write a .gguf file.",
            )
        if single is not None:
            chosen.ask("check_export", info)
            return _export(info, chosen, target, single, shown)
        loaded = _load(info, chosen, shown, to_save=True)
        with replacing(target) as partial:
            _write(loaded, chosen, partial)
    return loaded.applied


def _export(info: ModelInfo, chosen: Chosen, target: Path, single: SingleFile, context: Context) -> AppliedQuantization:
    """Write a single file, with a model card where `target` is a folder."""
    from llmquant.loading.causal_lm import materialize
    from llmquant.loading.strict import check_source
    from llmquant.running.model_card import model_card

    quantizer = registry().construct(chosen)
    quantizer.check_export(materialize(info, context.cache, weights=False), info)
    folder = materialize(info, context.cache)
    check_source(folder, info.source, trust_remote_code=info.trust_remote_code)
    with replacing(target) as partial:
        if target.suffix == single.suffix:
            applied: AppliedQuantization = quantizer.export(folder, info, partial, context)
        else:
            partial.mkdir()
            applied = quantizer.export(folder, info, partial / "file", context)
            name = f"{info.use().name.rpartition('/')[2]}-{applied.code}{single.suffix}"
            file = (partial / "file").rename(partial / name)
            command = f"{single.command} {shlex.quote(name)}"
            card = model_card(info, applied, chosen.use.label, None, file.stat().st_size, command)
            (partial / "README.md").write_text(card, encoding="utf-8")
    return applied


def _require_writable(folder: Path) -> None:
    """Make a folder, and try to write there.

    Raises:
        RequestError: if that fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder).cleanup()
    except OSError as error:
        raise RequestError(
            f"cannot write to {folder}: {error.strerror}", hint="Give another folder, or make this one writable."
        ) from error


def _refuse_embedder(info: ModelInfo) -> None:
    if info.embedder is not None:
        raise RequestError(
            f"{info.source} is an embedder", hint="Embedders are quantized while they are loaded: use lq.load_embedder."
        )


def _load(info: ModelInfo, chosen: Chosen, context: Context, *, to_save: bool = False) -> LoadedModel:
    refuse_missing_rows([chosen], context.cache)
    from llmquant.loading.causal_lm import load_causal_lm, materialize
    from llmquant.loading.quantized import quantized_checkpoint
    from llmquant.loading.small_files import check_small_files

    check_small_files(info, context.cache)
    path = quantized_checkpoint(materialize(info, context.cache), info, chosen, context)
    return load_causal_lm(path, info, registry().construct(chosen), chosen.options, context, to_save=to_save)


def _write(loaded: LoadedModel, chosen: Chosen, folder: Path) -> None:
    """Write the checkpoint that the quantizer made, or else the one that transformers saves."""
    from llmquant.loading.causal_lm import load_tokenizer
    from llmquant.loading.quantized import read_recipe
    from llmquant.running.model_card import model_card

    if chosen.plugin.spec.checkpoint:
        shutil.copytree(loaded.path, folder)
    else:
        loaded.module.save_pretrained(folder)
        said = loaded.path / "generation_config.json"  # the evaluated model leaves most of it out
        if said.exists():
            shutil.copy(said, folder)
        # Not the loaded tokenizer, to which a padding token may have been added.
        load_tokenizer(loaded.path, loaded.info).save_pretrained(folder)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    card = model_card(loaded.info, loaded.applied, chosen.use.label, read_recipe(folder), size)
    (folder / "README.md").write_text(card, encoding="utf-8")


@contextlib.contextmanager
def _checked(model: Model, quantizer: Plugin, device: str, seed: int) -> Iterator[tuple[ModelInfo, Chosen, Context]]:
    """Check a model and a quantizer like a study, and yield them for work in this process."""
    cache = Cache.default()
    info = inspect_subject(ModelRequest.of(model), registry(), cache)
    chosen = registry().choose("quantizer", Call.of(quantizer))
    with open_executor(f"local(device={device})") as executor:
        check_subject(registry(), info, executor)
        check_choice(registry(), chosen, info, executor)
        where = executor.device
    with tempfile.TemporaryDirectory(prefix="llmquant-") as files:
        inputs = input_files(chosen.options)
        yield (
            info,
            chosen,
            Context(where, seed, Documents(), cache, inputs, None, Path(files), lambda done, total: None),
        )
