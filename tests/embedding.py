"""A tiny embedding model for tests of what encodes, searches and measures: real weights, no files, no prompts.

Texts are similar when they share words, images when they share colours in the same places. With `late` each word and
each patch keeps a vector of its own.
"""

from __future__ import annotations

import io
import threading
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from llmquant.models.info import ModelInfo
from llmquant.plugins.embedder import Prepared
from llmquant.plugins.evaluator import LoadStats
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.storage.cache import Cache
from llmquant.study.embedding import EmbedderInfo, Fusion, Modality, Role, Similarity
from llmquant.study.experiment import VectorForm, digest_of

_WORDS, _SIDE, _PATCH = 4096, 32, 8


class WordsAndPatches(torch.nn.Module):
    """Looks words up and projects patches, then one linear layer."""

    def __init__(self, width: int, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.words = torch.nn.Embedding(_WORDS, width)
            self.patches = torch.nn.Linear(3 * _PATCH * _PATCH, width)
            self.roles = torch.nn.Embedding(2, width)
            self.linear = torch.nn.Linear(width, width, bias=False)

    def forward(self, words: torch.Tensor, patches: torch.Tensor, role: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([self.words(words), self.patches(patches)], dim=1)
        return self.linear(inputs + 0.1 * self.roles(role))


@dataclass
class OpenWordsAndPatches:
    """Implements `OpenEmbedder`, and remembers what it was asked for.

    Attributes:
        room: tokens, padding included, that "fit"; a larger batch raises torch's out-of-memory error.
        batches: of each successful call of `embed`, its items' tokens.
        prepared: how often `prepare` was called.
    """

    module: WordsAndPatches
    late: bool = False
    similarity: Similarity = "cosine"
    room: int | None = None
    batches: list[list[int]] = field(default_factory=list)
    prepared: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def embedded(self) -> int:
        """How many items were encoded."""
        return sum(map(len, self.batches))

    def prepare(self, text: str | None, image: Image.Image | None, role: Role) -> Prepared:
        with self._lock:
            self.prepared += 1
        words = [zlib.crc32(word.encode()) % _WORDS for word in (text or "").lower().split()]
        patches = np.zeros((0, 3 * _PATCH * _PATCH), np.float32)
        if image is not None:
            pixels = np.asarray(image.resize((_SIDE, _SIDE)), np.float32) / 127.5 - 1
            grid = pixels.reshape(_SIDE // _PATCH, _PATCH, _SIDE // _PATCH, _PATCH, 3)
            patches = grid.transpose(0, 2, 1, 3, 4).reshape(-1, 3 * _PATCH * _PATCH)
        return Prepared(len(words) + len(patches), (np.asarray(words, np.int64), patches))

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        most_words = max(len(item.inputs[0]) for item in batch)
        most_patches = max(len(item.inputs[1]) for item in batch)
        if self.room is not None and len(batch) * (most_words + most_patches) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (said the test)")
        words = np.zeros((len(batch), most_words), np.int64)
        patches = np.zeros((len(batch), most_patches, 3 * _PATCH * _PATCH), np.float32)
        mask = np.zeros((len(batch), most_words + most_patches), bool)
        for row, item in enumerate(batch):
            own_words, own_patches = item.inputs
            words[row, : len(own_words)] = own_words
            patches[row, : len(own_patches)] = own_patches
            mask[row, : len(own_words)] = True
            mask[row, most_words : most_words + len(own_patches)] = True
        with torch.inference_mode():
            which = torch.tensor(0 if role == "query" else 1)
            states = self.module(torch.from_numpy(words), torch.from_numpy(patches), which).float().numpy()
        vectors = [states[row][mask[row]] for row in range(len(batch))]
        if not self.late:
            vectors = [states.mean(axis=0) for states in vectors]
        if self.similarity != "dot":
            vectors = [vector / np.linalg.norm(vector, axis=-1, keepdims=True) for vector in vectors]
        self.batches.append([item.tokens for item in batch])
        return vectors


def build_subject(
    tmp_path: Path,
    *,
    late: bool = False,
    width: int = 32,
    dims: Sequence[int] | None = None,
    modalities: tuple[Modality, ...] = ("text", "image"),
    similarity: Similarity | None = None,
    fusion: Fusion = "joint",
    vectors: VectorForm | None = None,
    batch_tokens: int | None = None,
    room: int | None = None,
    seed: int = 0,
) -> LoadedEmbedder:
    """Build the model; two calls with one `tmp_path` share the cache, and each counts what it encodes itself.

    Args:
        late: several vectors an item, compared by MaxSim.
        similarity: ``None`` is cosine, or MaxSim with `late`.
        room: see `OpenWordsAndPatches`.
        seed: of the weights: another one is another model.
    """
    similarity = similarity or ("maxsim" if late else "cosine")
    embeds = EmbedderInfo(width, tuple(dims or (width,)), modalities, similarity, fusion)
    key = digest_of({"width": width, "late": late, "similarity": similarity, "seed": seed})
    return LoadedEmbedder(
        opened=OpenWordsAndPatches(WordsAndPatches(width, seed).eval(), late, similarity, room),
        embeds=embeds,
        vectors=vectors or VectorForm(),
        fingerprint=key,
        info=ModelInfo("words-and-patches", key, (), "none", None, None, None, {}, {}, (), 0, embeds=embeds),
        applied=AppliedQuantization("none", "float32", 32, "float32", {"float32": 1}, 0),
        path=None,
        device="cpu",
        load=LoadStats(0.1, None),
        cache=Cache(tmp_path / "cache"),
        batch_tokens=batch_tokens,
    )


def page(text: str = "", *, size: tuple[int, int] = (120, 160), colour: str = "white", kind: str = "PNG") -> bytes:
    """Draw a page image and encode it."""
    image = Image.new("RGB", size, colour)
    ImageDraw.Draw(image).multiline_text((8, 8), text, fill="black")
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()
