"""Run a loaded model in another dtype without a second copy of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def computing_in(module: torch.nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Compute every layer with weights and inputs cast to `dtype`, as if the model had been loaded in `dtype`.

    A layer's weights are cast when the layer runs and are put back after it, so that the additional memory is that of
    the largest layer; of embeddings only the rows that were looked up are cast.
    """
    kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    handles = []

    def enter(layer: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:  # Any: arguments of any layer
        if not isinstance(layer, torch.nn.Embedding):
            for parameter in _floats(layer):
                kept.append((parameter, parameter.data))
                parameter.data = parameter.data.to(dtype)
        return tuple(map(cast, args)), {name: cast(value) for name, value in kwargs.items()}

    def leave(layer: torch.nn.Module, _: Any, output: Any) -> Any:  # Any: as above
        own = {id(parameter) for parameter in _floats(layer)}
        while kept and id(kept[-1][0]) in own:
            parameter, data = kept.pop()
            parameter.data = data
        return cast(output)

    def cast(value: Any) -> Any:  # Any: as above
        return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    try:
        for layer in module.modules():
            if _floats(layer):
                handles.append(layer.register_forward_pre_hook(enter, with_kwargs=True))
                handles.append(layer.register_forward_hook(leave))
        yield
    finally:
        for handle in handles:
            handle.remove()
        for parameter, data in reversed(kept):  # of layers that an error left
            parameter.data = data


def _floats(layer: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [parameter for parameter in layer.parameters(recurse=False) if parameter.is_floating_point()]
