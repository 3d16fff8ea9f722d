"""Settings that GPTQModel reads from the environment when it is imported."""

from __future__ import annotations

import os

# On a CPU it asks for more workers than its pool has, compiles C++ at run time, and compiles kernels for minutes.
_CPU = {"GPTQMODEL_CPU_WORKERS": "2", "GPTQMODEL_DISABLE_PACK_EXT": "1", "TORCHDYNAMO_DISABLE": "1"}


def prepare_environment(device: str) -> None:
    """Set what GPTQModel needs on a CPU; what the user has set stays. Call before it is imported."""
    if device == "cpu":
        for name, value in _CPU.items():
            os.environ.setdefault(name, value)
