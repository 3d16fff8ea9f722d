"""Looks up a study's model names: causal language models, or embedders with their checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from llmquant.errors import ModelError, OptionError, PluginError, UnknownNameError, nearest
from llmquant.models.causal import check_causal
from llmquant.models.folder import folder_digest, read_json
from llmquant.models.hub import read_hub_adapter
from llmquant.models.info import Adapter, ModelInfo, inspect_model, is_path
from llmquant.plugins.registry import Chosen, Registry
from llmquant.storage.cache import Cache
from llmquant.study.call import Call, Json
from llmquant.study.experiment import ModelRequest, ModelUse, PluginKind, digest_of, path_of
from llmquant.study.reading import checked_fields

_ADAPTER_WEIGHTS = "adapter_model.safetensors"
# The checkpoint is identified by its content, and the width of truncated vectors does not affect encoding.
_NOT_ENCODING = ("checkpoint", "dim", "dims")


def inspect_subject(request: ModelRequest, registry: Registry, cache: Cache) -> ModelInfo:
    """Look up a model by name and read its configuration, without loading weights.

    ``bigemma3``, ``bigemma3(checkpoint=./folder, dim=768)`` and the Hub ids that an embedder's spec lists are
    embedders; so is a folder that sentence-transformers saved. Any other name is a causal language model.

    Raises:
        RequestError: if the model is missing or wrong.
    """
    chosen = _embedder(request.source.strip(), registry)
    if chosen is not None:
        return inspect_embedder(chosen, request, cache)
    try:
        info = inspect_model(request, cache)
    except ModelError as error:
        hint = nearest(request.source, registry.names("embedder"))
        if is_path(request.source) or "/" in request.source or not hint.startswith("Did you mean"):
            raise
        raise ModelError(error.message, hint=hint) from error
    check_causal(info)
    return info


def restore_subject(use: ModelUse, registry: Registry, cache: Cache) -> ModelInfo:
    """Inspect a model on the worker, at the commit that was planned on another machine.

    Raises:
        ModelError: if the model has changed since.
    """
    request = ModelRequest(use.source, "trust_remote_code" in use.flags, "allow_pickle" in use.flags)
    if use.embedder is not None:
        info = inspect_embedder(registry.restore("embedder", use.embedder), request, cache)
    elif use.digest.startswith("commit:"):
        pinned = f"{use.source.partition('@')[0]}@{use.digest.removeprefix('commit:')}"
        info = inspect_model(replace(request, source=pinned), cache)
    else:
        info = inspect_model(request, cache)
    if info.digest != use.digest:
        raise ModelError(
            f"{use.source} has changed since the study was planned: its digest is {info.digest}, but was {use.digest}",
            hint="Run the command again to evaluate the model in its present state.",
        )
    return info


def _embedder(source: str, registry: Registry) -> Chosen | None:
    """Return the embedder with a given name; ``None`` for a causal language model."""
    if is_path(source.partition("(")[0]):
        if (path_of(source) / "modules.json").is_file():
            return registry.choose("embedder", Call("llmquant/sentence_transformers", (source,)))
        return None
    try:
        call = Call.parse(source)
    except OptionError:
        return None
    if registry.offers("embedder", call.name):
        return registry.choose("embedder", call)
    kinds: tuple[tuple[PluginKind, str], ...] = (("quantizer", "-q"), ("evaluator", "-e"))
    for kind, option in kinds:
        if registry.offers(kind, call.name):
            raise UnknownNameError(
                f"{source!r} is in the place of a model, and is the name of {'an' if option == '-e' else 'a'} {kind}",
                hint=f"Put {option} before it; in Python, give it in {kind}s.",
            )
    for plugin in registry.plugins:
        if any(fnmatchcase(call.name.partition("@")[0], pattern) for pattern in plugin.spec.checkpoints):
            found = registry.choose("embedder", replace(call, name=plugin.full_name, args=(call.name,)))
            return replace(found, use=replace(found.use, label=source))
    if call.args or call.options:
        names = registry.names("embedder")
        raise UnknownNameError(f"no embedder is called {call.name!r}", hint=nearest(call.name, names))
    return None


def inspect_embedder(chosen: Chosen, request: ModelRequest, cache: Cache) -> ModelInfo:
    """Read the configuration of an embedder's checkpoint, and the properties of the embedder's vectors.

    Args:
        request: supplies the flags; the checkpoint comes from the embedder's options.

    Raises:
        RequestError: if the checkpoint is missing or has another architecture.
    """
    options, use = chosen.options, chosen.use
    info = _inspect_checkpoint(replace(request, source=options.checkpoint), cache)
    embeds = chosen.ask("info", info)
    if embeds is None:
        raise PluginError(f"{use.plugin}: info returned None", hint="Return an EmbedderInfo.")
    embeds = checked_fields(embeds, f"{use.plugin}: info()")
    if not (embeds.modalities and 0 < min(embeds.dims, default=0) <= max(embeds.dims) <= embeds.width):
        raise PluginError(
            f"{use.plugin}: info() has width {embeds.width}, dims {embeds.dims} and modalities {embeds.modalities}",
            hint="Give at least one modality, and dims from 1 to the width; (width,) without Matryoshka training.",
        )
    known: dict[str, Json] = {
        "checkpoint": info.digest,
        "adapter": info.adapter.digest if info.adapter else None,
        "embedder": use.plugin,
        "version": use.version,
        "options": {name: value for name, value in use.options.items() if name not in _NOT_ENCODING},
    }
    # On a worker, the name must mean the present commit, even if a new one is pushed.
    home = info.adapter or info
    pinned = f"{home.repo}@{home.commit}" if home.repo else options.checkpoint
    return replace(
        info,
        source=use.label,
        digest=digest_of({**known, "dim": use.options.get("dim"), "dims": use.options.get("dims")}),
        encoder_digest=digest_of(known),
        flags=request.flags,
        embedder=replace(use, options={**use.options, **({"checkpoint": pinned} if pinned else {})}),
        embeds=embeds,
    )


def _inspect_checkpoint(request: ModelRequest, cache: Cache) -> ModelInfo:
    if not request.source:
        return ModelInfo("", digest_of("no checkpoint"), (), "none")
    try:
        return inspect_model(request, cache)
    except ModelError:
        found = _find_adapter(request.source, cache)
        if found is None:
            raise
    adapter, config = found
    base, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(base, str) or not base:
        raise ModelError(
            f"{request.source} is an adapter without base_model_name_or_path, so its base model is unknown"
        )
    source = f"{base}@{revision}" if revision and not is_path(base) else base
    try:
        info = inspect_model(replace(request, source=source), cache)
    except ModelError as error:
        raise ModelError(f"{request.source} is an adapter for {source}: {error.message}", hint=error.hint) from error
    return replace(info, adapter=adapter)


def _find_adapter(source: str, cache: Cache) -> tuple[Adapter, Mapping[str, Any]] | None:  # Any: a JSON object
    if not is_path(source):
        repo, _, revision = source.partition("@")
        found = read_hub_adapter(repo, revision or None)
        return None if found is None else (Adapter(f"commit:{found[0]}", None, repo, found[0]), found[1])
    folder = path_of(source).absolute()
    if not (folder / "adapter_config.json").is_file():
        return None
    if not (folder / _ADAPTER_WEIGHTS).is_file():
        raise ModelError(f"{source} has an adapter_config.json, but no {_ADAPTER_WEIGHTS}")
    digest = folder_digest(folder, (_ADAPTER_WEIGHTS,), cache.digests)
    return Adapter(digest, folder), read_json(folder / "adapter_config.json")
