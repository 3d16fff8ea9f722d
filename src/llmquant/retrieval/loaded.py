"""An embedding model on its device, with the cache of its vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from llmquant.errors import ItemError
from llmquant.plugins.embedder import OpenEmbedder
from llmquant.plugins.evaluator import LoadStats
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.retrieval.items import Item
from llmquant.retrieval.vectors import Embeddings
from llmquant.study.embedding import EmbedderInfo, Role
from llmquant.study.experiment import Digest, VectorForm
from llmquant.study.job import Device

if TYPE_CHECKING:
    import torch

    from llmquant.models.info import ModelInfo
    from llmquant.storage.cache import Cache


@dataclass(frozen=True)
class LoadedEmbedder:
    """An embedding model, ready to encode and to be measured.

    Attributes:
        opened: the model itself.
        embeds: description of its vectors.
        vectors: how its vectors are stored and searched.
        fingerprint: digest of the weights, the quantizer, the prompts, the preprocessing and the pooling, which
            identifies cached vectors.
        info: the model before it was loaded.
        applied: what the quantizer read back.
        device: where the module is.
        cache: cache of vectors.
        batch_tokens: maximum tokens per batch; ``None`` chooses by the device.
        path: the folder of its weights; ``None`` for an embedder without weights.
        load: the cost of loading.
        row_independent: whether a vector is independent of the rest of its batch; if not, each item is encoded alone.
    """

    opened: OpenEmbedder = field(repr=False)
    embeds: EmbedderInfo
    vectors: VectorForm
    fingerprint: Digest
    info: ModelInfo
    applied: AppliedQuantization
    path: Path | None
    device: Device
    load: LoadStats
    cache: Cache = field(repr=False)
    batch_tokens: int | None = None
    row_independent: bool = True

    def __repr__(self) -> str:
        return f"<LoadedEmbedder {self.info.use().name}, {self.applied.method}, on {self.device}>"

    @property
    def module(self) -> torch.nn.Module:
        """Return the module that holds the weights."""
        return self.opened.module

    def encode(
        self,
        items: Sequence[Item | str],
        role: Role = "document",
        *,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Embeddings:
        """Encode items; vectors that any process encoded before are read from the cache.

        Args:
            items: texts, or texts and images as `Item`.
            progress: called with (done, total).

        Returns:
            Vectors in full width; `vectors` describes how they are stored.

        Raises:
            ItemError: naming the first item that cannot be encoded: an empty text, a damaged or too large image; also
                for one text or `Item` that is not in a list.
        """
        from llmquant.retrieval.encode import encode

        if isinstance(items, str | bytes | Item):
            raise ItemError(f"items is {type(items).__name__}, not a list", hint="Put it in a list: encode([item]).")
        if role not in get_args(Role):
            raise ItemError(f"role is {role!r}", hint=f"Use {' or '.join(map(repr, get_args(Role)))}.")
        named = [Item(text=item) if isinstance(item, str) else item for item in items]
        for index, item in enumerate(named):
            if not isinstance(item, Item):
                raise ItemError(
                    f"item {index} is {type(item).__name__}, not a text or an Item",
                    hint="An image is Item(image=<the bytes of its file>), or Item.from_file(path).",
                )
        return encode(self, named, role, progress)
