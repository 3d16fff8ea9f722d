"""Embed the text that OCR reads on a page with a sentence-transformers model."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from llmquant.embedders.ocr_text.ocr import Recognizer
from llmquant.embedders.ocr_text.options import OcrTextOptions
from llmquant.embedders.sentence_transformers.embedder import OpenSentenceTransformers, load
from llmquant.plugins.embedder import Embedder, Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role

# The text embedded for a page without text, because every item needs a vector.
_NO_TEXT = "empty page"


class OcrText(Embedder[OcrTextOptions]):
    """Opens the text model; the recognizer has separate weights, which no quantizer changes."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenOcrText:
        """Load the text model."""
        model = load(path, info, load_kwargs, ctx)
        embedder = OpenSentenceTransformers(model, {"query": None, "document": None}, normalized=True)
        return OpenOcrText(embedder, model, Recognizer(ctx.cache), self.options)


class OpenOcrText:
    """A recognizer and a text model."""

    def __init__(
        self,
        embedder: OpenSentenceTransformers,
        model: Any,  # Any: a SentenceTransformer
        recognizer: Recognizer,
        options: OcrTextOptions,
    ) -> None:
        self._embedder, self._recognizer, self._options = embedder, recognizer, options
        self.module = embedder.module
        # A copy without truncation: counting in threads must not change how the model's own tokenizer cuts and pads.
        self._tokenizer = copy.deepcopy(model.tokenizer.backend_tokenizer)
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        special = model.tokenizer.num_special_tokens_to_add(pair=False)
        self._chunk_tokens = min(options.chunk_tokens, (model.max_seq_length or options.chunk_tokens) - special)

    def uncached(self) -> OpenOcrText:
        """Return an embedder that reads every page anew."""
        other = copy.copy(self)
        other._recognizer = Recognizer(None)
        return other

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Read the page and cut its text into chunks, after the item's own text if it has one; queries stay whole."""
        if role == "query" and image is None:
            chunks = [text or ""]
        else:
            lines = (text or "").splitlines() + (self._recognizer.read(image) if image is not None else [])
            chunks = self._chunks([line for line in lines if line.strip()]) or [_NO_TEXT]
        parts = [self._embedder.prepare(chunk, None, role) for chunk in chunks]
        return Prepared(sum(part.tokens for part in parts), parts)

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Embed the chunks of all items together; return each item's vectors, or their mean at unit length."""
        vectors = np.stack(self._embedder.embed([part for item in batch for part in item.inputs], role))
        ends = np.cumsum([len(item.inputs) for item in batch])
        items = np.split(vectors, ends[:-1])
        if self._options.chunks == "max":
            return items
        means = [item.mean(0) for item in items]
        return [(mean / np.linalg.norm(mean)).astype(np.float32) for mean in means]

    def _chunks(self, lines: Sequence[str]) -> list[str]:
        """Cut a text into overlapping runs of words, none longer than the chunk limit."""
        words = [word for line in lines for word in line.split()]
        sizes = [len(encoded.ids) for encoded in self._tokenizer.encode_batch(words, add_special_tokens=False)]
        step = max(1, round(self._chunk_tokens * (1 - self._options.overlap)))
        chunks, start = [], 0
        while start < len(words):
            end = _run(sizes, start, self._chunk_tokens)
            chunks.append(" ".join(words[start:end]))
            if end == len(words):
                break
            start = min(_run(sizes, start, step), end)
        return chunks


def _run(sizes: Sequence[int], start: int, tokens: int) -> int:
    """Return the end of a run of words from `start` with at most `tokens` tokens and at least one word."""
    end, total = start + 1, sizes[start]
    while end < len(sizes) and total + sizes[end] <= tokens:
        total += sizes[end]
        end += 1
    return end
