"""A run's provenance: versions, device, threads; never a token or all environment variables."""

from __future__ import annotations

import functools
import platform
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.machine.packages import MEASURING, installed_versions
from llmquant.study.call import Json

if TYPE_CHECKING:
    from llmquant.plugins.evaluator import LoadedModel
    from llmquant.retrieval.loaded import LoadedEmbedder


def provenance(subject: LoadedModel | LoadedEmbedder | None) -> dict[str, Json]:
    """Describe this process and its loaded model, if any."""
    import torch

    from llmquant.loading.quantized import read_recipe

    found: dict[str, Json] = {
        "packages": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "git_commit": _git_commit(),
    }
    if subject is not None:
        cuda = subject.device == "cuda"
        found |= {
            "device": torch.cuda.get_device_name() if cuda else subject.device,
            "cuda": torch.version.cuda if cuda else None,
            "dtype": next((str(p.dtype).removeprefix("torch.") for p in subject.module.parameters()), None),
            "load_seconds": subject.load.seconds,
            "load_peak_bytes": subject.load.peak_bytes,
            "changed_while_loading": list(subject.load.changed),
            "model_note": subject.info.note,
            "checkpoint": None if subject.path is None else read_recipe(subject.path),
        }
    return found


def _versions() -> dict[str, str]:
    from llmquant.plugins.registry import registry

    known = registry()
    return _installed((*MEASURING, *known.packages(), *(plugin.package for plugin in known.plugins)))


@functools.cache
def _installed(packages: tuple[str, ...]) -> dict[str, str]:
    return installed_versions(packages)  # 0.1 s for all, and every task's result has them


@functools.cache
def _git_commit() -> str | None:
    """Return the commit of llmquant's own checkout; ``None`` when it was installed from a wheel."""
    root = Path(__file__).parents[3]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
