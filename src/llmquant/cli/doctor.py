"""Check this machine: what is available, what is missing, and how to fix it."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass

import psutil

from llmquant.errors import UnsupportedError
from llmquant.machine.hardware import cpu_name, default_device, nvidia_gpus, torch_build
from llmquant.machine.packages import installed_version
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache

# Packages that no plugin needs, each with the line that installs it.
_OPTIONAL = {"pandas": 'pip install "llmquant[frame]"'}


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        mark: ``ok``, ``--`` for an optional thing that is missing, ``!!`` for a problem to fix.
        cure: how to fix the problem; empty if there is none.
    """

    mark: str
    subject: str
    text: str
    cure: str = ""


def examine() -> list[Finding]:
    """Check everything that commonly fails, without importing torch or transformers."""
    memory = psutil.virtual_memory()
    cache = Cache.default()
    findings = [
        Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("ok", "cpu", f"{cpu_name()}, {psutil.cpu_count(logical=False)} cores, {memory.total / 2**30:.0f} GiB"),
        *_gpu(),
        *(_package(name, line) for name, line in {**registry().packages(), **_OPTIONAL}.items()),
        _disk(cache),
        _token(),
    ]
    known = registry()
    findings.append(
        Finding("ok", "plugins", f"{len(known.plugins)} from {len({p.package for p in known.plugins})} packages")
    )
    findings += [Finding("!!", "plugin package", f"{item.package}: {item.reason}") for item in known.broken]
    return findings


def _gpu() -> list[Finding]:
    try:
        gpus = nvidia_gpus()
    except UnsupportedError as error:
        return [Finding("!!", "gpu", error.message, error.hint)]
    if not gpus:
        return [Finding("--", "gpu", f"no NVIDIA GPU is visible; workers compute on {default_device()}")]
    findings = [
        Finding(
            "ok", f"gpu {gpu.index}", f"{gpu.name}, {gpu.used_mib} of {gpu.total_mib} MiB in use {gpu.processes or ''}"
        )
        for gpu in gpus
    ]
    if torch_build() == "cpu":
        findings.append(
            Finding("!!", "torch", "is a CPU build and cannot use the GPU", "Install torch from pytorch.org.")
        )
    return findings


def _package(name: str, line: str) -> Finding:
    version = installed_version(name)
    return Finding("--", name, "is not installed", line) if version is None else Finding("ok", name, version)


def _disk(cache: Cache) -> Finding:
    folder = next(parent for parent in (cache.root, *cache.root.parents) if parent.exists())
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{cache.root}, {free:.0f} GiB free"
    return Finding(
        "ok" if free > 10 else "!!", "cache", text, "" if free > 10 else "Set LLMQUANT_CACHE to a larger disk."
    )


def _token() -> Finding:
    from huggingface_hub import get_token

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    state = "a Hub token is set" if get_token() else "no Hub token is set; gated models need one"
    cure = "" if get_token() else "Run: hf auth login"
    return Finding(
        "ok" if get_token() else "--", "hugging face", state + (", HF_HUB_OFFLINE is on" if offline else ""), cure
    )
