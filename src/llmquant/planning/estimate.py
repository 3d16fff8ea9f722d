"""Say before anything is loaded how large each variant will be, which GPUs hold it, and about how long a study takes.

Weight bytes are exact to about a percent: they follow from the shapes. Times are rough; they are there so that nobody
starts by mistake what takes a day.
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
# What CUDA itself and its libraries hold in a process; 0.3 to 0.6 GiB on current GPUs.
_CUDA_BYTES = 512 * 2**20
# Rough rates: (multiply-add operations a second for reading a prompt, bytes a second for generating).
_RATES: dict[Device, tuple[float, float]] = {"cpu": (2.5e10, 6e9), "cuda": (5e13, 8e11), "mps": (3e12, 1.5e11)}
_START_S = 20.0


@dataclass(frozen=True)
class SizeEstimate:
    """What a variant will hold.

    Attributes:
        weight_bytes: ``None`` where the quantizer predicts none.
        peak_bytes: weights, cache and activations for one sequence of 2,048 tokens.
        gpus: of the dated table, those it fits on, the smallest first.
        refused: why this quantizer cannot go on this model; empty when it can.
    """

    quantizer: str
    weight_bytes: int | None
    peak_bytes: int | None
    gpus: tuple[str, ...]
    refused: str = ""


def estimate_size(info: ModelInfo, quantizer: Chosen, device: Device) -> SizeEstimate:
    """Predict one variant's size from the shapes of its tensors."""
    label = quantizer.use.label
    try:
        quantizer.ask("check", info, device)
        predicted = quantizer.ask("weight_bytes", info, device)
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
    peak = weights + cache + activations + _CUDA_BYTES
    return SizeEstimate(label, weights, peak, tuple(fitting_gpus(peak)))


def estimate_all(info: ModelInfo, registry: Registry, device: Device) -> list[SizeEstimate]:
    """Predict every preset that is installed, the largest first."""
    from llmquant.study.call import Call

    kind = "causal_lm" if info.embedder is None else "embedder"
    found = []
    for plugin, name in registry.ready("quantizer"):
        if kind in plugin.spec.accepts:
            try:
                found.append(estimate_size(info, registry.choose("quantizer", Call(name)), device))
            except LlmquantError as error:  # one that is broken is a row beside the others
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
