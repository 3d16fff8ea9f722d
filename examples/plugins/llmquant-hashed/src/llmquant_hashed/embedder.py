"""The heavy half: every word, and every three letters of a word, is a coordinate of the vector."""

import re
import zlib
from collections import Counter

import numpy as np
import torch
from llmquant import Embedder, Prepared


class Hashed(Embedder):
    """Opens nothing: there is no checkpoint."""

    def open(self, path, info, load_kwargs, ctx):
        """Return the embedder; the quantizer's keywords are for models."""
        return OpenHashed(self.options.width)


class OpenHashed:
    """Words and parts of words, hashed."""

    def __init__(self, width):
        self.module, self.width = torch.nn.Module(), width  # a module without weights

    def prepare(self, text, image, role):
        """Count words and their parts, in one of several threads; words under four letters say little."""
        words = re.findall(r"\w{4,}", text.lower()) or [text]
        parts = [f"{word} "[start : start + 3] for word in words for start in range(len(word) - 1)]
        return Prepared(len(words), Counter([*words, *parts]))

    def embed(self, batch, role):
        """Return one vector of length 1 per text; a word that is repeated counts little more."""
        vectors = np.zeros((len(batch), self.width), np.float32)
        for vector, item in zip(vectors, batch, strict=True):
            for feature, count in item.inputs.items():
                place = zlib.crc32(feature.encode())
                vector[place % self.width] += (1 if place >> 31 else -1) * len(feature) * (1 + np.log(count))
            vector[0] += 1e-3  # never zero, whatever cancels out
        return list(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
