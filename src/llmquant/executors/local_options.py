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
        threads: CPU threads a worker; ``None`` leaves torch's default, the physical cores.
    """

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise OptionError(f"threads must be at least 1, found {self.threads}")
