"""In a container, finished runs reach the Volume whatever happens to the worker: tried with a folder for a Volume."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

import llmquant as lq
from llmquant.executors.local.executor import LocalExecutor
from llmquant.executors.modal import worker as modal_worker
from llmquant.executors.shipping import bring_home, pack
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache

HERE = Path(__file__).parent


class FolderExecutor(LocalExecutor):
    """Does each job as a container would, in this process, with a folder for the Volume."""

    timeout = 3600

    def __init__(self, mount: Path) -> None:
        super().__init__(device="cpu", threads=1)
        self.mount = mount
        self.commits = 0
        self.outcomes: list[modal_worker.Outcome] = []

    def submit(self, job: Path, store: Path) -> str:
        study, number = job.parent.parent.name, int(job.stem)
        folder = self.mount / "jobs" / f"{study}-{number}"
        folder.mkdir(parents=True)
        pack(job, store, folder / "packed", with_model=True)
        order = modal_worker.Order(volume="v", key=folder.name, study=study, number=number, timeout=self.timeout)
        self.outcomes.append(modal_worker.work(order, self.mount, self._commit))
        bring_home(folder / "store", store, study, number, ended=True)
        return f"{len(self.outcomes) - 1}"

    def collect(self, job_id: str, store: Path) -> str:
        return "ended" if self.outcomes[int(job_id)]["code"] == 0 else "lost"

    def why_lost(self, job_id: str) -> str:
        return self.outcomes[int(job_id)]["why"]

    def _commit(self) -> None:
        self.commits += 1


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderExecutor]:
    monkeypatch.syspath_prepend(str(HERE))
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    import misbehaving

    before = list(registry().plugins)
    lq.register(misbehaving.SPEC)
    yield FolderExecutor(tmp_path / "volume")
    registry().plugins = before


def compare(tiny_model: Path, tmp_path: Path, executor: FolderExecutor, *evaluators: str) -> dict[str, lq.Run]:
    options = {"executor": executor, "store": tmp_path / "store", "progress": False}
    found = lq.compare(str(tiny_model), ["fp32_baseline"], evaluators, **options)
    return {run.experiment.evaluator.label: run for run in found.runs.values()}


@pytest.mark.slow
def test_a_job_ends_before_modal_ends_its_container(
    tiny_model: Path, tmp_path: Path, executor: FolderExecutor, monkeypatch: pytest.MonkeyPatch
):
    """Time is kept back to leave what was finished on the Volume."""
    marker = tmp_path / "marker"
    hang = f"misbehave(sleep, marker={marker})"

    def clock() -> float:
        # What is kept back, 30 s, begins when the second experiment has.
        return time.monotonic() + (executor.timeout - 30 if marker.exists() else 0)

    monkeypatch.setattr(modal_worker, "time", SimpleNamespace(monotonic=clock))
    runs = compare(tiny_model, tmp_path, executor, "misbehave", hang)
    assert runs["misbehave"].status == "completed"
    assert "timeout on Modal" in runs[hang].failure.message
    (folder,) = (tmp_path / "volume" / "jobs").iterdir()
    assert [path.name for path in folder.iterdir()] == ["store"]

    # The same job in a second container, as if Modal had moved it.
    study, _, _ = folder.name.rpartition("-")
    record, store = tmp_path / "store" / "studies" / study / "jobs" / "1.json", tmp_path / "elsewhere"
    copy = store / "studies" / study / "jobs" / "1.json"
    copy.parent.mkdir(parents=True)
    copy.write_bytes(record.read_bytes())
    (store / "runs").mkdir()
    assert modal_worker.take_over(folder / "store", copy, store)
    assert [e["evaluator"]["label"] for e, _ in json.loads(copy.read_text())["experiments"]] == [hang]
    assert len(list((store / "runs").iterdir())) == 1
    assert copy.with_suffix(".journal").read_bytes() == record.with_suffix(".journal").read_bytes()


def test_either_name_of_the_hub_token_is_taken(tmp_path: Path):
    """``HF_TOKEN`` wins where both are set."""
    tokens = [{"HUGGINGFACE_TOKEN": "a"}, {"HUGGINGFACE_TOKEN": "a", "HF_TOKEN": "b"}, {}]
    found = [modal_worker.environment(tmp_path, tmp_path, given).get("HF_TOKEN") for given in tokens]
    assert found == ["a", "b", None]


def make(cache: Path, name: str) -> Path:
    """Ask a cache as a worker does, for a thing of one file."""
    made = []

    def write(folder: Path) -> None:
        made.append(name)
        (folder / "weights").write_text(name)

    found = Cache(cache).get("checkpoints", name, write)
    assert (found / "weights").read_text() == name
    return found if made else found.resolve()


def test_what_one_container_made_the_next_one_finds(tmp_path: Path):
    """It is on the Volume once, whole, and is read from there; it was made on the container's own disk."""
    shared, first, second = tmp_path / "shared", tmp_path / "first", tmp_path / "second"
    modal_worker.link_made(shared, first)
    done: set[Path] = set()
    assert make(first, "a").is_relative_to(first)
    assert modal_worker.share_made(first, shared, done)
    assert not modal_worker.share_made(first, shared, done)
    modal_worker.link_made(shared, second)
    assert make(second, "a").is_relative_to(shared)
    assert not modal_worker.share_made(second, shared, set())
    assert [path.suffix != "" for path in (shared / "checkpoints").iterdir()] == [True]


def test_two_containers_that_made_the_same_do_not_write_the_same_files(tmp_path: Path):
    """A Volume keeps the last commit of a file: half of one checkpoint and half of another would be the result."""
    shared = tmp_path / "shared"
    for name in ("first", "second"):
        modal_worker.link_made(tmp_path / f"{name}-volume", tmp_path / name)
        make(tmp_path / name, "a")
        modal_worker.share_made(tmp_path / name, shared, set())
    assert len(list((shared / "checkpoints").iterdir())) == 2
    modal_worker.link_made(shared, tmp_path / "third")
    assert make(tmp_path / "third", "a").is_relative_to(shared)


def test_what_is_half_made_is_not_shared(tmp_path: Path):
    """A maker that was killed leaves nothing that counts."""
    shared, cache = tmp_path / "shared", tmp_path / "cache"
    modal_worker.link_made(shared, cache)
    with pytest.raises(RuntimeError):
        Cache(cache).get("checkpoints", "a", lambda folder: (_ for _ in ()).throw(RuntimeError))
    (cache / "checkpoints" / f".{'0' * 32}.12345678").mkdir()
    assert not modal_worker.share_made(cache, shared, set())


def test_the_worker_module_imports_no_torch_and_no_client():
    """It is imported on the calling side as well, to name its function."""
    code = "import sys, llmquant.executors.modal.worker; assert not {'torch', 'modal', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
