"""Options of the local executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError


@dataclass(frozen=True)
class LocalOptions:
    """Where on this machine jobs run.

    Attributes:
        device: ``auto`` takes the GPUs when there are some.
        threads: CPU threads per worker; ``None`` is ``OMP_NUM_THREADS``, else the physical cores this process may use.
        gpus_per_job: more than 1 for models that one GPU cannot hold; their layers are spread over so many.
        max_parallel: most jobs at a time; ``None`` is as many as the GPUs are enough for, and 1 on the CPU.
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
            raise OptionError(f"gpus_per_job is for CUDA GPUs; device is {self.device}")
