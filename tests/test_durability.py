"""Finished work is kept and private: odd names and texts, full disks, dead writers, other users."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from llmquant.errors import OptionError, StoreError
from llmquant.executors.shipping import bring_home, record_path
from llmquant.plugins.registry import registry
from llmquant.storage.atomic import own_folder
from llmquant.storage.cache import MANIFEST, Cache
from llmquant.storage.store import Store, write_json
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest
from llmquant.study.run import Failure, Measurement, Sample
from test_store import SAMPLES, make_run, write

CJK = "漢字" * 16  # 32 letters, 96 bytes, 288 once they are quoted


def run_python(code: str, *arguments: object, **options) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True, **{"env": environment, **options})


# -- what a run may hold ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [f"{CJK}.txt", CJK * 20, "a" * 5000, "/" * 100, "nul\0", "", ".", "..", "a~b%20"])
def test_a_task_of_any_name_is_stored(tmp_path: Path, task: str):
    """The file's name is short enough for any disk, and the task's name comes back whole."""
    store, run = Store(tmp_path), make_run()
    assert write(store, run, {task: SAMPLES})
    assert store.samples(run) == {task: SAMPLES}
    assert all(len(os.fsencode(path.name)) < 255 for path in tmp_path.rglob("*"))


def test_long_names_with_one_beginning_stay_apart(tmp_path: Path):
    """Each task has a file of its own."""
    store, run = Store(tmp_path), make_run()
    samples = {f"{CJK}{number}": [replace(SAMPLES[0], document=str(number))] for number in range(3)}
    write(store, run, samples)
    assert store.samples(run) == samples


def test_samples_of_an_older_version_are_read(tmp_path: Path):
    """A file that does not say its task is named by it."""
    import pyarrow.parquet as pq

    store, run = Store(tmp_path), make_run()
    write(store, run, {"mmlu/anatomy": SAMPLES})
    (path,) = tmp_path.rglob("*.parquet")
    pq.write_table(pq.ParquetFile(path).read().replace_schema_metadata(), path)
    assert store.samples(run) == {"mmlu/anatomy": SAMPLES}


def test_lone_surrogates_are_stored_so_that_they_can_be_seen(tmp_path: Path):
    """In an answer, a task's name, a metric, details or a failure: no run is lost for one."""
    store, bad = Store(tmp_path), "half \ud83d"
    shown = r"half \ud83d"
    sample = Sample(bad, bad, {bad: 1.0}, bad, bad, bad)
    run = make_run(
        measurements=(Measurement(bad, bad, 0.5, at={bad: bad}),),
        details={bad: {bad: [bad]}},
        status="failed",
        failure=Failure("error", bad, bad),
    )
    assert write(store, run, {bad: [sample]})
    stored = store.run(run.run_id)
    assert stored.measurements == (Measurement(shown, shown, 0.5, at={shown: shown}),)
    assert stored.details == {shown: {shown: [shown]}}
    assert stored.failure == Failure("error", shown, shown)
    assert store.samples(run) == {shown: [Sample(shown, shown, {shown: 1.0}, shown, shown, shown)]}


def test_a_request_is_text_that_can_be_stored():
    """What names a run is kept to the letter: a model's path or an option that cannot be is refused before it runs."""
    with pytest.raises(OptionError, match="must be a text"):
        ModelRequest("./caf\udce9")
    with pytest.raises(OptionError, match="half"):
        registry().choose("evaluator", Call("perplexity", ("half \ud83d",)))


def test_long_answers_nul_bytes_and_large_counts_are_stored(tmp_path: Path):
    """What an evaluator may return is read back equal."""
    sample = Sample("d", "p", {"f1": 1.0}, "x" * 10**7 + "\0", "\0", "g", 2**40)
    store, run = Store(tmp_path), make_run()
    assert write(store, run, {"t": [sample]})
    assert store.samples(run) == {"t": [sample]}


# -- dead writers and full disks --------------------------------------------------------------------------------------

_WRITER = "import sys; from llmquant.storage.store import Store; print(Store(sys.argv[1]).begin(), flush=True); input()"


def _partials(root: Path) -> list[Path]:
    return sorted((root / "runs").glob(".partial*"))


