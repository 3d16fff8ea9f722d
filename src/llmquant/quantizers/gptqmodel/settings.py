"""Settings that GPTQModel reads from the environment when it is imported."""

from __future__ import annotations

import os

# On a CPU GPTQModel requests more workers than its pool has, compiles C++ at run time, and kernels for minutes.
_CPU = {"GPTQMODEL_CPU_WORKERS": "2", "GPTQMODEL_DISABLE_PACK_EXT": "1", "TORCHDYNAMO_DISABLE": "1"}


def prepare_environment(device: str) -> None:
    """Set GPTQModel's variables for a CPU, except those that the user has set; call before importing GPTQModel."""
    if device == "cpu":
        for name, value in _CPU.items():
            os.environ.setdefault(name, value)
