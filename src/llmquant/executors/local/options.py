"""Options of the local executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError


@dataclass(frozen=True)
class LocalOptions:
    """Where on this machine jobs run.

    Attributes:
        device: device of the workers, for example ``cpu``; ``auto`` uses the GPUs if there are any.
        threads: CPU threads per worker, for example 4; ``None`` is ``OMP_NUM_THREADS``, else the number of physical
            cores available to this process.
        gpus_per_job: GPUs per job, for example 2 if a model is too large for one GPU; its layers are then split.
        max_parallel: maximum simultaneous jobs, for example 2; ``None`` is as many as the GPUs allow, and 1 on
            the CPU.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None
    gpus_per_job: int = 1
    max_parallel: int | None = None

    def __post_init__(self) -> None:
        for name in ("threads", "gpus_per_job", "max_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, found {value}")
        if self.gpus_per_job > 1 and self.device in ("cpu", "mps"):
            raise OptionError(f"gpus_per_job requires CUDA GPUs, but device is {self.device}")
