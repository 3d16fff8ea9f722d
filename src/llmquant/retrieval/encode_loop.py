"""The loop that keeps the device busy with full batches, while threads decode and prepare the next items."""

from __future__ import annotations

import gc
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray

from llmquant.errors import ItemError, PluginError, SanityError
from llmquant.loading.memory import is_out_of_memory
from llmquant.plugins.embedder import OpenEmbedder, Prepared
from llmquant.retrieval.items import Item
from llmquant.study.embedding import Role
from llmquant.study.job import Device
from llmquant.study.reading import brief

if TYPE_CHECKING:
    from PIL.Image import Image

    from llmquant.retrieval.loaded import LoadedEmbedder

# Default tokens per batch, padding included. On one CPU core batches of 512 to 2048 took all-MiniLM-L6 two thirds of
# the time of single items, and batches of 8192 took as long as single items; a vision tower took the same time at any
# size. The values for other devices are not measured; a batch that does not fit is halved.
BATCH_TOKENS: dict[Device, int] = {"cpu": 1024, "mps": 4096, "cuda": 16384}
# Number of batches that are prepared before their items are sorted by size, so that batches need little padding.
_WINDOW = 4
# Maximum pages that are prepared together: the pixels of a page take 10 MB and more, however few its tokens are.
_WINDOW_PAGES = 64
_MOST_WORKERS = 16
# Vectors of half precision have a length within 1e-3 of 1.
_UNIT = 1e-2


@dataclass(frozen=True)
class Task:
    """One content to encode.

    Attributes:
        row: the caller's row of the content.
        item: the item to encode, with its name set.
    """

    row: int
    item: Item


