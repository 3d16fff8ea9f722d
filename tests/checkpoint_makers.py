"""A quantizer that writes checkpoints, and goes wrong on request; imported by the processes that make them."""

from __future__ import annotations

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmquant import AppliedQuantization, PluginSpec
from llmquant.errors import UnsupportedError


@dataclass(frozen=True)
class CopyOptions:
    """How to go wrong; each start adds a line to the file `marker`."""

    how: Literal["not", "raise", "refuse", "kill", "sleep", "oom", "elsewhere"] = "not"
    marker: str = ""
    lies: bool = False

    def requests(self):
        return {"bits": 4.0} if self.lies else {}


class Copy:
    """Writes the checkpoint as it was."""

    def __init__(self, options: CopyOptions) -> None:
        self._options = options

    def prepare(self, model, out, ctx):
        import torch

        print("the engine speaks")
        (out / "half.bin").write_bytes(b"half")
        if self._options.marker:
            with Path(self._options.marker).open("a") as stream:
                stream.write(f"{os.getpid()}\n")
        how = self._options.how
        if how == "raise":
            raise ValueError("the Hessian is not positive definite")
        if how == "refuse":
            raise UnsupportedError("this model cannot be copied", hint="Try another.")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "sleep":
            time.sleep(600)
        if how == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if how == "elsewhere":
            return model
        for layer in (1, 2):
            ctx.progress(layer, 2)
        (out / "half.bin").unlink()
        shutil.copytree(model, out, dirs_exist_ok=True)
        return out

    def load_kwargs(self, model, ctx):
        return {}

    def applied(self, module):
        from llmquant.loading.memory import stored_elements

        return AppliedQuantization("none", "float32", 32, "float32", stored_elements(module), 0)


SPEC = PluginSpec(
    kind="quantizer",
    name="copy",
    summary="Writes the checkpoint as it was.",
    options="checkpoint_makers:CopyOptions",
    target="checkpoint_makers:Copy",
    checkpoint=True,
)
