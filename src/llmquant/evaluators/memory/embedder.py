"""Memory of an embedder: bytes of its weights, and peaks of loading and encoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmquant.loading.memory import PeakMemory, peak_memory, weight_bytes
from llmquant.models.folder import read_checkpoint
from llmquant.study.call import Json
from llmquant.study.run import Measurement, Result

if TYPE_CHECKING:
    from llmquant.retrieval.loaded import LoadedEmbedder

_TASK = "memory"
# A4 at 150 dots per inch.
_PAGE = (1240, 1754)
_QUERY = "how much did revenue grow in the third quarter"


def embedder_memory(subject: LoadedEmbedder, *, seed: int) -> Result:
    """Measure one query and one page at a time, in bytes above the memory that the process held before."""
    query = [subject.opened.prepare(_QUERY, None, "query")]
    subject.opened.embed(query, "query")  # makes memory-mapped weights resident and prepares bitsandbytes' weights
    weights = weight_bytes(subject.module)
    peaks: dict[str, PeakMemory] = {}
    with peak_memory(subject.device) as peaks["encode_query_peak_bytes"]:
        subject.opened.embed(query, "query")
    if "image" in subject.embeds.modalities:
        from PIL import Image  # only needed for embedders of images

        noise = np.random.default_rng(seed).integers(0, 256, (*reversed(_PAGE), 3), np.uint8)
        page = [subject.opened.prepare(None, Image.fromarray(noise), "document")]
        with peak_memory(subject.device) as peaks["encode_page_peak_bytes"]:
            subject.opened.embed(page, "document")
    values: dict[str, int | None] = {
        "weights_bytes": weights.total,
        "weights_parameters_bytes": weights.parameters,
        "weights_quantization_state_bytes": weights.quantization_state,
        "weights_buffers_bytes": weights.buffers,
        "checkpoint_disk_bytes": _disk_bytes(subject),
        "load_peak_bytes": subject.load.peak_bytes,
        **{metric: peak.bytes for metric, peak in peaks.items()},
    }
    numbers = [
        Measurement(_TASK, metric, value, "bytes", higher_is_better=False)
        for metric, value in values.items()
        if value is not None
    ]
    reasons: dict[str, Json] = {metric: peak.reason for metric, peak in peaks.items() if peak.bytes is None}
    return Result(_TASK, numbers, details={"not_measured": reasons})


def _disk_bytes(subject: LoadedEmbedder) -> int:
    if subject.path is None:
        return 0
    allowed = "allow_pickle" in subject.info.flags
    return read_checkpoint(subject.path, subject.info.source, allow_pickle=allowed).disk_bytes
