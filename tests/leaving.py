"""A quantizer and an embedder that leave traces in every way a package might. Imported by worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from llmquant import AppliedQuantization, EmbedderInfo, PluginSpec, Prepared

KEPT: list[object] = []


@dataclass(frozen=True)
class QuantizerOptions:
    """What is left, as keys of `LEAVES` with ``+`` between them."""

    what: str = "nothing"


@dataclass(frozen=True)
class EmbedderOptions:
    """What is left, as keys of `LEAVES` with ``+`` between them."""

    what: str = "nothing"
    checkpoint: str = ""

    def info(self, model: object) -> EmbedderInfo:
        return EmbedderInfo(4, (4,), ("text",), "cosine", "joint")


def _torch(name: str, *arguments: object) -> Callable[[], None]:
    def change() -> None:
        import torch

        getattr(torch, name)(*(getattr(torch, a) if isinstance(a, str) else a for a in arguments))

    return change


def _patch() -> None:
    import torch

    own = torch.nn.functional.silu
    torch.nn.functional.silu = lambda *arguments, **keywords: own(*arguments, **keywords) * 1


def _global_hook() -> None:
    import torch

    torch.nn.modules.module.register_module_forward_hook(lambda layer, inputs, output: None)


LEAVES: dict[str, Callable[[], object]] = {
    "nothing": lambda: None,
    "dtype": _torch("set_default_dtype", "float64"),
    "threads": _torch("set_num_threads", 2),
    "grad": _torch("set_grad_enabled", False),
    "deterministic": _torch("use_deterministic_algorithms", True),
    "global_hook": _global_hook,
    "env": lambda: os.environ.update(LEFT="1"),
    "folder": lambda: os.chdir("/"),
    "path": lambda: sys.path.insert(0, "/left"),
    "signal": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "patch": _patch,
    "child": lambda: KEPT.append(subprocess.Popen(["sleep", "600"])),
    "thread": lambda: threading.Thread(target=time.sleep, args=(600,), daemon=True, name="left behind").start(),
    "memory": lambda: KEPT.append(np.ones(50_000_000)),  # 400 MB: other tests may free some meanwhile
}


class Quantizer:
    """Loads in float32, and leaves something."""

    def __init__(self, options: QuantizerOptions) -> None:
        self._options = options

    def load_kwargs(self, model: object, ctx: object) -> dict[str, object]:
        import torch

        for what in self._options.what.split("+"):
            LEAVES[what]()
        return {"dtype": torch.float32}

    def applied(self, module: object) -> AppliedQuantization:
        from llmquant.loading.memory import stored_elements

        return AppliedQuantization("none", "float32", 32.0, "float32", stored_elements(module), 0)


class _Opened:
    def __init__(self) -> None:
        import torch

        self.module = torch.nn.Linear(2, 2, dtype=torch.bfloat16)

    def prepare(self, text: str, image: object, role: str) -> Prepared:
        return Prepared(len(text), text)

    def embed(self, batch: list[Prepared], role: str) -> list[np.ndarray]:
        found = [np.float32([len(item.inputs), 1, 1, 1]) for item in batch]
        return [vector / np.linalg.norm(vector) for vector in found]


class Embedder:
    """Opens a model of one layer, and leaves something."""

    def __init__(self, options: EmbedderOptions) -> None:
        self._options = options

    def open(self, path: object, info: object, load_kwargs: object, ctx: object) -> _Opened:
        for what in self._options.what.split("+"):
            LEAVES[what]()
        return _Opened()


QUANTIZER = PluginSpec(
    kind="quantizer",
    name="leaving",
    summary="Leaves a trace on request.",
    options="leaving:QuantizerOptions",
    target="leaving:Quantizer",
)
EMBEDDER = PluginSpec(
    kind="embedder",
    name="leaving_vectors",
    summary="Leaves a trace on request.",
    options="leaving:EmbedderOptions",
    target="leaving:Embedder",
    accepts=(),
)
