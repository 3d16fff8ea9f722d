"""A process that dies at any moment leaves whole runs and whole made things, and nothing in the way of the next one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from llmquant.executors.shipping import bring_home, record_path
from llmquant.storage.cache import Cache
from llmquant.storage.journal import journal_path, log_path
from llmquant.storage.store import Store
from test_store import SAMPLES, make_run

HERE = Path(__file__).parent
# Forks a process that dies at its first operation on files, one that dies at its second, until one comes to its end.
DIE = """
import os, sys
import test_any_moment
ON_FILES = {"open", "os.chmod", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.utime"}
root, work = sys.argv[1], getattr(test_any_moment, sys.argv[2])
work(f"{root}/whole")  # imports what is needed once, not in each fork
for moment in range(1, 1000):
    child = os.fork()
    if not child:
        left = [moment]
        def count(event, arguments):
            left[0] -= event in ON_FILES
            if not left[0]:
                os._exit(9)
        sys.addaudithook(count)
        work(f"{root}/{moment}")
        os._exit(0)
    if os.waitpid(child, 0)[1] == 0:
        break
"""


def write(root: str) -> None:
    """Store a study, a job and a run, as a program and its worker do."""
    store, run = Store(root), make_run()
    store.write_study("s", {"schema_version": 1, "study_id": "s"})
    store.new_job("s")
    partial = store.begin()
    (partial / "files" / "kept").write_text("kept")
    store.commit(run, partial, {"t": SAMPLES})


def make(root: str) -> Path:
    """Make a thing of two files in the cache."""

    def files(folder: Path) -> None:
        (folder / "one").write_text("1")
        (folder / "two").write_text("2")

    return Cache(Path(root)).get("kind", {"key": 1}, files)


def bring(root: str) -> None:
    """Bring a run, a journal and a log home from a worker's own store."""
    work, run = Store(Path(root) / "worker"), make_run()
    if not work.attempts(run.run_id):
        write(str(work.root))
    record = record_path(work.root, "s", 1)
    journal_path(record).write_text("finished\n")
    log_path(record).write_text("one line\nand another")
    bring_home(work.root, Path(root) / "home", "s", 1, ended=True)


def _deaths(folder: Path, what: str) -> Iterator[str]:
    """Yield a folder per moment at which a process that worked in it has died, and that of the one that did not."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *filter(None, sys.path)])}
    subprocess.run([sys.executable, "-c", DIE, str(folder), what], check=True, env=environment, timeout=300)
    moments = [str(path) for path in folder.iterdir()]
    assert len(moments) > 10
    yield from moments


def test_a_run_is_stored_whole_or_not_at_all(tmp_path: Path):
    """Whenever its writer dies: what is there can be read, and the next one completes it and sweeps the rest."""
    run = make_run()
    whole = 0
    for root in _deaths(tmp_path, "write"):
        store = Store(root)
        found = store.runs()
        assert found in ({}, {run.run_id: run})
        for stored in found.values():
            assert store.samples(stored) == {"t": SAMPLES}
            assert (store.files(stored) / "kept").read_text() == "kept"
        assert store.studies() in ([], ["s"])
        whole += bool(found)
        write(root)
        assert Store(root).runs() == {run.run_id: run}
        assert [path.name for path in (Path(root) / "runs").iterdir()] == [run.run_id]
    assert whole > 1, "none of those that died had stored its run"


def test_what_a_worker_did_comes_home_whole(tmp_path: Path):
    """Whenever the copying program dies, the next one continues: no run is incomplete, no line is there twice."""
    run = make_run()
    for root in _deaths(tmp_path, "bring"):
        home = Store(Path(root) / "home")
        assert home.runs() in ({}, {run.run_id: run})
        bring(root)
        assert home.samples(home.runs()[run.run_id]) == {"t": SAMPLES}
        home.sweep()
        assert [path.name for path in (home.root / "runs").iterdir()] == [run.run_id]
        record = record_path(home.root, "s", 1)
        assert journal_path(record).read_text() == "finished\n"
        assert log_path(record).read_text() == "one line\nand another"


def test_a_made_thing_is_made_whole_or_not_at_all(tmp_path: Path):
    """Whenever its maker dies, the next one finds it whole or makes it."""
    for root in _deaths(tmp_path, "make"):
        assert [(make(root) / name).read_text() for name in ("one", "two")] == ["1", "2"]
        assert len(Cache(Path(root)).entries()) == 1
        assert not list(Path(root).glob("*/.*"))
