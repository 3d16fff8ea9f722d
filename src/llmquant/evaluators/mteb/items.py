"""Turn mteb's data sets into items: texts in the form that mteb passes to a model, images as their stored bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

import datasets
from mteb._create_dataloaders import _retrieval_texts
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType

from llmquant.errors import UnsupportedError
from llmquant.retrieval.items import Item

_ENCODED = ("text", "image")


class Rows(Sequence[Item]):
    """A corpus, or queries; each item is read on access, so that all pages are never in memory together.

    Args:
        data: rows with the column ``id`` and one column per modality.
        metadata: metadata of the task, which determines the columns to encode.

    Raises:
        UnsupportedError: for sound and video.
    """

    def __init__(self, data: datasets.Dataset, metadata: TaskMetadata, side: PromptType) -> None:
        modalities = [str(modality) for modality in metadata.get_modalities(side)]
        if not set(modalities) <= set(_ENCODED):
            raise UnsupportedError(f"mteb: task {metadata.name!r} holds {' and '.join(modalities)}")
        self.ids: list[str] = list(data["id"])
        self._texts: list[str] | None = None
        self._images: datasets.Dataset | None = None
        if "text" in modalities:
            # Titles, instructions and conversations are merged into one text; keeping images here would copy them.
            pictures = [name for name in data.column_names if name == "image"]
            self._texts = _retrieval_texts(data.remove_columns(pictures), side)
        if "image" in modalities:
            self._images = _undecoded(data.select_columns(["image"]))

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        """Read an item."""
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        text = None if self._texts is None else self._texts[index]
        image = None if self._images is None else _stored(self._images[int(index)]["image"])
        return _item(text, image, self.ids[index])


def batched_items(batches: Any) -> list[Item]:  # Any: mteb's DataLoader
    """Read mteb's input of an encoder: batches of texts, images, or both."""
    data = getattr(batches, "dataset", None)
    if isinstance(data, datasets.Dataset) and "image" in data.column_names:
        data = _undecoded(data)
        columns = [name for name in _ENCODED if name in data.column_names]
        return [
            _item(row.get("text"), _stored(row["image"]), f"item {number}")
            for number, row in enumerate(data.select_columns(columns))
        ]
    return [Item(text, image, f"item {number}") for number, (text, image) in enumerate(_pairs(batches))]


def _item(text: str | None, image: bytes | None, name: str) -> Item:
    """Make an item; of one that may have both, the text or the image may be missing."""
    if text is not None and image is not None:
        text, image = text if text.strip() else None, image or None
    return Item(text, image, name)


def _pairs(batches: Iterable[dict[str, Any]]) -> Iterator[tuple[str | None, bytes | None]]:  # Any: mteb's batches
    for batch in batches:
        texts, images = batch.get("text"), batch.get("image")
        for number in range(len(texts if texts is not None else images or ())):
            yield texts[number] if texts is not None else None, _encoded(images[number]) if images else None


def _undecoded(data: datasets.Dataset) -> datasets.Dataset:
    """Keep images in their stored form: hashing bytes takes a hundredth of the time of decoding them."""
    if not isinstance(data.features["image"], datasets.Image):
        return data
    return data.cast_column("image", datasets.Image(decode=False))


def _stored(image: Any) -> bytes:  # Any: as mteb's data sets hold it
    """Return an image's bytes; for a missing image no bytes, so that the item is recorded as not encoded."""
    if image is None:
        return b""
    if not isinstance(image, dict):
        return _encoded(image)
    if image["bytes"] is not None:
        data: bytes = image["bytes"]
        return data
    try:
        return Path(image["path"]).read_bytes()
    except OSError:
        return b""


def _encoded(image: Any) -> bytes:  # Any: a PIL image
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
