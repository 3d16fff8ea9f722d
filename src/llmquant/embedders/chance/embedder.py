"""Random unit vectors derived from an item's content: the floor of every retrieval score."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmquant.embedders.chance.options import ChanceOptions
from llmquant.plugins.embedder import Embedder, Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role


class Chance(Embedder[ChanceOptions]):
    """Opens the random embedder, which has no checkpoint."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenChance:
        """Return the random embedder."""
        return OpenChance(self.options)


class OpenChance:
    """Returns the same vector for an item every time, on every machine, as a query and as a document."""

    def __init__(self, options: ChanceOptions) -> None:
        self._options = options
        self.module = torch.nn.Module()

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Digest the text and the image's pixels."""
        digest = hashlib.blake2b(str(self._options.seed).encode(), digest_size=16)
        if text is not None:
            digest.update(b"text" + text.encode())
        if image is not None:
            digest.update(f"image{image.size}".encode() + image.tobytes())
        return Prepared(1, int.from_bytes(digest.digest(), "little"))

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Draw a uniformly distributed point of the unit sphere per digest."""
        # PCG64 produces the same stream with every version of numpy; the normal distribution's method does not promise
        # that, but has not changed since 2019.
        points = [np.random.Generator(np.random.PCG64(item.inputs)).normal(size=self._options.width) for item in batch]
        return [(point / np.linalg.norm(point)).astype(np.float32) for point in points]