def encode_each(
    subject: LoadedEmbedder, tasks: Iterable[Task], role: Role, *, dtype: DTypeLike
) -> Generator[tuple[Task, NDArray[Any] | ItemError]]:  # Any: `dtype`
    """Yield the vectors or the fault of each task, in any order.

    At most two windows of a few batches are held. The first batch of a window has its largest items, so an item that
    does not fit shows at once. When memory runs out, this batch and the following ones are halved.

    Raises:
        ItemError: if an item does not fit in memory on its own.
        SanityError: if a vector is not finite.
        PluginError: if the embedder breaks its contract.
    """
    limit = (subject.batch_tokens or BATCH_TOKENS[subject.device]) if subject.row_independent else 1
    workers = _workers(subject.device)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="prepare")
    try:
        for window in _windows(subject.opened, tasks, role, pool, workers, _WINDOW * limit):
            ready = []
            for task, prepared in window:
                if isinstance(prepared, ItemError):
                    yield task, prepared
                else:
                    ready.append((task, prepared))
            ready.sort(key=lambda pair: -pair[1].tokens)
            while ready:
                tokens = max(1, ready[0][1].tokens)
                batch = ready[: max(1, limit // tokens)]
                vectors = _embed(subject.opened, batch, role)
                if vectors is None:
                    limit = len(batch) * tokens // 2
                    gc.collect()
                    torch.cuda.empty_cache()  # does nothing before CUDA is used
                    continue
                del ready[: len(batch)]
                for (task, _), vector in zip(batch, vectors, strict=True):
                    yield task, _checked(vector, task.item.name, subject, np.dtype(dtype))
    finally:
        pool.shutdown(cancel_futures=True)


def _workers(device: Device) -> int:
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # On a CPU the model computes on the same cores.
    return max(1, min(_MOST_WORKERS, available - (torch.get_num_threads() if device == "cpu" else 0)))


def _windows(
    opened: OpenEmbedder, tasks: Iterable[Task], role: Role, pool: ThreadPoolExecutor, workers: int, tokens: int
) -> Iterator[list[tuple[Task, Prepared | ItemError]]]:
    """Yield tasks in order, in groups of at least `tokens` tokens, while threads prepare the next group."""
    source = iter(tasks)
    waiting: deque[tuple[Task, Future[Prepared | ItemError]]] = deque()
    ahead = 2 * workers
    while True:
        window: list[tuple[Task, Prepared | ItemError]] = []
        held = 0
        while held < tokens:
            for task in islice(source, max(0, ahead - len(waiting))):
                waiting.append((task, pool.submit(_prepare, opened, task.item, role)))
            if not waiting:
                break
            task, future = waiting.popleft()
            prepared = future.result()
            window.append((task, prepared))
            least = 1 if task.item.image is None else -(-tokens // _WINDOW_PAGES)
            held += max(least, prepared.tokens if isinstance(prepared, Prepared) else 0)
        if not window:
            return
        ahead = max(2 * workers, len(window))
        yield window


def _prepare(opened: OpenEmbedder, item: Item, role: Role) -> Prepared | ItemError:
    try:
        image = None
        if item.image is not None:
            from llmquant.retrieval.images import decode  # texts are encoded without Pillow too

            image = decode(item.image, item.name)
        return prepared_item(opened, item.text, image, role)
    except ItemError as error:
        return error
    except ValueError as error:  # processors raise it for images of extreme shape, and tokenizers for unusual text
        problem = ItemError(f"{item.name} cannot be prepared for this model: {error}")
        problem.__cause__ = error
        return problem


def prepared_item(opened: OpenEmbedder, text: str | None, image: Image | None, role: Role) -> Prepared:
    """Prepare an item.

    Raises:
        PluginError: if an embedder returns something else.
    """
    found: Any = opened.prepare(text, image, role)  # Any: what a third party returned
    if not isinstance(found, Prepared):
        raise PluginError(f"prepare returned {brief(found)} ({type(found).__name__})", hint="Return a Prepared.")
    return found


def _embed(
    opened: OpenEmbedder, batch: Sequence[tuple[Task, Prepared]], role: Role
) -> Sequence[NDArray[np.float32]] | None:
    """Encode a batch; return ``None`` and hold no memory of the attempt if memory ran out."""
    try:
        vectors = opened.embed([prepared for _, prepared in batch], role)
    except Exception as error:  # a plugin's model may raise anything; only memory errors are handled here
        if not is_out_of_memory(error):
            raise
        if len(batch) > 1:
            return None
        ((task, prepared),) = batch
        raise ItemError(
            f"{task.item.name} does not fit in memory on its own: {prepared.tokens} tokens",
            hint="Use a device with more memory, a quantized model, or smaller pages.",
        ) from error
    return one_per_item(vectors, len(batch))


def one_per_item(
    vectors: Any,  # Any: what a third party returned
    count: int,
) -> Sequence[NDArray[np.float32]]:
    """Check that an embedder returned an array per item of a batch.

    Raises:
        PluginError: if it did not.
    """
    if not isinstance(vectors, Sequence | np.ndarray):
        raise PluginError(f"embed returned {brief(vectors)} for a batch of {count}", hint="Return an array per item.")
    if len(vectors) != count:
        raise PluginError(f"embed returned {len(vectors)} results for a batch of {count}")
    for vector in vectors:
        if not isinstance(vector, np.ndarray):
            raise PluginError(f"embed returned {type(vector).__name__} for an item", hint="Return numpy arrays.")
    return list(vectors)


def _checked(
    vector: NDArray[np.float32], name: str, subject: LoadedEmbedder, dtype: np.dtype[Any]
) -> NDArray[Any]:  # Any: `dtype`
    embeds = subject.embeds
    late = embeds.similarity == "maxsim"
    expected = f"(vectors, {embeds.width})" if late else f"({embeds.width},)"
    if vector.ndim != 1 + late or vector.shape[-1] != embeds.width or not len(vector):
        raise PluginError(f"embed returned the shape {vector.shape} for {name}, not {expected}")
    with np.errstate(over="ignore"):
        kept = vector.astype(dtype)
    if not np.isfinite(kept).all():
        bad = int((~np.isfinite(kept)).sum())
        raise SanityError(
            f"the vector of {name} is not finite: {bad} of its {kept.size} numbers",
            hint="The weights are damaged, or the compute dtype overflows. If it is float16, try bfloat16.",
        )
    if embeds.similarity != "dot":
        lengths = np.linalg.norm(vector.astype(np.float32), axis=-1)
        if np.abs(lengths - 1).max() > _UNIT:
            worst = float(np.atleast_1d(lengths)[np.abs(np.atleast_1d(lengths) - 1).argmax()])
            raise PluginError(f"embed returned a vector of length {worst:.3g} for {name}, not 1")
    return kept
