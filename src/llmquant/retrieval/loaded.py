"""An embedding model on its device, with the cache of what it has encoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
        embeds: what it gives.
        vectors: how its vectors are kept and searched.
        fingerprint: of the weights, the quantizer, the prompts, the preprocessing and the pooling: what a cached vector
            is known by.
        batch_tokens: tokens a batch may hold; ``None`` chooses by the device.
        path: the folder its weights came from; ``None`` where it has none.
        load: what loading cost.
        row_independent: what else is in a batch changes no vector; else each item is encoded by itself.
    """

    opened: OpenEmbedder
    embeds: EmbedderInfo
    vectors: VectorForm
    fingerprint: Digest
    info: ModelInfo
    applied: AppliedQuantization
    path: Path | None
    device: Device
    load: LoadStats
    cache: Cache
    batch_tokens: int | None = None
    row_independent: bool = True

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
        """Encode items; what was encoded before, in any process, is read from the cache.

        Args:
            items: texts, or texts and images as `Item`.
            progress: called with (done, total).

        Returns:
            In full width: `vectors` says what is kept of it.

        Raises:
            ItemError: naming the first item that cannot be encoded: an empty text, a damaged or too large image.
        """
        from llmquant.retrieval.encode import encode

        return encode(self, [Item(text=item) if isinstance(item, str) else item for item in items], role, progress)
