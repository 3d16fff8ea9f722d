"""Stores and portable files that are damaged or somebody else's: one clear error each, and the rest is shown."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmquant.errors import DamagedError, StoreError
from llmquant.results.comparison import Comparison
from llmquant.storage.journal import JobRecord, read_journal
from llmquant.storage.store import Store, write_json
from llmquant.study.job import Job
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run
from made_up import BASELINE, MadeUpStudy, completed, experiment, scored

TASK = "coqa"
Change = Callable[[dict[str, Any]], object]


def a_store(root: Path) -> tuple[Store, MadeUpStudy]:
    """Write a baseline and one variant with their samples and a job."""
    store, study = Store(root), MadeUpStudy()
    for label, scores in ((BASELINE, [1, 0, 1, 1]), ("nf4", [1, 0, 0, 1])):
        mean, samples = scored(TASK, "f1", scores)
        run = completed(experiment(label, "lm_eval(coqa)"), mean)
        study.add(run, {TASK: samples})
        store.commit(run, store.begin(), {TASK: samples})
    record = study.record
    store.write_study(record.study_id, record.to_json())
    number, path = store.new_job(record.study_id)
    experiments = tuple((e.to_json(), 1) for e in record.experiments)
    job = Job(record.study_id, number, record.experiments[0].variant.model.to_json(), experiments)
    write_json(path, JobRecord(job, "1", ended=True, dollars=2.0).to_json())
    return store, study


def change(path: Path, how: Change) -> None:
    data = json.loads(path.read_text())
    how(data)
    path.write_text(json.dumps(data))


def run_file(store: Store, study: MadeUpStudy, index: int = 1) -> Path:
    return store.folder(study.experiments[index].run_id) / "run.json"


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda d: d["measurements"][0].update(value="0.5"), r"value must be a finite number, found '0.5'"),
        (lambda d: d["measurements"][0].update(value=True), r"value must be a finite number, found True"),
        (lambda d: d["measurements"][0].update(stderr=-1), r"stderr must be at least 0, found -1"),
        (lambda d: d["measurements"][0].update(n=1.5), r"n must be a whole number, found 1.5"),
        (lambda d: d["measurements"].append(3), r"measurements\[1\]|a measurement cannot be read"),
        (lambda d: d["experiment"].update(seed=None), r"seed must be a whole number, found None"),
        (lambda d: d["experiment"].update(seed=1), r"says that it is '[0-9a-f]{20}'"),
        (lambda d: d["experiment"]["quantizer"].update(options=[]), r"quantizer.options must be a table"),
        (lambda d: d.update(attempt=0), r"attempt must be at least 1, found 0"),
        (lambda d: d.update(attempt=7), r"attempt 7 of run"),
        (lambda d: d.update(status="done"), r"status is 'done'"),
        (lambda d: d.update(started_at="yesterday"), r"times cannot be read"),
        (lambda d: d.update(finished_at="2026-11-20"), r"times cannot be read"),
        (lambda d: d.update(applied={"compute_dtype": ["a"]}), r"applied.compute_dtype must be a text"),
        (lambda d: d.update(details=3), r"details must be a table"),
        (lambda d: d.update(provenance={"x": 10**400}), r"provenance.x must be"),
        (lambda d: d.update(provenance={"x": "\ud800"}), r"provenance.x must be a text"),
        (lambda d: d.update(surprise=1), r"no key 'surprise'"),
        (lambda d: d.pop("failure") or d.pop("measurements"), r"measurements is missing"),
    ],
)
def test_a_run_is_checked_as_a_request_is(tmp_path: Path, how: Change, named: str):
    """Every type, range and name is checked; the error names the file, the field, what was found and what to do."""
    store, study = a_store(tmp_path)
    change(run_file(store, study), how)
    with pytest.raises(DamagedError, match=named) as caught:
        store.run(study.experiments[1].run_id)
    assert str(run_file(store, study)) in caught.value.message
    assert "Delete its run's folder" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}', "null", "\x00" * 100, "\ufeff{}"]
)
def test_what_is_not_a_run_at_all_is_one_error(tmp_path: Path, text: str):
    """An empty, cut, deep, ambiguous or other file is an error of the store and no traceback."""
    store, study = a_store(tmp_path)
    run_file(store, study).write_text(text)
    with pytest.raises(DamagedError, match=r"run\.json"):
        store.run(study.experiments[1].run_id)


def test_a_pipe_in_a_store_is_not_waited_for(tmp_path: Path):
    """What is not a file is refused rather than opened."""
    store, study = a_store(tmp_path)
    run_file(store, study).unlink()
    os.mkfifo(run_file(store, study))
    with pytest.raises(DamagedError, match="it is not a file"):
        store.run(study.experiments[1].run_id)


def test_a_damaged_run_does_not_end_the_report_of_the_others(tmp_path: Path):
    """It is missing, which a note says with the file, the reason and what to do."""
    store, study = a_store(tmp_path)
    run_file(store, study).write_text("{")
    found = Comparison.from_store(store)
    assert [row.status for row in found.rows() if row.run_id] == ["completed", "missing"]
    text = found.to_text(width=400)
    assert "nf4 · lm_eval(coqa) is missing" in text
    assert "run.json" in text
    assert "Delete its run's folder; the run is made again." in text


def test_a_readable_attempt_is_taken_where_another_is_damaged(tmp_path: Path):
    """A damaged second attempt does not hide the first."""
    store, study = a_store(tmp_path)
    second = store.folder(study.experiments[1].run_id, 2)
    second.mkdir()
    (second / "run.json").write_text("{")
    run = store.run(study.experiments[1].run_id)
    assert run is not None
    assert run.attempt == 1


def test_a_document_that_is_stored_twice_narrows_no_interval(tmp_path: Path):
    """Copied rows are no further documents: the file counts as damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    store, study = a_store(tmp_path)
    file = store.folder(study.experiments[1].run_id) / "samples" / f"{TASK}.parquet"
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    row = Comparison.from_store(store).rows()[1]
    assert row.pairs is None
    assert "a document is in it twice" in row.no_interval


