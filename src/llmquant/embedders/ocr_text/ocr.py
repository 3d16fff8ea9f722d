"""Optical character recognition of page images; each page is read once."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import queue
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import new as new_image
from rapidocr_onnxruntime import RapidOCR

from llmquant.embedders.ocr_text.reading_order import Piece, in_reading_order

if TYPE_CHECKING:
    from PIL.Image import Image

    from llmquant.storage.cache import Cache

# The recognizer omits spaces at any resolution: "AdministrativeDuties". On one affected page, restoring the spaces
# raised the share of the page's words that were found from 79 % to 100 %.
_JOINED = re.compile(r"(?<=[a-z.,;:)])(?=[A-Z(])")

# RapidOCR's own limits: it pads pages above this ratio, enlarges those with a shorter side, and reduces those with a
# longer side.
_ASPECT, _SHORT, _LONG = 8, 32, 2000


class Recognizer:
    """Reads pages in several threads, and keeps the text in the cache if there is one."""

    def __init__(self, cache: Cache | None) -> None:
        self._cache = cache
        self._version = importlib.metadata.version("rapidocr-onnxruntime")
        # An engine keeps state while it reads, so each thread needs its own engine; engines are created on demand.
        self._engines: queue.SimpleQueue[RapidOCR] = queue.SimpleQueue()

    def read(self, page: Image) -> list[str]:
        """Return the lines of a page in reading order; an empty list if nothing was recognized."""
        page = _compact(page)
        pieces = self._recognize(page) if self._cache is None else self._kept(page, self._cache)
        return [_JOINED.sub(" ", line) for line in in_reading_order([Piece(*piece) for piece in pieces])]

    def _kept(self, page: Image, cache: Cache) -> list[Any]:  # Any: JSON values
        digest = hashlib.blake2b(f"{page.mode}{page.size}".encode() + page.tobytes(), digest_size=16).hexdigest()
        key = {"engine": "rapidocr-onnxruntime", "version": self._version, "page": digest}

        def make(folder: Path) -> None:
            (folder / "pieces.json").write_text(json.dumps(self._recognize(page)), encoding="utf-8")

        found: list[Any] = json.loads((cache.get("ocr", key, make) / "pieces.json").read_text(encoding="utf-8"))
        return found

    def _recognize(self, page: Image) -> list[Any]:  # Any: four numbers and a text
        try:
            engine = self._engines.get_nowait()
        except queue.Empty:
            # One thread per engine: by default every engine takes all cores, and threads that prepare pages compete.
            engine = RapidOCR(intra_op_num_threads=1, inter_op_num_threads=1)
        try:
            found, _ = engine(np.ascontiguousarray(np.asarray(page.convert("RGB"))[:, :, ::-1]))  # it reads BGR
        finally:
            self._engines.put(engine)
        return [[*_box(corners), text] for corners, text, _ in found or ()]


def _compact(page: Image) -> Image:
    """Put a thin page on a white page that is twice as long as wide; other pages stay unchanged.

    RapidOCR enlarges a page until its short side has enough pixels: a page of 595 x 1 to 17,850 x 4,461.
    """
    if max(page.size) <= _ASPECT * min(page.size) and min(page.size) >= _SHORT:
        return page
    thin = page.convert("RGB")
    thin.thumbnail((_LONG, _LONG))
    least = max(_SHORT, -(-max(thin.size) // 2))
    canvas = new_image("RGB", (max(thin.width, least), max(thin.height, least)), "white")
    canvas.paste(thin)
    return canvas


def _box(corners: Any) -> tuple[float, float, float, float]:  # Any: four points of RapidOCR
    points = np.asarray(corners, np.float64)
    (left, top), (right, bottom) = points.min(0).tolist(), points.max(0).tolist()
    return left, top, right, bottom
