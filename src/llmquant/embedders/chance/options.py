"""Options of the random embedder: the floor of every retrieval metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from llmquant.errors import OptionError
from llmquant.models.info import ModelInfo
from llmquant.study.embedding import EmbedderInfo


@dataclass(frozen=True)
class ChanceOptions:
    """Random unit vectors: equal for equal items, independent otherwise.

    Attributes:
        checkpoint: must be empty, because the embedder has no checkpoint.
        width: dimensions of a vector, for example 64; a study raises it to the largest dimension of its grid.
        seed: seed of the random numbers, for example 0; another seed produces other vectors.
    """

    checkpoint: str = ""
    width: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint:
            raise OptionError(f"random has no checkpoint, found {self.checkpoint!r}")
        if self.width < 2:
            raise OptionError(f"width is {self.width}", hint="Use 2 or more; 64 is usual.")

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the vectors, which may be cut: the first numbers of a random direction are one too."""
        return EmbedderInfo(self.width, tuple(range(self.width, 0, -1)), ("text", "image"))

    def for_dims(self, dims: Sequence[int]) -> ChanceOptions:
        """Return options whose vectors are wide enough to be cut to each of these widths."""
        return replace(self, width=max(self.width, *dims))
