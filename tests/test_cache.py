"""The cache: made once, whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from llmquant.storage.atomic import replacing
from llmquant.storage.cache import MANIFEST, Cache

# Makes an entry slowly in a process of its own, and writes a line in `log` for each time it was made.
_MAKER = """
import sys, time
from pathlib import Path
from llmquant.storage.cache import Cache

root, log, seconds = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

def make(folder):
    with log.open("a") as stream:
        stream.write("made\\n")
    (folder / "half").write_text("1")
    time.sleep(seconds)
    (folder / "whole").write_text("2")

path = Cache(root).get("kind", {"a": 1}, make)
print(path, (path / "whole").read_text())
"""


def _start(root: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _MAKER, str(root), str(log), str(seconds)]
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _wait_for(path: Path) -> None:
    deadline = time.monotonic() + 300
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def _write(text: str):
    return lambda folder: (folder / "file").write_text(text) and None


def test_it_is_made_once(tmp_path):
    """The second time, what is there is returned and nothing is made."""
    cache = Cache(tmp_path)
    first = cache.get("kind", {"a": 1, "b": [2]}, _write("first"))
    second = cache.get("kind", {"b": [2], "a": 1}, _write("second"))
    assert first == second
    assert (first / "file").read_text() == "first"


def test_other_keys_and_kinds_are_other_entries(tmp_path):
    """Nothing is shared between keys, nor between kinds."""
    cache = Cache(tmp_path)
    paths = {cache.get(kind, key, _write("")) for kind in ("gguf", "tasks") for key in (1, 2)}
    assert len(paths) == 4


def test_a_maker_that_raises_leaves_nothing(tmp_path):
    """Its error is raised, and the next one makes it anew, in an empty folder."""
    cache = Cache(tmp_path)

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        cache.get("kind", 1, fail)
    assert cache.entries() == []
    assert {path.name for path in cache.get("kind", 1, _write("")).iterdir()} == {"file", MANIFEST}


def test_two_processes_make_it_once(tmp_path):
    """Whoever comes second waits and gets what the first one made."""
    log = tmp_path / "log"
    processes = [_start(tmp_path / "cache", log, 0.5) for _ in range(2)]
    outputs = {process.communicate(timeout=300)[0] for process in processes}
    assert len(outputs) == 1
    assert outputs.pop().endswith(" 2\n")
    assert log.read_text() == "made\n"


def test_a_killed_maker_leaves_nothing_that_counts(tmp_path):
    """Half of an entry is none; the next one is not blocked and clears it away."""
    cache, log = Cache(tmp_path / "cache"), tmp_path / "log"
    process = _start(cache.root, log, 60)
    _wait_for(log)
    process.kill()
    process.communicate()
    assert cache.entries() == []
    made = cache.get("kind", {"a": 1}, _write("anew"))
    assert [path.name for path in made.parent.iterdir() if path.is_dir()] == [made.name]


def test_pruning_takes_what_killed_makers_left(tmp_path):
    """What nobody asks for again is deleted by a prune, but not while its maker is at work."""
    cache, log = Cache(tmp_path / "cache"), tmp_path / "log"
    process = _start(cache.root, log, 60)
    _wait_for(log)
    cache.prune(unused_days=0)
    during = len(list(cache.root.glob("kind/.*")))
    process.kill()
    process.communicate()
    cache.prune(unused_days=0)
    assert (during, len(list(cache.root.glob("kind/.*")))) == (1, 0)


def test_pruning_takes_the_longest_unused(tmp_path):
    """What was asked for lately stays, also if it was made long ago."""
    cache = Cache(tmp_path)
    old, kept = (cache.get("kind", key, _write("12345")) for key in (1, 2))
    for path in (old, kept):
        os.utime(path, (0, 0))
    cache.get("kind", 2, _write("never"))
    deleted = cache.prune(unused_days=30)
    assert [entry.path for entry in deleted] == [old]
    assert deleted[0].bytes > 5
    assert [entry.path for entry in cache.entries()] == [kept]


def test_pruning_after_the_clock_was_set_back_keeps_what_was_used(tmp_path):
    """An entry used in what is the future now stays; without a time, every entry is deleted."""
    cache = Cache(tmp_path)
    path = cache.get("kind", 1, _write("12345"))
    os.utime(path, (2**33, 2**33))
    assert cache.prune(unused_days=30) == []
    assert [entry.path for entry in cache.prune(unused_days=0)] == [path]


def test_pruning_keeps_what_a_running_program_uses(tmp_path, caplog):
    """It says so, and deletes the entry once the program has ended."""
    cache = Cache(tmp_path / "cache")
    path, log = cache.get("kind", 1, _write("12345")), tmp_path / "log"
    code = (
        "import sys, time; from pathlib import Path; from llmquant.storage.cache import Cache; "
        "Cache(Path(sys.argv[1])).get('kind', 1, None); Path(sys.argv[2]).touch(); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, cache.root, log]) as process:
        _wait_for(log)
        assert cache.prune(unused_days=0) == []
        process.kill()
    assert f"{path} is kept, as a running program uses it" in caplog.text
    assert [entry.path for entry in cache.prune(unused_days=0)] == [path]


def test_an_entry_says_what_it_was_made_from(tmp_path):
    """Its maker names it; an entry of an older version has no name."""
    cache = Cache(tmp_path)
    cache.get("kind", 1, _write("a"), name="model.gguf")
    cache.get("kind", 2, _write("b"))
    assert sorted(entry.name for entry in cache.entries()) == ["", "model.gguf"]


def test_entries_are_listed_longest_unused_first(tmp_path):
    """The first one is the one to delete."""
    cache = Cache(tmp_path)
    for key, used_at in ((1, 200), (2, 100)):
        os.utime(cache.get("kind", key, _write("")), (used_at, used_at))
    assert [entry.used_at for entry in cache.entries()] == [100, 200]


def test_the_environment_says_where_it_is(monkeypatch, tmp_path):
    """LLMQUANT_CACHE names the folder; nothing is made before it is needed."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "there"))
    assert Cache.default().root == tmp_path / "there"
    assert Cache.default().entries() == []
    assert not (tmp_path / "there").exists()


@pytest.mark.parametrize("begin", [Path.touch, Path.mkdir])
def test_what_a_writer_began_is_deleted_if_it_fails(tmp_path, begin):
    """A file or a folder: what was there stays, and nothing is left beside it."""
    final = tmp_path / "final"
    final.write_text("before")
    with pytest.raises(ZeroDivisionError), replacing(final) as partial:
        _ = begin(partial) or 1 / 0
    assert list(tmp_path.iterdir()) == [final]
    assert final.read_text() == "before"
