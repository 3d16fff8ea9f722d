"""Properties of an embedder's vectors, known before loading."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["query", "document"]
Modality = Literal["text", "image"]
Similarity = Literal["cosine", "dot", "maxsim"]
Fusion = Literal["joint", "sum", "mean"]


@dataclass(frozen=True)
class EmbedderInfo:
    """Properties of an embedder's vectors, known before loading.

    Attributes:
        width: width of the vectors.
        dims: widths that the vectors can be cut to, the largest first; ``(width,)`` without Matryoshka training.
        modalities: kinds of input, for example ``text`` and ``image``.
        similarity: similarity of vectors; ``maxsim`` is late interaction, with several vectors per item.
        fusion: how a text and an image of one item become one vector: ``joint`` in one pass of the model, otherwise
            encoded separately and added or averaged, and normalized again if the similarity is cosine.
        dim: default width that vectors are cut to; ``None`` is `width`.
    """

    width: int
    dims: tuple[int, ...]
    modalities: tuple[Modality, ...] = ("text",)
    similarity: Similarity = "cosine"
    fusion: Fusion = "joint"
    dim: int | None = None
