"""Whether this machine has room for a study: memory for the weights on a CPU, and disk for what is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from llmquant.errors import RequestError, UnsupportedError, raise_all
from llmquant.models.info import ModelInfo
from llmquant.planning.resolve import Planned
from llmquant.plugins.executor import Executor
from llmquant.plugins.registry import Chosen
from llmquant.study.experiment import Experiment

_GIB = 2**30
_CGROUP = Path("/sys/fs/cgroup/memory.max")


def refuse_too_large(planned: Planned, missing: Sequence[Experiment], executor: Executor) -> None:
    """Refuse variants whose weights exceed this machine's memory, and downloads that exceed the disk.

    Args:
        missing: the experiments to run.

    Raises:
        RequestError: with the sizes that are needed and there.
    """
    errors: list[RequestError] = []
    for digest, info in planned.models.items():
        used = [e.variant.quantizer for e in missing if e.variant.model.digest == digest]
        if used:
            errors += _disk(info)
        if executor.device == "cpu":
            errors += (error for chosen in planned.quantizers if chosen.use in used for error in _memory(info, chosen))
    raise_all(errors)


def _memory(info: ModelInfo, chosen: Chosen) -> Iterator[RequestError]:
    needed, there = chosen.ask("weight_bytes", info, "cpu"), _memory_bytes()
    if needed is not None and needed > there:
        yield UnsupportedError(
            f"the weights of {info.source} as {chosen.use.label} take {needed / _GIB:.1f} GiB, and this machine has "
            f"{there / _GIB:.1f} GiB of memory",
            hint="Leave the variant out, or run the study elsewhere: --on modal.",
        )


def _memory_bytes() -> int:
    """Return the memory that a process can use: of the machine or its container, with swap."""
    total = psutil.virtual_memory().total
    limit = _CGROUP.read_text(encoding="ascii").strip() if _CGROUP.is_file() else ""
    return (min(total, int(limit)) if limit.isdecimal() else total) + psutil.swap_memory().total


def _disk(info: ModelInfo) -> Iterator[RequestError]:
    if info.kind != "hub" or not info.repo or not info.weight_files:
        return
    from huggingface_hub import constants, try_to_load_from_cache

    cache = Path(constants.HF_HUB_CACHE)
    found = [try_to_load_from_cache(info.repo, file, revision=info.commit) for file in info.weight_files]
    missing = sum(not isinstance(path, str) for path in found) / len(found)
    begun = sum(
        file.stat().st_size for file in cache.glob(f"models--{info.repo.replace('/', '--')}/blobs/*.incomplete")
    )
    needed = int(missing * info.disk_bytes) - begun
    free = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
    if needed > free:
        yield UnsupportedError(
            f"{info.source} is {needed / _GIB:.1f} GiB to download, and {cache} has {free / _GIB:.1f} GiB free",
            hint="Free some space, or set HF_HOME to a folder on a larger disk.",
        )
