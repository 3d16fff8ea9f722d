"""Shows bitsandbytes a CPU without AVX512-BF16, in every Python process that has this folder on its path."""

from __future__ import annotations

import ctypes

_find = ctypes.CDLL.__getattr__


def _find_all_but_one(library: ctypes.CDLL, name: str) -> object:
    # What bitsandbytes asks its library; without an answer it takes the CPU for one that has no such instructions.
    if name == "has_avx512bf16_cpu":
        raise AttributeError(name)
    return _find(library, name)


ctypes.CDLL.__getattr__ = _find_all_but_one
