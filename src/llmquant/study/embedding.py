"""What an embedder gives, known before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["query", "document"]
Modality = Literal["text", "image"]
Similarity = Literal["cosine", "dot", "maxsim"]
Fusion = Literal["joint", "sum", "mean"]


@dataclass(frozen=True)
class EmbedderInfo:
    """What an embedder gives, known before it is loaded.

    Attributes:
        width: of its vectors.
        dims: widths they can be cut to, the largest first; ``(width,)`` where it was trained for none.
        modalities: what it encodes.
        similarity: how its vectors are compared; ``maxsim`` is late interaction: several vectors an item.
        fusion: how a text and an image of one item become one vector: ``joint`` in one pass of the model, else encoded
            apart and added or averaged, at unit length again where the similarity is cosine.
        dim: the width that vectors are cut to where a study names none; ``None`` is `width`.
    """

    width: int
    dims: tuple[int, ...]
    modalities: tuple[Modality, ...] = ("text",)
    similarity: Similarity = "cosine"
    fusion: Fusion = "joint"
    dim: int | None = None
