"""Options of the Modal executor, and the dated table of the GPUs that Modal rents."""

from __future__ import annotations

import re
from dataclasses import dataclass

from llmquant.errors import OptionError, UnknownNameError, nearest

# A10, A100, H200, B200 and memory are as published in 2025, the others as in that month.
PRICES_DATE = "2026-05"
CPU_CORE_DOLLARS_AN_HOUR = 0.0473
MEMORY_GIB_DOLLARS_AN_HOUR = 0.0080
# Of a job, in seconds: below, nothing would be loaded; above, Modal ends it.
SHORTEST_S, LONGEST_S = 60, 86400


@dataclass(frozen=True)
class GpuKind:
    """A kind of GPU that Modal rents.

    Attributes:
        asked: what Modal is asked for. A plain ``A100`` or ``H100`` may be given a larger one, which would make
            timings and memory those of another GPU.
        memory_gib: of one GPU.
        dollars_an_hour: of one GPU, as listed in `PRICES_DATE`; processor and memory come on top.
        most: how many one container can have.
    """

    asked: str
    memory_gib: int
    dollars_an_hour: float
    most: int = 8


GPUS: dict[str, GpuKind] = {
    "T4": GpuKind("T4", 16, 0.59),
    "L4": GpuKind("L4", 24, 0.80),
    "A10": GpuKind("A10", 24, 1.10, most=4),
    "L40S": GpuKind("L40S", 48, 1.95),
    "A100": GpuKind("A100-40GB", 40, 2.10),
    "A100-80GB": GpuKind("A100-80GB", 80, 2.50),
    "H100": GpuKind("H100!", 80, 3.95),
    "H200": GpuKind("H200", 141, 4.54),
    "B200": GpuKind("B200", 192, 6.25),
}
_OTHER_NAMES = {"A10G": "A10", "A100-40GB": "A100", "H100!": "H100"}


@dataclass(frozen=True)
class GpuRequest:
    """One of the GPUs a job may run on.

    Attributes:
        name: a key of `GPUS`.
        count: GPUs a job.
    """

    name: str
    count: int

    @property
    def kind(self) -> GpuKind:
        """The row of the table."""
        return GPUS[self.name]

    @property
    def asked(self) -> str:
        """What Modal is asked for; empty for none."""
        if not self.count:
            return ""
        return self.kind.asked if self.count == 1 else f"{self.kind.asked}:{self.count}"

    def __str__(self) -> str:
        if not self.count:
            return "processors alone"
        return self.name if self.count == 1 else f"{self.count} x {self.name}"


NO_GPU = GpuRequest("none", 0)


def parse_gpu(text: str) -> GpuRequest:
    """Read ``L40S``, ``A100-80GB:2`` or ``none``; upper and lower case mean the same.

    Raises:
        UnknownNameError: if the table has no such GPU.
        OptionError: if the number is no number, or one container cannot have so many.
    """
    if text.strip().lower() == NO_GPU.name:
        return NO_GPU
    name, colon, number = text.strip().upper().partition(":")
    name = _OTHER_NAMES.get(name, name)
    if name not in GPUS:
        raise UnknownNameError(f"Modal has no GPU {text!r} that is known here", hint=nearest(name, GPUS))
    if colon and not re.fullmatch(r"[1-9]\d*", number):
        raise OptionError(f"gpu {text!r}: {number!r} is no number of GPUs", hint=f"Write {name} or {name}:2.")
    count = int(number) if colon else 1
    if count > GPUS[name].most:
        raise OptionError(f"gpu {text!r}: one container has at most {GPUS[name].most} of {name}")
    return GpuRequest(name, count)


@dataclass(frozen=True)
class ModalOptions:
    """Where on Modal jobs run, and what they may cost.

    Attributes:
        gpu: such as ``L40S`` or ``A100-80GB:2``; of several, Modal takes the first that is free. ``none`` computes on
            the containers' processors.
        timeout: longest time of one job, in seconds; Modal ends it then, and what was finished is kept.
        max_parallel: jobs at a time.
        volume: the Volume that holds models, caches and unfinished work; it is made if there is none.
        secret: the secret with ``HF_TOKEN`` (``HUGGINGFACE_TOKEN`` is taken too); empty for none.
        budget: dollars that may be spent in the worst case, with all that this executor ran before.
        yes: whatever the worst case costs is agreed to.
        app: what the name begins with under which Modal lists it.
        python_version: of the containers, such as ``3.12``; empty for the one that runs here.
        packages: more to install there, each as ``name==version`` or ``name @ git+URL@COMMIT``.
        cpus: processor cores a job, paid beside the GPU.
        memory_gib: memory a job, paid beside the GPU.
        ship_model: send a local checkpoint's folder, however large.
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
            raise OptionError("gpu names none", hint=f"Known: {', '.join(GPUS)}.")
        asked = [request.asked for request in self.gpus]
        if len(set(asked)) < len(asked):
            raise OptionError(f"gpu names one twice: {', '.join(self.gpu)}")
        if len(asked) > 1 and "" in asked:
            raise OptionError(f"gpu names none beside others: {', '.join(self.gpu)}", hint="Give gpu=none alone.")
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
                    f"{name} {getattr(self, name)!r} is no name", hint="Use letters, digits, '_', '-' and '.'."
                )
        if self.python_version and not re.fullmatch(r"3\.\d+", self.python_version):
            raise OptionError(f"python_version {self.python_version!r} is not like 3.12")

    @property
    def gpus(self) -> tuple[GpuRequest, ...]:
        """The GPUs in the order of preference."""
        return tuple(parse_gpu(text) for text in self.gpu)
