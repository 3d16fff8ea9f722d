"""Options of the Ray executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError


@dataclass(frozen=True)
class RayOptions:
    """Which Ray cluster jobs run on, and what each of them takes of it.

    Attributes:
        address: ``auto`` is the running cluster that Ray finds, or else one on this machine, started for the study;
            ``local`` always starts one; all else is given to ``ray.init``.
        device: ``auto`` takes GPUs when the cluster has some.
        num_gpus: of a job; ``None`` is 1 on ``cuda`` and 0 elsewhere.
        num_cpus: of a job.
        threads: CPU threads of a job; ``None`` is `num_cpus`.
        max_parallel: most jobs at a time; ``None`` is as many as the cluster has room for.
        accelerator_type: Ray's name of the GPUs to use, such as ``A100``, where a cluster has several kinds.
    """

    address: str = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_gpus: float | None = None
    num_cpus: float = 1.0
    threads: int | None = None
    max_parallel: int | None = None
    accelerator_type: str = ""

    def __post_init__(self) -> None:
        if self.num_gpus is not None and self.num_gpus < 0:
            raise OptionError(f"num_gpus must not be negative, found {self.num_gpus:g}")
        if self.num_cpus <= 0:
            raise OptionError(f"num_cpus must be more than 0, found {self.num_cpus:g}")
        for name in ("threads", "max_parallel"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{name} must be at least 1, found {value}")
        if self.device == "cuda" and self.num_gpus == 0:
            raise OptionError("device=cuda needs num_gpus above 0")

    @property
    def worker_threads(self) -> int:
        """CPU threads of a job."""
        return self.threads or max(1, int(self.num_cpus))
