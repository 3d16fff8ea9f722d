"""Options of the Modal executor, and the dated price table of Modal's GPUs."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmquant.errors import OptionError, UnknownNameError, nearest

# Prices of A10, A100, H200, B200 and memory were published in 2025, the other prices in the month of `PRICES_DATE`.
PRICES_DATE = "2026-05"
CPU_CORE_DOLLARS_AN_HOUR = 0.0473
MEMORY_GIB_DOLLARS_AN_HOUR = 0.0080
# Limits of a job's timeout in seconds: a shorter job could not load a model, and Modal ends a longer one.
SHORTEST_S, LONGEST_S = 60, 86400


@dataclass(frozen=True)
class GpuKind:
    """A GPU type of Modal.

    Attributes:
        asked: the name requested from Modal. For a plain ``A100`` or ``H100``, Modal may give a larger GPU, with other
            timings and memory.
        dollars_an_hour: list price per GPU, in dollars per hour, as of `PRICES_DATE`, without CPU and memory.
        most: maximum number of GPUs per container.
    """

    asked: str
    dollars_an_hour: float
    most: int = 8


GPUS: dict[str, GpuKind] = {
    "T4": GpuKind("T4", 0.59),
    "L4": GpuKind("L4", 0.80),
    "A10": GpuKind("A10", 1.10, most=4),
    "L40S": GpuKind("L40S", 1.95),
    "A100": GpuKind("A100-40GB", 2.10),
    "A100-80GB": GpuKind("A100-80GB", 2.50),
    "H100": GpuKind("H100!", 3.95),
    "H200": GpuKind("H200", 4.54),
    "B200": GpuKind("B200", 6.25),
}
_OTHER_NAMES = {"A10G": "A10", "A100-40GB": "A100", "H100!": "H100"}


@dataclass(frozen=True)
class GpuRequest:
    """A GPU type and count that a job may run on.

    Attributes:
        name: a key of `GPUS`.
        count: GPUs per job.
    """

    name: str
    count: int

    @property
    def kind(self) -> GpuKind:
        """The row of the table."""
        return GPUS[self.name]

    @property
    def asked(self) -> str:
        """The GPU specification for Modal; empty for no GPU."""
        if not self.count:
            return ""
        return self.kind.asked if self.count == 1 else f"{self.kind.asked}:{self.count}"

    def __str__(self) -> str:
        if not self.count:
            return "CPU only"
        return self.name if self.count == 1 else f"{self.count} x {self.name}"


NO_GPU = GpuRequest("none", 0)


def parse_gpu(text: str) -> GpuRequest:
    """Parse ``L40S``, ``A100-80GB:2`` or ``none``, ignoring case.

    Raises:
        UnknownNameError: if the GPU type is missing from the table.
        OptionError: if the count is not a number, or too large for one container.
    """
    if text.strip().lower() == NO_GPU.name:
        return NO_GPU
    name, colon, number = text.strip().upper().partition(":")
    name = _OTHER_NAMES.get(name, name)
    if name not in GPUS:
        raise UnknownNameError(f"unknown Modal GPU {text!r}", hint=nearest(name, GPUS))
    if colon and not re.fullmatch(r"[1-9]\d*", number):
        raise OptionError(f"gpu {text!r}: {number!r} is not a number of GPUs", hint=f"Write {name} or {name}:2.")
    count = int(number) if colon else 1
    if count > GPUS[name].most:
        raise OptionError(f"gpu {text!r}: one container can have at most {GPUS[name].most} {name} GPUs")
    return GpuRequest(name, count)


@dataclass(frozen=True)
class ModalOptions:
    """The resources of jobs on Modal, and their maximum cost.

    Attributes:
        gpu: GPU types, for example ``L40S`` or ``A100-80GB:2``; Modal uses the first free type of several. ``none``
            runs on the containers' CPUs.
        timeout: maximum time per job in seconds, 60 to 86400; Modal then ends the job, and finished runs are kept.
        max_parallel: maximum number of simultaneous jobs, for example 4.
        volume: name of the Volume for models, caches and unfinished work; created if missing.
        secret: name of the secret with ``HF_TOKEN`` (or ``HUGGINGFACE_TOKEN``); empty for none.
        budget: maximum cost in dollars, for example 20, including the jobs that this executor ran before.
        yes: confirm the maximum cost without asking.
        app: prefix of the app's name on Modal.
        python_version: Python version of the containers, for example ``3.12``; empty for this program's version.
        packages: additional packages to install, each as ``name==version`` or ``name @ git+URL@COMMIT``.
        cpus: CPU cores per job, for example 4; Modal charges them in addition to the GPU.
        memory_gib: memory per job in GiB, for example 32; Modal charges it in addition to the GPU.
        ship_model: send a local checkpoint's folder of any size.
    """

    gpu: tuple[str, ...] = ("A100",)
    timeout: int = 3600
    max_parallel: int = 4
    volume: str = "llmquant"
    secret: str = "huggingface-secret"
    budget: float | None = None
    yes: bool = False
    app: str = "llmquant"
    python_version: str = ""
    packages: tuple[str, ...] = ()
    cpus: int = 4
    memory_gib: int = 32
    ship_model: bool = False

    def __post_init__(self) -> None:
        if not self.gpu:
            raise OptionError("gpu is empty", hint=f"Known: {', '.join(GPUS)}.")
        asked = [request.asked for request in self.gpus]
        if len(set(asked)) < len(asked):
            raise OptionError(f"gpu contains a GPU twice: {', '.join(self.gpu)}")
        if len(asked) > 1 and "" in asked:
            raise OptionError(f"gpu contains 'none' and GPUs: {', '.join(self.gpu)}", hint="Give gpu=none alone.")
        if not SHORTEST_S <= self.timeout <= LONGEST_S:
            raise OptionError(f"timeout must be from {SHORTEST_S} to {LONGEST_S} s, found {self.timeout}")
        for name in ("max_parallel", "cpus", "memory_gib"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} must be at least 1, found {getattr(self, name)}")
        if self.budget is not None and self.budget <= 0:
            raise OptionError(f"budget must be above 0 dollars, found {self.budget:g}")
        for name in ("volume", "app"):
            if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,62}", getattr(self, name)):
                raise OptionError(
                    f"{name} {getattr(self, name)!r} is not a valid name", hint="Use letters, digits, '_', '-' and '.'."
                )
        if self.python_version and not re.fullmatch(r"3\.\d+", self.python_version):
            raise OptionError(f"python_version {self.python_version!r} is not a version such as 3.12")

    @property
    def gpus(self) -> tuple[GpuRequest, ...]:
        """The GPUs in order of preference."""
        return tuple(parse_gpu(text) for text in self.gpu)
