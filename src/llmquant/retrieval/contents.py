"""Find the contents that must be encoded, every content once, and items that cannot be encoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from llmquant.errors import ItemError
from llmquant.retrieval.items import Item
from llmquant.study.embedding import EmbedderInfo, Role


@dataclass(frozen=True)
class Contents:
    """The different contents of items; one row per content.

    Attributes:
        keys: row by `Item.key`, in the order of the rows.
        sources: per row, the first item with this content, and the part of that item.
        items: rows per item that has no known fault: two rows if text and image are fused.
        skipped: the faults of all other items, by index.
    """

    keys: Mapping[bytes, int]
    sources: Sequence[tuple[int, int]]
    items: Mapping[int, tuple[int, ...]]
    skipped: Mapping[int, str]


def contents_of(items: Sequence[Item], role: Role, embeds: EmbedderInfo, *, strict: bool) -> Contents:
    """Hash all items without decoding them.

    Args:
        strict: raise at the first item that cannot be encoded, instead of skipping it.
    """
    keys: dict[bytes, int] = {}
    sources: list[tuple[int, int]] = []
    rows: dict[int, tuple[int, ...]] = {}
    skipped: dict[int, str] = {}
    for index in range(len(items)):
        item = items[index]
        try:
            parts = parts_of(item, name_of(item, index, role), embeds)
        except ItemError as error:
            if strict:
                raise
            skipped[index] = str(error)
            continue
        found = []
        for part, content in enumerate(parts):
            row = keys.setdefault(content.key, len(keys))
            if row == len(sources):
                sources.append((index, part))
            found.append(row)
        rows[index] = tuple(found)
    return Contents(keys, sources, rows, skipped)


def name_of(item: Item, index: int, role: Role) -> str:
    """Name an item for messages."""
    return item.name or f"{role} {index}"


def parts_of(item: Item, name: str, embeds: EmbedderInfo) -> tuple[Item, ...]:
    """Return the parts of an item to encode: the item itself, or its text and its image if both are fused afterwards.

    Raises:
        ItemError: if its text is empty or not Unicode, or if the embedder does not encode its kind of content.
    """
    if item.text is None and item.image is None:
        raise ItemError(f"{name} has neither a text nor an image")
    if item.text is not None and not item.text.strip():
        raise ItemError(f"{name} has an empty text: {item.text[:20]!r}", hint="Use the text None for an image alone.")
    for kind, has in (("text", item.text is not None), ("image", item.image is not None)):
        if has and kind not in embeds.modalities:
            raise ItemError(f"{name} has {kind}, and this embedder encodes {' and '.join(embeds.modalities)} only")
    try:
        (item.text or "").encode()
    except UnicodeEncodeError as error:
        raise ItemError(f"{name} has a text that is not Unicode: {error}") from error
    if embeds.fusion == "joint" or item.text is None or item.image is None:
        return (item,)
    return Item(text=item.text, name=name), Item(image=item.image, name=name)
