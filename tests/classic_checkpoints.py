"""Writes small checkpoints in the layouts that auto-gptq and autoawq documented, with neither of them.

Weights are rounded to nearest. Packing follows ``QuantLinear.pack`` of auto-gptq 0.7.1
(``auto_gptq/nn_modules/qlinear/qlinear_cuda.py``) and ``WQLinear_GEMM.from_linear`` of autoawq 0.2.9
(``awq/modules/linear/gemm.py``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

# Where autoawq puts eight neighbouring columns of four bits in a word, the lowest bits first.
_AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


def write_gptq(
    model: Path,
    out: Path,
    *,
    bits: int = 4,
    group_size: int = 32,
    symmetric: bool = False,
    act_order: bool = False,
    config_in: tuple[str, ...] = ("config.json", "quantize_config.json"),
    weights: str = "gptq_model-{bits}bit-{group_size}g.safetensors",
) -> Path:
    """Write `model` as auto-gptq 0.7.1 saves it, and what it stands for in float32.

    Args:
        group_size: -1 is a whole row of the weights.
        act_order: as with ``desc_act``: a group is any `group_size` columns, which ``g_idx`` names.
        config_in: which files say how it is quantized.
        weights: what the file of weights is called; on the Hub it is often renamed to ``model.safetensors``.

    Returns:
        The folder with the float32 weights, beside `out`.
    """
    settings = {
        "bits": bits,
        "group_size": group_size,
        "damp_percent": 0.01,
        "desc_act": act_order,
        "static_groups": False,
        "sym": symmetric,
        "true_sequential": True,
        "model_name_or_path": None,
        "model_file_base_name": None,
        "is_marlin_format": False,
        "quant_method": "gptq",
    }
    order = np.random.default_rng(0)

    def pack(weight: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        columns = weight.shape[1]
        size = columns if group_size == -1 else group_size
        g_idx = np.arange(columns) // size
        if act_order:
            g_idx = order.permutation(g_idx)
        # Zero points are stored minus one, so that none may be 0.
        codes, zeros, scales = _round_to_nearest(weight, g_idx, bits, lowest_zero=1, symmetric=symmetric)
        packed = {
            "qweight": _bit_stream(codes.T, bits),
            "qzeros": _bit_stream(zeros - 1, bits).T,
            "scales": scales.T.astype(np.float16),
            "g_idx": g_idx.astype(np.int32),
        }
        return packed, _dequantize(codes, zeros, scales, g_idx)

    name = weights.format(bits=bits, group_size=group_size)
    dequantized = _write(model, out, pack, settings if "config.json" in config_in else None, name)
    if "quantize_config.json" in config_in:
        (out / "quantize_config.json").write_text(json.dumps(settings, indent=2))
    return dequantized


def write_awq(model: Path, out: Path, *, group_size: int = 32) -> Path:
    """Write `model` as autoawq saves it (4 bits, zero points, version GEMM), and what it stands for in float32.

    Returns:
        The folder with the float32 weights, beside `out`.
    """
    settings = {
        "quant_method": "awq",
        "zero_point": True,
        "group_size": group_size,
        "bits": 4,
        "version": "gemm",
        "modules_to_not_convert": None,
    }

    def interleave(codes: NDArray[np.int64]) -> NDArray[np.int64]:
        return codes.reshape(-1, 8, codes.shape[1])[:, _AWQ_ORDER].reshape(codes.shape)

    def pack(weight: NDArray[np.float32]) -> tuple[dict[str, NDArray[Any]], NDArray[np.float32]]:
        g_idx = np.arange(weight.shape[1]) // (weight.shape[1] if group_size == -1 else group_size)
        codes, zeros, scales = _round_to_nearest(weight, g_idx, 4, lowest_zero=0, symmetric=False)
        packed = {
            "qweight": _bit_stream(interleave(codes), 4).T,
            "qzeros": _bit_stream(interleave(zeros), 4).T,
            "scales": scales.T.astype(np.float16),
        }
        return packed, _dequantize(codes, zeros, scales, g_idx)

    return _write(model, out, pack, settings, "model.safetensors")


def _round_to_nearest(
    weight: NDArray[np.float32], g_idx: NDArray[np.int64], bits: int, *, lowest_zero: int, symmetric: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Return codes ``(out, in)``, and zero points and scales ``(out, groups)``."""
    most = 2**bits - 1
    groups = [weight[:, g_idx == group] for group in range(g_idx.max() + 1)]
    low = np.stack([np.minimum(group.min(1), 0) for group in groups], axis=1)
    high = np.stack([np.maximum(group.max(1), 0) for group in groups], axis=1)
    if symmetric:
        high = np.maximum(-low, high)
        low = -high
    scales = ((high - low) / most).astype(np.float16).astype(np.float32)
    zeros = np.rint(-low / scales).clip(lowest_zero, most).astype(np.int64)
    if symmetric:
        zeros[:] = (most + 1) // 2
    codes = np.rint(weight / scales[:, g_idx]).astype(np.int64) + zeros[:, g_idx]
    return codes.clip(0, most), zeros, scales


def _dequantize(
    codes: NDArray[np.int64], zeros: NDArray[np.int64], scales: NDArray[np.float32], g_idx: NDArray[np.int64]
) -> NDArray[np.float32]:
    return (scales[:, g_idx] * (codes - zeros[:, g_idx])).astype(np.float32)


def _bit_stream(codes: NDArray[np.int64], bits: int) -> NDArray[np.int32]:
    """Pack down the columns: the codes' bits one after the other, lowest first, in words of 32."""
    stream = (codes[:, None] >> np.arange(bits)[:, None]) & 1
    words = stream.reshape(-1, 32, codes.shape[1]).astype(np.uint64) << np.arange(32, dtype=np.uint64)[:, None]
    return words.sum(axis=1).astype(np.uint32).view(np.int32)


def _write(
    model: Path,
    out: Path,
    pack: Callable[[NDArray[np.float32]], tuple[dict[str, NDArray[Any]], NDArray[np.float32]]],
    settings: Mapping[str, Any] | None,
    weights: str,
) -> Path:
    out.mkdir(parents=True)
    dequantized = out.with_name(f"{out.name}-float32")
    dequantized.mkdir()
    quantized_tensors: dict[str, torch.Tensor] = {}
    float_tensors: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(model / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            packed, weight = pack(tensor.float().numpy())
            stem = name.removesuffix(".weight")
            quantized_tensors |= {f"{stem}.{key}": _tensor(value) for key, value in packed.items()}
            float_tensors[name] = _tensor(weight)
        else:
            quantized_tensors[name] = tensor.half()
            float_tensors[name] = tensor.half().float()
    config = json.loads((model / "config.json").read_text())
    config.pop("dtype", None)
    save_file(quantized_tensors, out / weights, {"format": "pt"})
    save_file(float_tensors, dequantized / "model.safetensors", {"format": "pt"})
    quantized = {**config, "torch_dtype": "float16"} | ({"quantization_config": settings} if settings else {})
    (out / "config.json").write_text(json.dumps(quantized, indent=2))
    (dequantized / "config.json").write_text(json.dumps({**config, "torch_dtype": "float32"}, indent=2))
    for name in _TOKENIZER:
        if (model / name).exists():
            shutil.copy(model / name, out)
            shutil.copy(model / name, dequantized)
    return dequantized


def _tensor(array: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
