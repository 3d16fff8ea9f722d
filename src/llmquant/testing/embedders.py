"""Checks of embedders, on a tiny checkpoint on the CPU, in bfloat16."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import PluginError
from llmquant.models.info import ModelInfo
from llmquant.planning.lookup import inspect_embedder
from llmquant.study.embedding import EmbedderInfo
from llmquant.study.experiment import ModelRequest
from llmquant.testing.loaded import baseline, load_vectors
from llmquant.testing.traces import load_recorded, refuse_changes
from llmquant.testing.trial import NotApplicable, Trial, contents

if TYPE_CHECKING:
    from llmquant.plugins.embedder import Prepared
    from llmquant.retrieval.loaded import LoadedEmbedder

_TEXTS = (
    "An invoice.",
    "The weather in the mountains changes quickly, so the pass was closed for two days.",
    "The ledger of the lighthouse names every ship.",
)
_ROUNDING = 1e-2  # of bfloat16, in a vector of unit length


def info_describes_vectors(trial: Trial) -> None:
    """`info` describes width, modalities and similarity from the configuration alone.

    To fix: read ``model.config`` in ``info(model)``, and return an `EmbedderInfo`.
    """
    embeds = _info(trial).embeds
    if not isinstance(embeds, EmbedderInfo):
        raise PluginError(f"info returned {type(embeds).__name__}, not EmbedderInfo")


def opens_as_declared(trial: Trial) -> None:
    """The embedder opens, and its vectors are finite, differ, and have the declared width, length and kind.

    To fix: return ``(width,)`` per item, or ``(vectors, width)`` with late interaction, of unit length.
    """
    import numpy as np

    for text, vectors in zip(_texts(trial), _embedded(trial), strict=True):
        late = _subject(trial).embeds.similarity == "maxsim"
        if not isinstance(vectors, np.ndarray) or vectors.ndim != 1 + late:
            found = getattr(vectors, "shape", type(vectors).__name__)
            raise PluginError(f"{text!r}: expected an array of {1 + late} dimensions, found {found}")


def batches_do_not_matter(trial: Trial) -> None:
    """A text has the same vectors alone and in a batch.

    To fix: mask the padding in attention and pooling.
    """
    import numpy as np

    opened = _subject(trial).opened
    for text, vectors in zip(_texts(trial), _embedded(trial), strict=True):
        (alone,) = opened.embed([opened.prepare(text, None, "document")], "document")
        if np.shape(vectors) != np.shape(alone) or not np.allclose(vectors, alone, atol=_ROUNDING):
            raise PluginError(f"{text!r} has other vectors in a batch")


def preparing_works_in_threads(trial: Trial) -> None:
    """`prepare` gives the same inputs when several threads call it at once.

    To fix: keep no state between calls of ``prepare``, or use a lock.
    """
    import numpy as np

    opened, texts = _subject(trial).opened, _texts(trial) * 8

    def prepare(text: str) -> Prepared:
        return opened.prepare(text, None, "document")

    with ThreadPoolExecutor(4) as pool:
        prepared = list(pool.map(prepare, texts))
    for text, item, vectors in zip(texts, prepared, _embedded(trial) * 8, strict=True):
        (found,) = opened.embed([item], "document")
        if np.shape(vectors) != np.shape(found) or not np.allclose(vectors, found, atol=_ROUNDING):
            raise PluginError(f"{text!r} has other vectors when it is prepared in a thread")


def items_are_encoded(trial: Trial) -> None:
    """Texts are encoded as queries and as documents, and images if the embedder takes images.

    To fix: accept ``text=None`` for an image alone, and every `Role`.
    """
    from llmquant.retrieval.items import Item

    subject = _subject(trial)
    for role in ("query", "document"):
        if "text" in subject.embeds.modalities:
            subject.encode(_TEXTS, role)
    if "image" in subject.embeds.modalities:
        subject.encode([Item(image=_page(color)) for color in ("red", "white")])


def opening_repeats(trial: Trial) -> None:
    """Opening the embedder again gives the same vectors.

    To fix: seed every random choice with ``ctx.seed``.
    """
    import numpy as np

    again = load_vectors(trial, baseline("bf16_baseline"), _info(trial))
    for one, other in zip(_embedded(trial), _embed(again, _texts(trial)), strict=True):
        if not np.array_equal(one, other):
            raise PluginError("the vectors differ after it was opened again")


def original_is_unchanged(trial: Trial) -> None:
    """Opening does not change the checkpoint.

    To fix: write only to ``ctx.files`` or the cache.
    """
    path = _info(trial).location
    if path is None or not Path(path).is_dir():
        raise NotApplicable("there is no local checkpoint")
    before = contents(path)
    load_vectors(trial, baseline("bf16_baseline"), _info(trial))
    if contents(path) != before:
        raise PluginError(f"it changed files in {path}")


def nothing_is_left_behind(trial: Trial) -> None:
    """Opening and embedding change no setting of the process, and leave no thread or process.

    To fix: restore every change, for example with ``try`` and ``finally``.
    """
    refuse_changes(trial)


def _page(color: str) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 48), color).save(buffer, "PNG")
    return buffer.getvalue()


def _info(trial: Trial) -> ModelInfo:
    return trial.once(
        "info of the embedder", lambda: inspect_embedder(trial.chosen, ModelRequest(trial.call), trial.cache)
    )


def _subject(trial: Trial) -> LoadedEmbedder:
    def make() -> LoadedEmbedder:
        info = _info(trial)

        def load() -> LoadedEmbedder:
            opened = load_vectors(trial, baseline("bf16_baseline"), info)
            if "text" in opened.embeds.modalities:
                _embed(opened, _TEXTS)
            return opened

        subject: LoadedEmbedder = load_recorded(trial, load, info)
        return subject

    return trial.once("subject", make)


def _texts(trial: Trial) -> tuple[str, ...]:
    if "text" not in _subject(trial).embeds.modalities:
        raise NotApplicable("the embedder takes no texts")
    return _TEXTS


def _embed(subject: LoadedEmbedder, texts: tuple[str, ...]) -> list[Any]:  # Any: arrays
    prepared = [subject.opened.prepare(text, None, "document") for text in texts]
    return list(subject.opened.embed(prepared, "document"))


def _embedded(trial: Trial) -> list[Any]:  # Any: arrays
    return trial.once("vectors", lambda: _embed(_subject(trial), _texts(trial)))


CHECKS = (
    info_describes_vectors,
    opens_as_declared,
    batches_do_not_matter,
    preparing_works_in_threads,
    items_are_encoded,
    opening_repeats,
    original_is_unchanged,
    nothing_is_left_behind,
)
