"""The store keeps what was written, whatever happens to the writers."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmquant.errors import OptionError, StoreError
from llmquant.storage.store import Store
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, Variant
from llmquant.study.run import Measurement, Run, Sample


def make_run(label: str = "a", **changes) -> Run:
    variant = Variant(ModelUse("m", "sha256:00"), PluginUse("llmquant/baseline", "1", {"dtype": label}, label))
    experiment = Experiment(variant, PluginUse("llmquant/x", "1", {}, "x"), Documents(3), 0)
    run = Run(experiment, "completed", (Measurement("t", "f1", 0.5),), None, {}, "2026-01-01", "2026-01-02")
    return replace(run, **changes)


SAMPLES = [
    Sample("d1", "p1", {"f1": 0.25, "em": 0.0}, "blue\nsky", "blue", "story"),
    Sample("d1", "p1", {"f1": 1.0}, None, None, "", 1),
]


def write(store: Store, run: Run, samples=None) -> bool:
    return store.commit(run, store.begin(), samples or {})


def test_a_run_reads_back_equal(tmp_path: Path):
    """What was committed is what is read."""
    store, run = Store(tmp_path), make_run()
    assert write(store, run)
    assert store.run(run.run_id) == run


def test_samples_read_back_equal_under_awkward_task_names(tmp_path: Path):
    """Scores, missing scores, texts with newlines, duplicates, and a task with slashes survive."""
    store, run = Store(tmp_path), make_run()
    write(store, run, {"mmlu/anatomy: 5%": SAMPLES})
    assert store.samples(run) == {"mmlu/anatomy: 5%": SAMPLES}


def test_the_second_writer_of_a_run_loses(tmp_path: Path):
    """The first run stays and no partial folder is left."""
    store, run = Store(tmp_path), make_run()
    assert write(store, run)
    assert not write(store, replace(run, finished_at="later"))
    assert store.run(run.run_id) == run
    assert not list((tmp_path / "runs").glob(".partial*"))


def test_a_completed_attempt_hides_failed_ones(tmp_path: Path):
    """A failed second attempt does not take a completed first one away."""
    store, run = Store(tmp_path), make_run()
    write(store, run)
    write(store, replace(run, status="failed", attempt=2))
    assert store.attempts(run.run_id) == [1, 2]
    assert store.run(run.run_id).status == "completed"


def test_partial_folders_are_no_runs(tmp_path: Path):
    """A store in which a writer was killed opens, and shows what was whole."""
    store, run = Store(tmp_path), make_run()
    write(store, run)
    store.begin()
    assert list(store.runs()) == [run.run_id]


def test_sweep_deletes_what_dead_writers_left_and_spares_the_living(tmp_path: Path):
    """Only folders of processes that are gone are deleted."""
    store = Store(tmp_path)
    alive = store.begin()
    code = f"from llmquant.storage.store import Store; Store({str(tmp_path)!r}).begin()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert len(list((tmp_path / "runs").glob(".partial*"))) == 2
    store.sweep()
    assert list((tmp_path / "runs").glob(".partial*")) == [alive]


def test_a_newer_stores_run_is_refused(tmp_path: Path):
    """A schema version of the future names itself and the cure."""
    store, run = Store(tmp_path), make_run()
    write(store, run)
    path = store.folder(run.run_id) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema_version": 99}))
    with pytest.raises(StoreError, match="99") as caught:
        store.run(run.run_id)
    assert "upgrade" in caught.value.hint


def test_an_empty_store_says_so(tmp_path: Path):
    """A folder without studies and a folder that is not there are distinguished."""
    with pytest.raises(StoreError, match="contains no study"):
        Store.existing(tmp_path)
    with pytest.raises(StoreError, match="there is no store"):
        Store.existing(tmp_path / "nowhere")


def test_a_full_disk_is_an_error_that_keeps_what_is_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The message says what to do, the partial folder goes, and earlier runs stay."""
    store, run = Store(tmp_path), make_run()
    write(store, run)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left") as caught:
        write(store, make_run("b"))
    assert "Free some space" in caught.value.hint
    assert list(store.runs()) == [run.run_id]
    assert not list((tmp_path / "runs").glob(".partial*"))


def test_jobs_of_two_processes_get_different_numbers(tmp_path: Path):
    """A number is reserved by making its file."""
    store = Store(tmp_path)
    assert [store.new_job("s")[0] for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("root", ["", "  "])
def test_a_store_without_a_name_is_refused(root: str):
    """An empty variable would mean the working folder."""
    with pytest.raises(OptionError, match="the store's path is empty"):
        Store(root)


def test_a_run_is_kept_where_its_folder_of_files_was_deleted(tmp_path: Path):
    """An evaluator may tidy up more than it made."""
    store, run = Store(tmp_path), make_run()
    partial = store.begin()
    (partial / "files").rmdir()
    assert store.commit(run, partial, {"t": SAMPLES})
    assert store.samples(run) == {"t": SAMPLES}