def test_damaged_samples_cost_a_row_its_interval_alone(tmp_path: Path):
    """The values stay, and the row says why there is no interval."""
    store, study = a_store(tmp_path)
    file = store.folder(study.experiments[1].run_id) / "samples" / f"{TASK}.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    row = Comparison.from_store(store).rows()[1]
    assert row.value == 0.5
    assert row.difference == -0.25
    assert row.difference_low is None
    assert f"{TASK}.parquet" in row.no_interval


@pytest.mark.parametrize("text", ["", "{", '{"schema_version": 1}', '{"schema_version": 1, "experiments": [3]}', "[]"])
def test_a_damaged_job_record_does_not_end_the_report(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture):
    """Its cost is left out, with a warning that names the file; a record that was only reserved is none."""
    store, study = a_store(tmp_path)
    (path,) = store.jobs(study.record.study_id)
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        found = Comparison.from_store(store)
    assert len([row for row in found.rows() if row.run_id]) == 2
    assert found.dollars == {}
    assert (str(path) in caplog.text) == bool(text)


def test_a_journals_damaged_lines_are_left_out(tmp_path: Path):
    """What a worker wrote before and after zeros, a number or a strange event still counts."""
    record = tmp_path / "1.json"
    good = '{"event": "finished", "at": 1.0, "run_id": "a", "done": 0, "total": 0}'
    lines = [good, "\x00\x00", "3", '{"event": "won", "at": 1}', '{"event": "end"}', good.replace('"a"', '"b"')]
    record.with_suffix(".journal").write_text("\n".join(lines) + "\n")
    entries, _ = read_journal(record, 0)
    assert [entry.run_id for entry in entries] == ["a", "b"]


def test_a_study_is_the_one_that_its_folder_says(tmp_path: Path):
    """A study's record under another's name is refused: its id names files."""
    store, study = a_store(tmp_path)
    study_id = study.record.study_id
    change(store.root / "studies" / study_id / "study.json", lambda d: d.update(study_id="../../elsewhere"))
    with pytest.raises(DamagedError, match=r"it says that it is study '\.\./\.\./elsewhere'"):
        store.read_study(study_id, StudyRecord.from_json)


