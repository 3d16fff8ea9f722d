"""Memory: bytes of the weights, and peaks of loading, reading a prompt and generating."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from llmquant.evaluators.memory.options import MemoryOptions
from llmquant.evaluators.speed.generation_steps import Generation, random_prompts
from llmquant.loading.memory import PeakMemory, peak_memory, tensor_bytes, weight_bytes
from llmquant.models.folder import read_checkpoint
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.study.call import Json
from llmquant.study.run import Measurement, Result

if TYPE_CHECKING:
    from llmquant.plugins.context import Context
    from llmquant.plugins.evaluator import LoadedModel

_TASK = "memory"
# A4 at 150 dots per inch.
_PAGE = (1240, 1754)
_QUERY = "how much did revenue grow in the third quarter"


class Memory(Evaluator[MemoryOptions]):
    """Counts the weights' bytes and measures peaks on the model's device, above the memory held before.

    ``prefill_peak_bytes`` and ``decode_peak_bytes`` are above the weights and include the key-value cache, so the
    weights and the larger of the two must fit. The loader measured ``load_peak_bytes``. A peak that the system does not
    report is omitted, with the reason in the details.
    """

    def evaluate(self, subject: LoadedModel | LoadedEmbedder, ctx: Context) -> Iterable[Result]:
        """Yield one result; all values are in bytes."""
        options = self.options
        if isinstance(subject, LoadedEmbedder):
            yield _of_embedder(subject, seed=ctx.seed)
            return
        prompts = random_prompts(subject, batch=options.batch, tokens=options.prompt_tokens, seed=ctx.seed)
        with torch.inference_mode():
            # In a first pass memory-mapped weights become resident, and bitsandbytes prepares its layers.
            _prefill(subject, prompts).step(prompts[:, :1])
            ctx.progress(1, 3)
            weights = _weights(subject)
            prefill, decode, cache = _peaks(subject, prompts, options.decode_tokens)
        ctx.progress(3, 3)

        prompt = {"prompt_tokens": options.prompt_tokens, "batch": options.batch}
        whole = {**prompt, "decode_tokens": options.decode_tokens}
        rows: list[tuple[str, int | None, dict[str, int], str]] = [
            *((metric, value, {}, "") for metric, value in weights.items()),
            ("checkpoint_disk_bytes", _disk_bytes(subject), {}, ""),
            ("load_peak_bytes", subject.load.peak_bytes, {}, "the loader could not measure it on this system"),
            ("prefill_peak_bytes", prefill.bytes, prompt, prefill.reason),
            ("decode_peak_bytes", decode.bytes, whole, decode.reason),
        ]
        numbers = [
            Measurement(_TASK, metric, value, "bytes", higher_is_better=False, at=at)
            for metric, value, at, _ in rows
            if value is not None
        ]
        per_token = cache.after_prefill / prompts.numel()
        numbers.append(
            Measurement(_TASK, "kv_cache_bytes_per_token", per_token, "bytes", higher_is_better=False, at=prompt)
        )
        details: dict[str, Json] = {
            "kv_cache": {
                "dtype": cache.dtype,
                "bytes_after_prefill": cache.after_prefill,
                "bytes_after_decode": cache.after_decode,
                "predicted_bytes_per_token": subject.info.kv_bytes_per_token(cache.item_bytes),
            },
            # Differs from the checkpoint's size if llmquant made another one: quantized with calibration, or converted.
            "source_disk_bytes": subject.info.disk_bytes,
            "not_measured": {metric: reason for metric, value, _, reason in rows if value is None},
        }
        yield Result(_TASK, numbers, details=details)


@dataclass(frozen=True)
class _CacheBytes:
    dtype: str
    item_bytes: int
    after_prefill: int
    after_decode: int


def _of_embedder(subject: LoadedEmbedder, *, seed: int) -> Result:
    """Measure one query and one page at a time, in bytes above the memory that the process held before."""
    query = [subject.opened.prepare(_QUERY, None, "query")]
    subject.opened.embed(query, "query")  # makes memory-mapped weights resident and prepares bitsandbytes' weights
    weights = _weights(subject)
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
        **weights,
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


def _weights(subject: LoadedModel | LoadedEmbedder) -> dict[str, int]:
    weights, served = weight_bytes(subject.module), subject.applied.served_bytes
    return {
        "weights_bytes": weights.total,
        "weights_parameters_bytes": weights.parameters,
        "weights_quantization_state_bytes": weights.quantization_state,
        "weights_buffers_bytes": weights.buffers,
        **({} if served is None else {"weights_served_bytes": served}),
    }


def _disk_bytes(subject: LoadedModel | LoadedEmbedder) -> int:
    """Add up the weights' files; for quantization while loading these are the files of the unquantized model."""
    if subject.path is None:
        return 0
    if subject.path.is_file():
        return subject.path.stat().st_size
    allowed = subject.info.allow_pickle
    return read_checkpoint(subject.path, subject.info.source, allow_pickle=allowed).disk_bytes


def _peaks(subject: LoadedModel, prompts: torch.Tensor, steps: int) -> tuple[PeakMemory, PeakMemory, _CacheBytes]:
    """Measure the peaks of prefill and decode, above the weights."""
    with peak_memory(subject.device) as prefill:
        generation = _prefill(subject, prompts)
    first = next(_cache_tensors(generation.cache))
    after_prefill = tensor_bytes(_cache_tensors(generation.cache))
    token = generation.pick()
    with peak_memory(subject.device) as decode:
        for _ in range(steps):
            token = generation.step(token)
    after_decode = tensor_bytes(_cache_tensors(generation.cache))
    if decode.bytes is not None:
        # The cache was held when the measurement began, and it does not belong to the weights.
        decode = PeakMemory(decode.bytes + after_prefill, "")
    return prefill, decode, _CacheBytes(str(first.dtype), first.element_size(), after_prefill, after_decode)


def _prefill(subject: LoadedModel, prompts: torch.Tensor) -> Generation:
    generation = Generation(subject.module)
    generation.prefill(prompts)
    return generation


def _cache_tensors(cache: Any) -> Iterator[torch.Tensor]:  # Any: caches differ by architecture
    """Yield the tensors of a cache's layers, except private constants."""
    for layer in cache.layers:
        for name, value in vars(layer).items():
            if isinstance(value, torch.Tensor) and not name.startswith("_"):
                yield value
