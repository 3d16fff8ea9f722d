"""Read back a quantizer's result from a loaded module."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch

from llmquant.errors import NotHonouredError

T = TypeVar("T")


def dtype_name(dtype: torch.dtype | None) -> str:
    """Name a type as options do: ``bfloat16``; a missing type is ``unset``."""
    return "unset" if dtype is None else str(dtype).removeprefix("torch.")


def linear_names(module: torch.nn.Module, quantized: type[torch.nn.Module] | tuple[()] = ()) -> tuple[str, ...]:
    """Name the linear layers that are not of the class `quantized`."""
    return tuple(
        name
        for name, child in module.named_modules()
        if not isinstance(child, quantized)
        # GPT-2's linear layers have the class Conv1D.
        and (isinstance(child, torch.nn.Linear) or type(child).__name__ == "Conv1D")
    )


def elements_by_dtype(module: torch.nn.Module) -> dict[str, int]:
    """Count the elements of the parameters by type; tied parameters count once."""
    counts: dict[str, int] = {}
    for parameter in module.parameters():
        name = dtype_name(parameter.dtype)
        counts[name] = counts.get(name, 0) + parameter.numel()
    return counts


def fused_experts_note(module: torch.nn.Module) -> str:
    """Note the share of a mixture left unquantized because its experts are one tensor; empty for other models."""
    fused = sum(p.numel() for name, p in module.named_parameters() if "expert" in name and p.dim() > 2)
    if not fused:
        return ""
    share = fused / sum(_weights(parameter) for parameter in module.parameters())
    return f"the experts ({share:.0%} of the parameters) are one fused tensor per layer and are not quantized"


def _weights(parameter: torch.Tensor) -> int:
    """Count the weights of a parameter; a packed parameter counts with its original number of weights."""
    state = getattr(parameter, "quant_state", None)
    return int(state.shape.numel()) if state is not None else parameter.numel()


def only(values: Iterable[T], what: str) -> T:
    """Return the one value that all layers share.

    Raises:
        NotHonouredError: if they differ.
    """
    found = sorted(set(values), key=str)
    if len(found) != 1:
        raise NotHonouredError(f"layers differ in their {what}: {', '.join(map(str, found)) or 'there are none'}")
    return found[0]
