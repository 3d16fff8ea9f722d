"""Where jobs run: one folder per executor, imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmquant.executors.local.executor import LocalExecutor
    from llmquant.executors.modal.executor import ModalExecutor
    from llmquant.executors.ray.executor import RayExecutor

_MODULES = {
    "LocalExecutor": "llmquant.executors.local.executor",
    "ModalExecutor": "llmquant.executors.modal.executor",
    "RayExecutor": "llmquant.executors.ray.executor",
}

__all__ = ["LocalExecutor", "ModalExecutor", "RayExecutor"]


def __getattr__(name: str) -> Any:  # Any: a class
    if name not in _MODULES:
        raise AttributeError(f"module 'llmquant.executors' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
