"""Load an embedder, quantized, and check that it is the requested one and distinguishes texts."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from llmquant.errors import PluginError, SanityError, UnsupportedError, foreign
from llmquant.loading.causal_lm import keywords_of, make_ready, materialize, read_back
from llmquant.loading.memory import held_bytes, peak_memory, touch_weights
from llmquant.loading.strict import warm_imports
from llmquant.machine.packages import PREPROCESSING, installed_version
from llmquant.models.hub import download
from llmquant.plugins.evaluator import LoadStats
from llmquant.plugins.field_types import class_path
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.retrieval.encode_loop import one_per_item, prepared_item
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.study.experiment import VectorForm, digest_of

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context
    from llmquant.plugins.embedder import Embedder
    from llmquant.plugins.quantizer import Quantizer
    from llmquant.storage.cache import Cache
    from llmquant.study.experiment import PluginUse

_TEXTS = ("The weather in the mountains changes quickly.", "Invoices are due thirty days after delivery.")
_UNIT = 1e-2


def materialize_embedder(info: ModelInfo, embedder: Any, cache: Cache) -> Path | None:  # Any: Embedder, perhaps `merge`
    """Return the local folder to open, with an adapter merged in once; ``None`` for an embedder without a checkpoint.

    Raises:
        ModelError: if the checkpoint cannot be downloaded.
        UnsupportedError: if the embedder does not support adapters.
    """
    if info.kind == "none":
        return None
    path = materialize(info, cache, modules=True)
    adapter = info.adapter
    if adapter is None:
        return path
    if not hasattr(embedder, "merge"):
        raise UnsupportedError(f"{info.source} is an adapter, which this embedder cannot open")
    if adapter.location is not None:
        folder = adapter.location
    else:
        folder = download(str(adapter.repo), str(adapter.commit), ("adapter_model.safetensors",), code=False)
    key = {"encoder": info.encoder_digest}
    return cache.get("merged", key, lambda out: embedder.merge(path, folder, out), name=info.use().name)


def load_embedder(
    info: ModelInfo,
    embedder: Embedder[Any],  # Any: its options are the plugin's own
    quantizer: Quantizer[Any],  # Any: see `options`
    quantizer_use: PluginUse,
    options: Any,  # Any: plugins bring their own dataclasses
    ctx: Context,
) -> LoadedEmbedder:
    """Open an embedder, quantized, on the context's device.

    Args:
        quantizer_use: the quantizer as recorded in identities.
        options: the quantizer's options; every value of their ``requests()`` must be found in the weights.

    Raises:
        ModelError: if the embedder cannot be loaded, or weights are missing.
        NotHonouredError: if the loaded weights are not what the options request.
        SanityError: if its vectors are not finite, not of unit length where they should be, or all the same.
    """
    if info.embeds is None:
        raise UnsupportedError(f"{info.source} is not an embedder")
    path = materialize_embedder(info, embedder, ctx.cache)
    if path is not None:
        warm_imports(transformers.AutoModel, path)
    before = held_bytes(ctx.device)
    keywords = keywords_of(quantizer, info, ctx)
    with peak_memory(ctx.device) as peak:
        started = time.perf_counter()
        with foreign(f"{class_path(type(embedder))}: open failed"):
            opened = embedder.open(path or ctx.files, info, keywords, ctx)
            lacks = [name for name in ("module", "prepare", "embed") if not hasattr(opened, name)]
        found = f"{class_path(type(embedder))}: open returned {type(opened).__name__}, which has no"
        if lacks:
            raise PluginError(f"{found} {' and no '.join(lacks)}")
        if not isinstance(opened.module, torch.nn.Module):
            raise PluginError(f"{found} torch.nn.Module as module, but {type(opened.module).__name__}")
        if ctx.device == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        make_ready(opened.module, quantizer)
        touch_weights(opened.module)
    if next(opened.module.parameters(), None) is None:
        applied = _NO_WEIGHTS
    else:
        applied = read_back(opened.module, quantizer, options)
    fingerprint = digest_of(
        {
            "encoder": info.encoder_digest,
            "quantizer": quantizer_use.identity(),
            "computes_in": applied.compute_dtype,
            "preprocessing": {name: installed_version(name) for name in {*PREPROCESSING, *_library(opened.module)}},
        }
    )
    loaded = LoadedEmbedder(
        opened,
        info.embeds,
        VectorForm(dim=info.embeds.dim),
        fingerprint,
        info,
        applied,
        path,
        ctx.device,
        LoadStats(seconds, peak.bytes, before_bytes=before),
        ctx.cache,
    )
    _check_sane(loaded)
    return loaded


def _library(module: torch.nn.Module) -> list[str]:
    """Name the package whose class holds the weights, such as sentence-transformers, with its pooling and prompts."""
    name = type(module).__module__.partition(".")[0].replace("_", "-")
    return [] if name in ("llmquant", "torch") or installed_version(name) is None else [name]


# The description of an embedder without weights.
_NO_WEIGHTS = AppliedQuantization(
    method="none",
    code="none",
    bits=0.0,
    compute_dtype="none",
    dtypes={},
    layers_quantized=0,
    note="it has no weights",
)


def _check_sane(loaded: LoadedEmbedder) -> None:
    """Encode two texts without the cache, and compare their vectors."""
    embeds, name = loaded.embeds, f"{loaded.info.source} as {loaded.applied.code}"
    if "text" not in embeds.modalities:
        return
    queries = [prepared_item(loaded.opened, text, None, "query") for text in _TEXTS]
    both = one_per_item(loaded.opened.embed(queries, "query"), len(queries))
    first, second = (np.atleast_2d(vectors) for vectors in both)
    for vectors in (first, second):
        if vectors.shape[1] != embeds.width:
            raise SanityError(f"{name} returns vectors of width {vectors.shape[1]}, but declares {embeds.width}")
        if not np.isfinite(vectors).all():
            raise SanityError(
                f"{1 - np.isfinite(vectors).mean():.0%} of the numbers of {name} are not finite",
                hint="float16 overflows in some models trained in bfloat16. Try bfloat16.",
            )
        lengths = np.linalg.norm(vectors, axis=1)
        if embeds.similarity != "dot" and abs(lengths - 1).max() > _UNIT:
            raise SanityError(f"{name} returns vectors of length {lengths.max():.3f}, but {embeds.similarity} needs 1")
    if first.shape == second.shape and np.array_equal(first, second):
        raise SanityError(f"{name} returns the same vectors for different texts")
