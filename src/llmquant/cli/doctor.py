"""Check this machine: what is available, what is missing, and how to fix it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

from llmquant.errors import UnsupportedError
from llmquant.machine.hardware import GIB, built_for_cuda, cpu_name, default_device, driver_cuda_version, nvidia_gpus
from llmquant.machine.packages import installed_version, unmet_requirements
from llmquant.plugins.registry import registry
from llmquant.storage.atomic import nearest_folder
from llmquant.storage.cache import Cache
from llmquant.study.counting import counted

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
    known = registry()
    offering = counted(len({plugin.package for plugin in known.plugins}), "package")
    packages = {**known.packages(), **_OPTIONAL}
    findings = [
        Finding("ok", "python", f"{platform.python_version()} on {platform.platform()}"),
        Finding("ok", "cpu", f"{cpu_name()}, {psutil.cpu_count(logical=False)} cores, {memory.total / GIB:.0f} GiB"),
        *_gpu(),
        *(_package(name, line) for name, line in packages.items()),
        *_torch(),
        *_requirements(packages),
        _disk(cache),
        _token(),
    ]
    findings.append(Finding("ok", "plugins", f"{len(known.plugins)} from {offering}"))
    findings += [Finding("!!", "plugin package", f"{item.package}: {item.reason}") for item in known.broken]
    return findings


def _gpu() -> list[Finding]:
    try:
        gpus = nvidia_gpus()
    except UnsupportedError as error:
        return [Finding("!!", "gpu", error.message, error.hint)]
    if not gpus:
        return [Finding("--", "gpu", f"no NVIDIA GPU is visible; workers compute on {default_device()}")]
    return [
        Finding(
            "ok", f"gpu {gpu.index}", f"{gpu.name}, {gpu.used_mib} of {gpu.total_mib} MiB in use {gpu.processes or ''}"
        )
        for gpu in gpus
    ]


def _requirements(packages: Iterable[str]) -> Iterator[Finding]:
    for name, needed, found in unmet_requirements(packages):
        wanted = f"{needed.name}{needed.specifier}"
        yield Finding("!!", name, f"needs {wanted}, found {found or 'none'}", f'Run: pip install "{wanted}"')


def _torch() -> list[Finding]:
    """Compare torch's CUDA version with the driver's and with torchvision's."""
    built, vision, driver = built_for_cuda("torch"), built_for_cuda("torchvision"), driver_cuda_version()
    if built is None:
        return []
    findings = []
    if driver and not built:
        findings.append(
            Finding("!!", "torch", "is a CPU build and cannot use the GPU", "Install torch from pytorch.org.")
        )
    if driver and built and int(driver.split(".")[0]) < int(built.split(".")[0]):
        text = f"torch is built for CUDA {built}, and the NVIDIA driver runs CUDA {driver} at most"
        findings.append(Finding("!!", "driver", text, "Update the driver, or install an older build from pytorch.org."))
    if vision is not None and vision != built:
        text = f"is built for {_build(vision)} and torch for {_build(built)}: transformers cannot load most models"
        cure = f"Run: pip uninstall torchvision, or install the build for {_build(built)} from pytorch.org."
        findings.append(Finding("!!", "torchvision", text, cure))
    return findings


def _build(cuda: str) -> str:
    return f"CUDA {cuda}" if cuda else "CPUs"


def _package(name: str, line: str) -> Finding:
    version = installed_version(name)
    return Finding("--", name, "is not installed", line) if version is None else Finding("ok", name, version)


def _disk(cache: Cache) -> Finding:
    free = shutil.disk_usage(nearest_folder(cache.root)).free / GIB
    mark, cure = ("ok", "") if free > 10 else ("!!", "Set LLMQUANT_CACHE to a larger disk.")
    return Finding(mark, "cache", f"{cache.root}, {free:.0f} GiB free", cure)


def _token() -> Finding:
    from huggingface_hub import get_token

    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    more = ", HF_HUB_OFFLINE is on" if offline else ""
    if get_token():
        return Finding("ok", "hugging face", f"a Hub token is set{more}")
    return Finding("--", "hugging face", f"no Hub token is set; gated models need one{more}", "Run: hf auth login")