def test_names_that_are_no_attempts_and_no_jobs_do_no_harm(tmp_path: Path):
    """Digits of other scripts, signs and leading zeros are other people's files."""
    store, study = a_store(tmp_path)
    run_id, study_id = study.experiments[1].run_id, study.record.study_id
    for name in ("²", "-2", "02", "1", "x"):
        (store.root / "runs" / f"{run_id}-{name}").mkdir()
        if name != "1":
            (store.root / "studies" / study_id / "jobs" / f"{name}²-.json").write_text("{}")
    (store.root / "studies" / study_id / "jobs" / "9.json").mkdir()
    assert store.attempts(run_id) == [1]
    assert len(store.jobs(study_id)) == 1


def test_files_behind_a_link_are_not_a_runs_files(tmp_path: Path):
    """A run's folder that is a link to somewhere else shows nothing of that place; a link to the store does no harm."""
    root = tmp_path / "store"
    store, study = a_store(root)
    run = store.run(study.experiments[0].run_id)
    assert run is not None
    kept = json.dumps({"metric": "ndcg", "queries": [{"query": "SECRET", "score": 0, "found": [], "missed": []}]})
    folder = store.folder(run.run_id)
    change(folder / "run.json", lambda d: d.update(details={"x": {"failures": "q.json"}}))
    (folder / "files").mkdir()
    (folder / "files" / "q.json").write_text(kept)
    (tmp_path / "by link").symlink_to(root)
    assert "SECRET" in Comparison.from_store(tmp_path / "by link").to_html()
    folder.rename(tmp_path / "home")
    folder.symlink_to(tmp_path / "home")
    with pytest.raises(StoreError, match="outside the run's folder"):
        Comparison.from_store(root).to_html()


def test_a_portable_file_shows_no_files_of_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it says was kept beside a run is looked for nowhere."""
    store, _ = a_store(tmp_path / "store")
    file = tmp_path / "study.json"
    Comparison.from_store(store).save_json(file)
    change(file, lambda d: d["runs"][0].update(details={"x": {"failures": "q.json"}}))
    kept = {"metric": "ndcg", "queries": [{"query": "SECRET", "score": 0, "found": [], "missed": []}]}
    (tmp_path / "q.json").write_text(json.dumps(kept))
    monkeypatch.chdir(tmp_path)
    assert "SECRET" not in Comparison.load(file).to_html()


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda d: d.update(runs={}), "runs must be a list"),
        (lambda d: d["runs"][0]["measurements"][0].update(value=None), "value must be a finite number"),
        (lambda d: d.update(dollars={"a": -1}), "dollars.a must be at least 0"),
        (lambda d: d.update(samples={"a": {"t": [{"document": 3}]}}), "document must be a text"),
        (lambda d: d["study"].update(limit=0), "limit must be at least 1"),
        (lambda d: d["study"].update(baselines={"a": 1}), "baselines.a must be a text"),
        (lambda d: d["study"]["experiments"][0].update(model="x"), "a model cannot be read: it must be a table"),
    ],
)
def test_a_portable_file_is_checked_as_a_request_is(tmp_path: Path, how: Change, named: str):
    """The error names the file, the field and what was found."""
    store, _ = a_store(tmp_path / "store")
    file = tmp_path / "study.json"
    Comparison.from_store(store).save_json(file)
    change(file, how)
    with pytest.raises(DamagedError, match=named) as caught:
        Comparison.load(file)
    assert str(file) in caught.value.message


def test_a_newer_stores_run_is_refused_and_not_made_again(tmp_path: Path):
    """Of a run that a newer version wrote it is not said that it is damaged."""
    store, study = a_store(tmp_path)
    change(run_file(store, study), lambda d: d.update(schema_version=99))
    with pytest.raises(StoreError, match="99") as caught:
        store.run(study.experiments[1].run_id)
    assert not isinstance(caught.value, DamagedError)


def test_what_an_older_version_wrote_is_read(tmp_path: Path):
    """A key with a default may be missing, as it is where it was not known yet."""
    store, study = a_store(tmp_path)
    run = store.run(study.experiments[1].run_id)
    change(run_file(store, study), lambda d: d["measurements"][0].pop("headline"))
    assert isinstance(run, Run)
    assert store.run(run.run_id) == run


def test_a_terminal_of_few_characters_shows_the_others_written_out(tmp_path: Path):
    """Tables have dots that ASCII does not have."""
    a_store(tmp_path)
    command = [sys.executable, "-m", "llmquant.cli.app", "report", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"meta-llama/Llama-3.2-1B \xb7 baseline" in done.stdout
