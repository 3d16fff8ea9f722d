"""A study that this machine has no room for is refused before anything is downloaded."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from huggingface_hub import constants

import llmquant as lq
from llmquant.executors import LocalExecutor
from llmquant.planning import room
from llmquant.planning.resolve import Planned, resolve
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.study import Study

CPU = LocalExecutor(device="cpu", threads=1)


@pytest.fixture
def planned(tiny_model: Path, tmp_path: Path) -> Planned:
    study = Study.of(str(tiny_model), ["fp32_baseline", "bnb_4bit_nf4"], ["memory"])
    return resolve(study, registry(), Cache(tmp_path / "cache"), CPU)


def test_weights_that_exceed_the_memory_are_refused(planned: Planned, monkeypatch: pytest.MonkeyPatch):
    """Only the variants that are too large are named, with both sizes; a stored variant is not counted."""
    info = next(iter(planned.models.values()))
    full, small = (chosen.ask("weight_bytes", info, "cpu") for chosen in planned.quantizers)
    monkeypatch.setattr(room, "memory_bytes", lambda executor: (full + small) // 2)
    experiments = planned.record.experiments
    with pytest.raises(
        lq.errors.UnsupportedError, match=r"as fp32_baseline take 0.0 GiB, and this machine has 0.0 GiB"
    ):
        room.refuse_too_large(planned, experiments, CPU)
    room.refuse_too_large(planned, [e for e in experiments if e.variant.quantizer.label == "bnb_4bit_nf4"], CPU)


def test_a_key_value_cache_that_exceeds_the_memory_is_refused(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of 64 prompts it takes more than the weights; one byte more of memory is enough, and a window keeps less."""
    study = Study.of(str(tiny_model), "fp32_baseline", ["memory", "throughput(batches=64, prompt_tokens=512)"])
    planned = resolve(study, registry(), Cache(tmp_path / "cache"), CPU)
    (info,) = planned.models.values()
    weights = planned.quantizers[0].ask("weight_bytes", info, "cpu")
    needed = weights + 64 * (512 + 64) * info.kv_bytes_per_token(2)
    monkeypatch.setattr(room, "memory_bytes", lambda executor: needed - 1)
    with pytest.raises(lq.errors.UnsupportedError, match=r"throughput.* GiB for the key-value cache, and this machine"):
        room.refuse_too_large(planned, planned.record.experiments, CPU)
    info.config["sliding_window"] = 16
    room.refuse_too_large(planned, planned.record.experiments, CPU)
    del info.config["sliding_window"]
    monkeypatch.setattr(room, "memory_bytes", lambda executor: needed)
    room.refuse_too_large(planned, planned.record.experiments, CPU)


def test_a_job_has_the_memory_of_its_gpus(monkeypatch: pytest.MonkeyPatch):
    """Four GPUs are two jobs of two GPUs each; where jobs run elsewhere, the memory is unknown."""
    monkeypatch.setattr(room, "nvidia_gpus", lambda: [SimpleNamespace(total_mib=1000)] * 4)
    here = {"device": "cuda", "slots": 2, "outlives": False, "installs": False}
    assert room.memory_bytes(SimpleNamespace(**here)) == 2000 * 2**20
    assert room.memory_bytes(SimpleNamespace(**{**here, "installs": True})) is None


def test_a_container_has_its_own_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Of machine and container the smaller memory counts; ``max`` is no limit."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=5))
    monkeypatch.setattr(room, "_CGROUP", tmp_path / "memory.max")
    found = []
    for limit in ("max\n", "30\n", "500\n"):
        (tmp_path / "memory.max").write_text(limit)
        found.append(room.memory_bytes(CPU))
    assert found == [105, 35, 105]


def test_a_download_that_exceeds_the_disk_is_refused(planned: Planned, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """What an interrupted download has left already counts as there."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * 2**30))
    (local,) = planned.models.values()
    hub = replace(local, source="org/m", kind="hub", location=None, repo="org/m", commit="0" * 40, disk_bytes=4 * 2**30)
    there = replace(planned, models={hub.digest: hub})
    with pytest.raises(lq.errors.UnsupportedError, match=r"org/m is 4.0 GiB to download, and .* has 3.0 GiB free"):
        room.refuse_too_large(there, planned.record.experiments, CPU)
    begun = tmp_path / "hub" / "models--org--m" / "blobs" / "a.incomplete"
    begun.parent.mkdir(parents=True)
    with begun.open("wb") as stream:
        stream.truncate(2**30)  # sparse
    room.refuse_too_large(there, planned.record.experiments, CPU)
