"""What a job needs travels in a folder, and what it did comes home whole and without tokens."""

from __future__ import annotations

import json
from pathlib import Path

from llmquant.executors.shipping import bring_home, pack, record_path, unpack
from llmquant.storage.journal import read_log

TOKEN = b"hf_abcdefghijklmnopqrstuvwxyz"
STUDY = "study"


def write_record(store: Path, model: Path, inputs: dict[str, str]) -> Path:
    record = record_path(store, STUDY, 1)
    record.parent.mkdir(parents=True)
    use = {"source": str(model), "digest": "sha256:0", "flags": [], "embedder": None}
    job = {"study": STUDY, "number": 1, "model": use, "experiments": [], "inputs": inputs}
    record.write_text(json.dumps(job))
    return record


def worker_files(work: Path) -> tuple[Path, Path]:
    """Return a worker's journal and log, in folders that exist."""
    record = record_path(work, STUDY, 1)
    record.parent.mkdir(parents=True)
    return record.with_suffix(".journal"), record.with_suffix(".log")


def test_a_checkpoint_and_inputs_are_found_where_they_were_unpacked(tmp_path: Path):
    """The packed folder may be moved, and what it was made from be gone."""
    model, text = tmp_path / "model", tmp_path / "text.txt"
    model.mkdir()
    (model / "config.json").write_text("{}")
    text.write_text("some text")
    record = write_record(tmp_path / "store", model, {"sha256:ab": str(text)})
    pack(record, tmp_path / "store", tmp_path / "packed", with_model=True)
    moved = (tmp_path / "packed").rename(tmp_path / "elsewhere")
    text.unlink()
    (model / "config.json").unlink()
    there, _ = unpack(moved, tmp_path / "work")
    job = json.loads(there.read_text())
    assert Path(job["inputs"]["sha256:ab"]).read_text() == "some text"
    assert (Path(job["model"]["source"]) / "config.json").read_text() == "{}"


def test_without_the_model_its_path_stays(tmp_path: Path):
    """A shared disk holds the checkpoint; nothing of it is copied."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_text("large")
    record = write_record(tmp_path / "store", model, {})
    pack(record, tmp_path / "store", tmp_path / "packed", with_model=False)
    assert not list((tmp_path / "packed").rglob("weights"))
    there, _ = unpack(tmp_path / "packed", tmp_path / "work")
    assert json.loads(there.read_text())["model"]["source"] == str(model)


def test_a_log_comes_home_in_pieces_and_without_tokens(tmp_path: Path):
    """A token that is cut by two pieces is blanked too; every line comes once."""
    work, home = tmp_path / "work", tmp_path / "home"
    journal, log = worker_files(work)
    whole = b"first\nmy token is " + TOKEN + b" indeed\nlast line is cut"
    for end in range(0, len(whole) + 1, 3):
        log.write_bytes(whole[:end])
        journal.write_bytes(b'{"event": 1}\n' * end)
        bring_home(work, home, STUDY, 1)
    log.write_bytes(whole)
    bring_home(work, home, STUDY, 1, ended=True)
    copied = record_path(home, STUDY, 1).with_suffix(".log").read_bytes()
    assert [line.rstrip() for line in copied.split(b"\n")] == [
        b"first",
        b"my token is hf_*** indeed",
        b"last line is cut",
    ]
    assert len(copied) == len(whole)
    assert record_path(home, STUDY, 1).with_suffix(".journal").read_bytes() == journal.read_bytes()


def test_a_run_that_is_home_stays(tmp_path: Path):
    """Another attempt beside it comes; what is not finished does not."""
    work, home = tmp_path / "work", tmp_path / "home"
    worker_files(work)
    for name in ("abc", "abc-2", ".partial-def-1@here-0"):
        (work / "runs" / name).mkdir(parents=True)
        (work / "runs" / name / "run.json").write_text("new")
    (home / "runs" / "abc").mkdir(parents=True)
    (home / "runs" / "abc" / "run.json").write_text("old")
    bring_home(work, home, STUDY, 1)
    found = {path.parent.name: path.read_text() for path in (home / "runs").glob("*/run.json")}
    assert found == {"abc": "old", "abc-2": "new"}


def test_a_flood_of_output_is_cut_in_the_middle(tmp_path: Path):
    """Of 40 MB the beginning and the end come home, as whole lines, however often it was looked at."""
    _, log = worker_files(tmp_path / "work")
    home = record_path(tmp_path / "store", STUDY, 1).with_suffix(".log")
    log.write_bytes(b"first line\n" + b"flood, flood, flood\n" * 2_000_000)
    bring_home(tmp_path / "work", tmp_path / "store", STUDY, 1)
    with log.open("ab") as stream:
        stream.write(b"the reason: " + TOKEN + b"\n")
    for _ in range(2):
        bring_home(tmp_path / "work", tmp_path / "store", STUDY, 1, ended=True)
    lines = home.read_bytes().splitlines()
    assert (lines[0], lines[-1]) == (b"first line", b"the reason: hf_***".ljust(len(lines[-1])))
    assert set(lines[1:-1]) - {b"flood, flood, flood"} == {line for line in lines if b"left out" in line}
    assert home.stat().st_size < 10 * 2**20
    assert home.stat().st_size > 8 * 2**20


def test_a_flood_without_a_line_break_is_left_out(tmp_path: Path):
    """Half a line could hold half a token."""
    record = record_path(tmp_path / "work", STUDY, 1)
    worker_files(tmp_path / "work")[1].write_bytes(b"first line\n" + TOKEN * 100_000 + b"\nlast line\n")
    shown = read_log(record)
    assert [shown.splitlines()[0], shown.splitlines()[-1]] == ["first line", "last line"]
    assert TOKEN.decode() not in shown
