"""Whether this machine has room for a study: memory for weights and caches, and disk for what is downloaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from llmquant.errors import RequestError, UnsupportedError, raise_all
from llmquant.machine.hardware import GIB, MIB, nvidia_gpus
from llmquant.models.info import ModelInfo
from llmquant.planning.resolve import Planned
from llmquant.plugins.executor import Executor
from llmquant.plugins.registry import Chosen
from llmquant.storage.atomic import nearest_folder
from llmquant.study.experiment import Experiment, digest_of

_CGROUP = Path("/sys/fs/cgroup/memory.max")


def refuse_too_large(planned: Planned, missing: Sequence[Experiment], executor: Executor) -> None:
    """Refuse what certainly exceeds the memory of this machine or its GPUs, and downloads that exceed the disk.

    What certainly needs memory are a variant's weights, and in the passes of an evaluator their key-value cache.

    Args:
        missing: the experiments to run.

    Raises:
        RequestError: with the sizes that are needed and there.
    """
    errors: list[RequestError] = []
    there = memory_bytes(executor)
    evaluators = {digest_of(each.use.identity()): each for each in planned.evaluators}
    for digest, info in planned.models.items():
        mine = [e for e in missing if e.variant.model.digest == digest]
        if mine:
            errors += _disk(info)
        for chosen in planned.quantizers:
            used = [evaluators[digest_of(e.evaluator.identity())] for e in mine if e.variant.quantizer == chosen.use]
            if used and there is not None:
                errors += _memory(info, chosen, used, executor, there)
    raise_all(errors)


def _memory(
    info: ModelInfo, chosen: Chosen, evaluators: Sequence[Chosen], executor: Executor, there: int
) -> Iterator[RequestError]:
    weights = chosen.ask("weight_bytes", info, executor.device)
    if weights is None:
        return
    has = f"{executor.hardware if executor.device == 'cuda' else 'this machine'} has {there / GIB:.1f} GiB of memory"
    if weights > there:
        yield UnsupportedError(
            f"the weights of {info.source} as {chosen.use.label} take {weights / GIB:.1f} GiB, and {has}",
            hint="Leave the variant out, or run the study elsewhere: --on modal.",
        )
        return
    # Layers with a sliding window keep less than all tokens; two bytes per number are the least.
    per_token = 0 if info.embedder or info.text_config.get("sliding_window") else info.kv_bytes_per_token(2)
    for evaluator in evaluators:
        cache = (evaluator.ask("cached_tokens") or 0) * per_token
        if weights + cache > there:
            yield UnsupportedError(
                f"{evaluator.use.label} of {info.source} as {chosen.use.label} needs {weights / GIB:.1f} GiB for the "
                f"weights and {cache / GIB:.1f} GiB for the key-value cache, and {has}",
                hint="Use a smaller batch or shorter prompts.",
            )


def memory_bytes(executor: Executor) -> int | None:
    """Return the memory that a job on this machine can use, in bytes; ``None`` if it is unknown.

    On a CPU that is the memory of the machine or its container, with swap; on GPUs that of the GPUs of a job.
    """
    if executor.outlives or executor.installs or executor.device == "mps":
        return None
    if executor.device == "cuda":
        gpus = nvidia_gpus()
        return len(gpus) // max(1, executor.slots) * max((gpu.total_mib for gpu in gpus), default=0) * MIB or None
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
    free = shutil.disk_usage(nearest_folder(cache)).free
    if needed > free:
        yield UnsupportedError(
            f"{info.source} is {needed / GIB:.1f} GiB to download, and {cache} has {free / GIB:.1f} GiB free",
            hint="Free some space, or set HF_HOME to a folder on a larger disk.",
        )
