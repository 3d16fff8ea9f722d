"""Options of the Ray executor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import OptionError


@dataclass(frozen=True)
class RayOptions:
    """The Ray cluster of a study, and the resources of each job.

    Attributes:
        address: ``auto`` is the running cluster that Ray finds, or a new one on this machine for the study; ``local``
            always starts one; any other value is passed to ``ray.init``, for example ``ray://host:10001``.
        device: device of the workers; ``auto`` uses GPUs if the cluster has any.
        num_gpus: GPUs per job, for example 1 or 0.5; ``None`` is 1 on ``cuda`` and 0 otherwise.
        num_cpus: CPUs per job, for example 4.
        threads: CPU threads per job; ``None`` is `num_cpus`.
        max_parallel: maximum number of simultaneous jobs; ``None`` is as many as the cluster has room for.
        accelerator_type: Ray's name of the GPU type, for example ``A100``, for a cluster with several types.
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
            raise OptionError("device=cuda requires num_gpus above 0")

    @property
    def worker_threads(self) -> int:
        """CPU threads per job."""
        return self.threads or max(1, int(self.num_cpus))
