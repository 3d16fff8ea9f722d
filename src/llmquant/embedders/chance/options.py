"""Options of the embedder that knows nothing: the floor of every retrieval metric."""

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
        checkpoint: none.
        width: numbers in a vector; as many as a study's grid of dimensions needs, if that is more.
        seed: another seed gives other vectors.
    """

    checkpoint: str = ""
    width: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if self.checkpoint:
            raise OptionError(f"random has no checkpoint, found {self.checkpoint!r}")
        if self.width < 2:
            raise OptionError(f"width is {self.width}", hint="Give 2 or more; 64 is usual.")

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what it gives: the first numbers of a random direction are one too."""
        return EmbedderInfo(self.width, tuple(range(self.width, 0, -1)), ("text", "image"))

    def for_dims(self, dims: Sequence[int]) -> ChanceOptions:
        """Return options with vectors so wide that they can be cut to all of these widths."""
        return replace(self, width=max(self.width, *dims))
