"""Evaluators that go wrong in every way a worker can, for tests of the scheduler. Imported by worker processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmquant import Context, LoadedModel, Measurement, PluginSpec, Result


@dataclass(frozen=True)
class MisbehaveOptions:
    """How to go wrong; `marker` is a file that is written when the evaluator starts."""

    how: Literal["not", "raise", "exit", "kill", "sleep", "sleep_once", "oom", "return_objects"] = "not"
    marker: str = ""
    tag: str = ""


class Misbehave:
    def __init__(self, options: MisbehaveOptions) -> None:
        self._options = options

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        import torch

        print("about to misbehave with hf_abcdefghijklmnopqrstuvwxyz")
        if self._options.marker:
            with Path(self._options.marker).open("a") as stream:
                stream.write(f"{self._options.how}{self._options.tag}\n")
        how = self._options.how
        if how == "raise":
            raise ValueError("this evaluator raises")
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        once = how == "sleep_once" and Path(self._options.marker).read_text().count(how) == 1
        if how == "sleep" or once:
            time.sleep(600)
        if how == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        ctx.progress(1, 1)
        parameters = float(sum(p.numel() for p in subject.module.parameters()))
        details = {"module": subject.module} if how == "return_objects" else {}
        return [Result("misbehave", [Measurement("misbehave", "parameters", parameters)], details=details)]


SPEC = PluginSpec(
    kind="evaluator",
    name="misbehave",
    summary="Goes wrong on request.",
    options="misbehaving:MisbehaveOptions",
    target="misbehaving:Misbehave",
)
