"""Predicts, before anything is loaded, each variant's size, the GPUs with enough memory, and a study's time.

Weight bytes are exact to about a percent, because they follow from the tensors' shapes. Times are rough; their purpose
is to show that a study would take a day.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from llmquant.errors import LlmquantError
from llmquant.machine.hardware import fitting_gpus
from llmquant.models.info import ModelInfo
from llmquant.plugins.evaluator import Cost
from llmquant.plugins.executor import Executor
from llmquant.plugins.registry import Chosen, Registry
from llmquant.study.experiment import Documents
from llmquant.study.job import Device

_CONTEXT_TOKENS = 2048
# Memory of the CUDA context and libraries per process: 0.3 to 0.6 GiB on current GPUs.
_CUDA_BYTES = 512 * 2**20
# Rough rates: (multiply-add operations per second for prefill, bytes per second for decoding).
_RATES: dict[Device, tuple[float, float]] = {"cpu": (6e10, 1.2e10), "cuda": (5e13, 8e11), "mps": (3e12, 1.5e11)}
_START_S = 10.0


@dataclass(frozen=True)
class SizeEstimate:
    """The predicted size of a variant.

    Attributes:
        weight_bytes: size of the weights in bytes; ``None`` if the quantizer does not predict it.
        peak_bytes: weights, cache and activations for one sequence of 2,048 tokens, and on a GPU CUDA's own memory.
        gpus: GPUs of the dated table with enough memory, the smallest first.
        refused: why the quantizer does not support the model; empty if it does.
        served_bytes: size of the weights in bytes where they are served, if they run dequantized here.
    """

    quantizer: str
    weight_bytes: int | None
    peak_bytes: int | None
    gpus: tuple[str, ...]
    refused: str = ""
    served_bytes: int | None = None


def estimate_size(info: ModelInfo, quantizer: Chosen, device: Device) -> SizeEstimate:
    """Predict one variant's size from the shapes of its tensors."""
    label = quantizer.use.label
    try:
        quantizer.ask("check", info, device)
        predicted = quantizer.ask("weight_bytes", info, device)
        served = quantizer.ask("served_bytes", info)
    except LlmquantError as error:
        return SizeEstimate(label, None, None, (), error.message)
    if predicted is None:
        return SizeEstimate(label, None, None, ())
    weights = int(predicted)
    cache = _CONTEXT_TOKENS * info.kv_bytes_per_token(2)
    # The largest activations: hidden states of one MLP, and the logits in float32.
    config = info.text_config
    hidden = int(config.get("intermediate_size", 4 * int(config.get("hidden_size", 0))))
    activations = _CONTEXT_TOKENS * (8 * hidden + 4 * int(config.get("vocab_size", 0)))
    peak = weights + cache + activations
    gpus = tuple(fitting_gpus(peak + _CUDA_BYTES))
    return SizeEstimate(label, weights, peak + (_CUDA_BYTES if device == "cuda" else 0), gpus, "", served)


def estimate_all(info: ModelInfo, registry: Registry, device: Device) -> list[SizeEstimate]:
    """Predict the size of every installed preset, the largest first."""
    from llmquant.study.call import Call

    kind = "causal_lm" if info.embedder is None else "embedder"
    found = []
    for plugin, name in registry.ready("quantizer"):
        if kind in plugin.spec.accepts:
            try:
                found.append(estimate_size(info, registry.choose("quantizer", Call(name)), device))
            except LlmquantError as error:  # a broken preset is a row like the others
                found.append(SizeEstimate(name, None, None, (), error.message))
    return sorted(found, key=lambda size: -(size.weight_bytes or 0))


def estimate_seconds(
    info: ModelInfo,
    quantizers: Sequence[Chosen],
    evaluators: Sequence[Chosen],
    documents: Documents,
    executor: Executor,
) -> float:
    """Predict, very roughly, how long the experiments of one model take together."""
    operations, bytes_per_s = _RATES[executor.device]
    if executor.device == "cpu":
        operations *= executor.threads or psutil.cpu_count(logical=False) or 1
    costs = [cost for evaluator in evaluators if (cost := evaluator.ask("cost", info, documents)) is not None]
    total = 0.0
    for quantizer in quantizers:
        predicted = quantizer.ask("weight_bytes", info, executor.device)
        weights = 2 * info.parameters if predicted is None else int(predicted)
        if quantizer.plugin.spec.checkpoint and (cost := quantizer.ask("cost", info, documents)) is not None:
            total += _START_S + _cost_seconds(cost, info, weights, operations, bytes_per_s)
        total += _START_S + sum(_cost_seconds(cost, info, weights, operations, bytes_per_s) for cost in costs)
    return total / executor.slots


def _cost_seconds(cost: Cost, info: ModelInfo, weights: int, operations: float, bytes_per_s: float) -> float:
    per_token = 2 * info.parameters / operations
    return cost.prefill_tokens * per_token + cost.decode_tokens * max(per_token, weights / bytes_per_s)