@pytest.mark.parametrize("namespace", [(), ("unshare", "--pid", "--fork")])
def test_sweep_spares_a_writer_of_another_process(tmp_path: Path, namespace: tuple[str, ...]):
    """Also one whose process number means nothing here, as in a container; when it is dead its folder goes."""
    if namespace and subprocess.run([*namespace, "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("needs unshare and the right to make a PID namespace")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [*namespace, sys.executable, "-c", _WRITER, str(tmp_path)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    partial = Path(writer.stdout.readline().strip())
    Store(tmp_path).sweep()
    assert _partials(tmp_path) == [partial]
    writer.communicate("\n")
    Store(tmp_path).sweep()
    assert _partials(tmp_path) == []


def test_sweep_bears_whatever_is_called_as_its_folders_are(tmp_path: Path):
    """A folder of a name like theirs goes; a file and a link, which no writer makes, stay."""
    store = Store(tmp_path / "store")
    write(store, make_run())
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").touch()
    (tmp_path / "store" / "runs" / ".partial-x").mkdir()
    (tmp_path / "store" / "runs" / ".partial-").touch()
    (tmp_path / "store" / "runs" / ".partial-link").symlink_to(outside)
    store.sweep()
    assert [path.name for path in _partials(store.root)] == [".partial-", ".partial-link"]
    assert (outside / "kept").exists()
    assert list(store.runs())


def test_sweep_and_writers_do_not_race(tmp_path: Path):
    """However often others sweep, every run that is written is stored."""
    store, ended = Store(tmp_path), threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            Store(tmp_path).sweep()

    sweepers = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in sweepers:
        thread.start()
    try:
        runs = [make_run(str(number)) for number in range(40)]
        assert all(write(store, run, {"t": SAMPLES}) for run in runs)
    finally:
        ended.set()
        for thread in sweepers:
            thread.join()
    assert set(store.runs()) == {run.run_id for run in runs}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a tmpfs")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_what_a_dead_writer_filled_the_disk_with_goes_before_anything_is_written(small_disk: Path):
    """The same command continues by itself; nobody has to delete anything."""
    code = (
        "import sys; from llmquant.storage.store import Store\n"
        "with (Store(sys.argv[1]).begin() / 'files' / 'large').open('wb', buffering=0) as stream:\n"
        "    while True: stream.write(bytes(4096))"
    )
    assert "No space left" in run_python(code, small_disk).stderr
    assert shutil.disk_usage(small_disk).free == 0
    store, run = Store(small_disk), make_run()
    store.write_study("s", {"schema_version": 1})
    assert write(store, run, {"t": SAMPLES})


def test_a_study_goes_on_when_a_full_disk_has_room_again(small_disk: Path):
    """The error says what to do, the writer leaves nothing behind, and what was stored stays."""
    store, run = Store(small_disk / "store"), make_run()
    write(store, run, {"t": SAMPLES})
    other = small_disk / "other"
    with other.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    with pytest.raises(StoreError, match="No space left on device\nFree some space and run the same command again"):
        write(store, make_run("b"), {"t": [replace(SAMPLES[0], answer=os.urandom(9000).hex())]})
    with pytest.raises(StoreError, match="No space left on device\nFree some space and run the same command again"):
        store.write_study("s", {"schema_version": 1, "text": "x" * 9000})
    assert (list(store.runs()), _partials(store.root)) == ([run.run_id], [])
    other.unlink()
    store.write_study("s", {"schema_version": 1})
    assert write(store, make_run("b"), {"t": SAMPLES})


def test_a_run_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every file and folder is flushed, ``run.json`` after the others, then renamed, then the folder above flushed."""
    done: list[tuple[str, str]] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        real_fsync(descriptor)
        done.append(("flush", Path(f"/proc/self/fd/{descriptor}").readlink().name))

    def rename(source: Path, target: Path) -> None:
        real_rename(source, target)
        done.append(("rename", Path(target).name))

    store, run = Store(tmp_path), make_run()
    partial = store.begin()
    (partial / "files" / "deep").mkdir()
    (partial / "files" / "deep" / "kept").write_text("kept")
    (partial / "log.txt").write_text("log")
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    store.commit(run, partial, {"t": SAMPLES})
    renamed = done.index(("rename", run.run_id))
    flushed = [name for _, name in done[:renamed]]
    assert {"kept", "deep", "files", "t.parquet", "samples", "log.txt"} <= set(flushed)
    assert [name.startswith(".run.json") for name in flushed].index(True) > flushed.index("samples")
    assert flushed[-1] == partial.name
    assert done[renamed + 1 :] == [("flush", "runs")]


def test_the_newest_study_is_the_one_that_was_started_last(tmp_path: Path):
    """Copying, restoring or touching its files does not make a study new; one that does not say is the oldest."""
    started = {
        "second": "2026-03-01T10:00:00.000+00:00",
        "third": "2026-03-01T13:00:00.000+02:00",
        "first": "2026-03-01T10:30:00.000+01:00",
        "unknown": None,
    }
    for study, at in started.items():
        (tmp_path / "studies" / study).mkdir(parents=True)
        write_json(tmp_path / "studies" / study / "study.json", {"schema_version": 1, "started_at": at})
    os.utime(tmp_path / "studies" / "first" / "study.json")
    assert Store(tmp_path).studies() == ["unknown", "first", "second", "third"]


def test_the_newest_study_is_the_last_one_also_if_the_clock_was_set_back(tmp_path: Path):
    """By an hour between two studies, with a second study in the same millisecond, and when one is run again."""
    store = Store(tmp_path)
    for study, hour in (("d", 12), ("c", 11), ("b", 11), ("a", 11), ("c", 10)):
        store.write_study(study, {"schema_version": 1, "started_at": f"2026-03-01T{hour}:00:00.000+00:00"})
    assert store.studies() == ["d", "b", "a", "c"]
    (tmp_path / "studies" / "d" / "study.json").write_text('{"order": 1e300}')
    assert store.studies() == ["d", "b", "a", "c"]


# -- other users ------------------------------------------------------------------------------------------------------


def _modes(root: Path) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {"files": set(), "folders": set()}
    for path in (root, *root.rglob("*")):
        found["folders" if path.is_dir() else "files"].add(stat.S_IMODE(path.stat().st_mode))
    return found


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that takes nothing away."""
    before = os.umask(0)
    yield
    os.umask(before)


def _fill(folder: Path) -> None:
    store, run = Store(folder / "store"), make_run()
    store.write_study("s", {"schema_version": 1})
    number, record = store.new_job("s")
    write_json(record, {"schema_version": 1})
    partial = store.begin()
    (partial / "files" / "left").write_text("by an evaluator")
    store.commit(run, partial, {"t": SAMPLES})
    work = record_path(folder / "work", "s", number)
    work.parent.mkdir(parents=True)
    work.with_suffix(".log").write_text("a line\n")
    shutil.copytree(store.root / "runs", folder / "work" / "runs")
    bring_home(folder / "work", folder / "brought", "s", number)
    Cache(folder / "cache").get("kind", 1, lambda out: (out / "made").write_text("large") and None)


@pytest.mark.usefixtures("umask")
def test_stores_and_caches_are_this_users_alone(tmp_path: Path):
    """Whatever the umask gives: folders 0700, files 0600, those an evaluator wrote too."""
    _fill(tmp_path)
    for name in ("store", "brought", "cache"):
        assert _modes(tmp_path / name) == {"files": {0o600}, "folders": {0o700}}


@pytest.mark.usefixtures("umask")
def test_shared_stores_and_caches_are_as_the_umask_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A team sets one variable, and its umask."""
    monkeypatch.setenv("LLMQUANT_SHARED", "1")
    os.umask(0o007)
    _fill(tmp_path)
    for name in ("store", "brought", "cache"):
        assert _modes(tmp_path / name) == {"files": {0o660}, "folders": {0o770}}


def test_a_folder_that_is_there_keeps_its_mode(tmp_path: Path):
    """It is its owner's to open or to close; what comes in is private."""
    root = tmp_path / "store"
    root.mkdir()
    root.chmod(0o755)
    write(Store(root), make_run())
    assert stat.S_IMODE(root.stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "runs").stat().st_mode) == 0o700


def test_two_tmpdirs_are_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor does another spelling of the cache's place make another lock; another cache has its own."""
    (tmp_path / "link").symlink_to(tmp_path / "cache")
    found = set()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        monkeypatch.setenv("TMPDIR", str(tmp_path / folder))
        monkeypatch.setattr(tempfile, "tempdir", None)
        found |= {Cache(tmp_path / name).host_lock().resolve() for name in ("cache", "link")}
    assert len(found) == 1
    assert Cache(tmp_path / "other").host_lock() not in found


def test_the_lock_is_where_nobody_else_can_write(tmp_path: Path):
    """Its folder is private, shared cache or not; one that is not, is not used."""
    cache = Cache(tmp_path / "cache")
    folder = cache.host_lock().parent
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert folder.parent == cache.root
    folder.chmod(0o777)
    assert cache.host_lock().parent != folder


def test_a_disk_without_locks_or_modes_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As some network disks are: runs are stored, and the lock for timings is among the temporary files."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))

    for place, name in ((fcntl, "flock"), (fcntl, "lockf"), (Path, "chmod")):
        monkeypatch.setattr(place, name, refuse)
    store, run = Store(tmp_path / "store"), make_run()
    other = store.begin()
    Store(store.root).sweep()
    assert write(store, run, {"t": SAMPLES})
    assert other.exists()
    os.utime(other, (0, 0))
    store.sweep()
    assert (list(store.runs()), _partials(store.root)) == ([run.run_id], [])
    assert Cache(tmp_path / "cache").host_lock().parent == Path("/tmp", f"llmquant-{os.getuid()}")


@pytest.mark.parametrize("planted", ["a link", "a file", "open to others", "another user's"])
def test_what_somebody_planted_is_not_used(tmp_path: Path, planted: str):
    """A folder among the temporary files has to be this user's own."""
    path, other = tmp_path / "llmquant-1", tmp_path / "other"
    other.mkdir()
    if planted == "a link":
        path.symlink_to(other)
    elif planted == "a file":
        path.touch()
    else:
        path.mkdir(0o700)
        path.chmod(0o770 if planted == "open to others" else 0o700)
        if planted == "another user's":
            if os.geteuid() != 0:
                pytest.skip("needs root, to give a folder to another user")
            os.chown(path, 12345, 12345)
    with pytest.raises(PermissionError, match="this user alone"):
        own_folder(path)


_NOBODY = """
import os, sys
from pathlib import Path
from llmquant.storage.cache import Cache
from llmquant.running.host_lock import host_lock
from llmquant.storage.store import Store
from test_store import SAMPLES, make_run, write

def work(folder, cache):
    store = Store(folder)
    store.write_study("s", {"schema_version": 1})
    with host_lock(cache, exclusive=True):
        assert write(store, make_run(), {"t": SAMPLES})
    return cache.get("kind", 1, lambda out: (out / "made").touch()) / "made"

folder, uid, home = sys.argv[1:]
Cache.default()  # this and the next line import what this user may not be able to read afterwards
work(folder + "/root", Cache(Path(folder, "cache")))
os.environ.pop("HOME", None)
os.environ |= {"HOME": home} if home else {}
os.setgid(int(uid))
os.setuid(int(uid))
made = work(folder + "/store", Cache.default())
print(made.stat().st_uid, made.parents[2])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become a user without a passwd entry")
@pytest.mark.parametrize("home", ["", "/", "/nowhere"])
def test_a_user_without_an_entry_in_passwd_keeps_runs(home: str):
    """As in ``docker run -u 12345``, with no home, or one that cannot be written."""
    uid = 100_000 + os.getpid()
    private = Path("/tmp", f"llmquant-{uid}")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        Path(folder).chmod(0o777)
        try:
            done = run_python(_NOBODY, folder, uid, home, cwd=folder)
            assert (done.stdout.split(), done.stderr) == ([str(uid), f"{private}/cache"], "")
            assert not Path(folder, "~").exists()
        finally:
            shutil.rmtree(private, ignore_errors=True)


# -- made things ------------------------------------------------------------------------------------------------------


def _make(out: Path) -> None:
    (out / "part").mkdir()
    (out / "part" / "weights").write_text("as made")
    (out / MANIFEST).write_text(json.dumps({"made": "by hand"}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda entry: (entry / "part" / "weights").write_text("changed"),
        lambda entry: (entry / "part" / "weights").unlink(),
        lambda entry: (entry / "model.safetensors.index.json").write_text("{}"),
        lambda entry: (entry / MANIFEST).write_text("{}"),
    ],
)
def test_a_made_thing_that_changed_is_refused(tmp_path: Path, spoil):
    """A checkpoint, a conversion, rendered pages: read before every use, whatever sizes and times say."""
    cache = Cache(tmp_path)
    entry = cache.get("kind", 1, _make)
    path = entry / "part" / "weights"
    before = path.stat()
    spoil(entry)
    if path.exists():
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(StoreError, match="made again"):
        cache.get("kind", 1, _make)
    shutil.rmtree(entry)
    assert cache.get("kind", 1, _make) == entry


def test_a_maker_may_say_more_in_the_manifest(tmp_path: Path):
    """The digests of the files are stored with it."""
    said = json.loads((Cache(tmp_path).get("kind", 1, _make) / MANIFEST).read_text())
    assert said["made"] == "by hand"
    assert list(said["files"]) == ["part/weights"]


def test_a_made_thing_without_a_manifest_is_made_again(tmp_path: Path):
    """As an older version left it, nobody can say what it should be."""
    cache = Cache(tmp_path)
    entry = cache.get("kind", 1, _make)
    (entry / MANIFEST).unlink()
    (entry / "part" / "weights").write_text("who knows")
    assert (cache.get("kind", 1, _make) / "part" / "weights").read_text() == "as made"
