"""The embedding cache: parts that appear whole, for any number of readers and writers."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmquant.retrieval import embedding_cache
from llmquant.retrieval.embedding_cache import EmbeddingCache
from llmquant.storage.cache import Cache

_FINGERPRINT = "sha256:" + "ab" * 32


def _key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def _open(tmp_path, *, late=False, width=4, role="document") -> EmbeddingCache:
    return EmbeddingCache(Cache(tmp_path), _FINGERPRINT, role, width=width, late=late)


def _vectors(numbers, *, width=4):
    return {_key(number): np.full(width, number, np.float32) for number in numbers}


@settings(max_examples=30)
@given(
    parts=st.lists(st.dictionaries(st.integers(0, 20), st.integers(1, 5), max_size=8), max_size=4),
    seed=st.integers(0, 9),
)
def test_what_was_written_is_read(tmp_path_factory, parts, seed):
    """Any subset of ragged items comes back bit by bit, from however many parts."""
    cache = _open(tmp_path_factory.mktemp("cache"), late=True)
    random = np.random.default_rng(seed)
    written = {}
    for part in parts:
        new = {_key(n): random.normal(size=(count, 4)).astype(np.float16) for n, count in part.items()}
        new = {key: written.get(key, value) for key, value in new.items()}
        cache.write(new)
        written |= new
    wanted = [_key(n) for n in random.permutation(25)[:12].tolist()]
    found = dict(cache.read(wanted))
    assert found.keys() == written.keys() & set(wanted)
    assert all(np.array_equal(found[key], written[key]) for key in found)


def test_one_vector_an_item_is_float32(tmp_path):
    """Dense vectors keep their dtype and come without an axis of one."""
    _open(tmp_path).write(_vectors([7]))
    ((key, vector),) = _open(tmp_path).read([_key(7), _key(8)])
    assert (key, vector.dtype, vector.shape) == (_key(7), np.float32, (4,))


def test_roles_are_apart(tmp_path):
    """A query's vector is no document's."""
    _open(tmp_path, role="query").write(_vectors([1]))
    assert not list(_open(tmp_path).read([_key(1)]))


def test_it_is_one_entry_of_the_cache_and_is_pruned(tmp_path):
    """`Cache` lists an entry a fingerprint, reading keeps it fresh, and pruning an old one empties it."""
    _open(tmp_path).write(_vectors([1]))
    (entry,) = Cache(tmp_path).entries()
    assert entry.kind == "embeddings"
    os.utime(entry.path, (1, 1))
    list(_open(tmp_path).read([_key(1)]))
    assert not Cache(tmp_path).prune(unused_days=1)
    os.utime(entry.path, (1, 1))
    assert Cache(tmp_path).prune(unused_days=1)
    assert not list(_open(tmp_path).read([_key(1)]))


def _flip(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 0x10
    return bytes(changed)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:20],
        lambda data: data + b"x",
        lambda data: _flip(data, 0),
        lambda data: _flip(data, 12),
        lambda data: _flip(data, 45),
        lambda data: _flip(data, -1),
    ],
    ids=["empty", "cut", "header cut", "longer", "magic", "count", "key", "value"],
)
def test_a_damaged_part_is_left_out_with_a_warning(tmp_path, caplog, damage):
    """Nothing wrong is ever read, the other parts are, and what was lost can be written again."""
    cache = _open(tmp_path)
    cache.write(_vectors([1]))
    (part,) = cache.folder.glob("*.part1")
    cache.write(_vectors([2]))
    part.write_bytes(damage(part.read_bytes()))
    with caplog.at_level(logging.WARNING):
        found = dict(cache.read([_key(1), _key(2)]))
    assert found.keys() == {_key(2)}
    assert "damaged" in caplog.text
    cache.write(_vectors([1]))
    assert dict(cache.read([_key(1)]))[_key(1)].tolist() == [1, 1, 1, 1]


def test_only_the_asked_values_are_read(tmp_path, monkeypatch):
    """Asking for one item of many reads the keys and that item's bytes."""
    cache = _open(tmp_path, width=1000)
    cache.write(_vectors(range(500), width=1000))
    read = []

    class Counting:
        def __init__(self, file):
            self._file = file

        def read(self, size):
            read.append(size)
            return self._file.read(size)

        def __getattr__(self, name):
            return getattr(self._file, name)

    original = EmbeddingCache._read_part
    monkeypatch.setattr(EmbeddingCache, "_read_part", lambda self, file, wanted: original(self, Counting(file), wanted))
    assert len(list(cache.read([_key(250)]))) == 1
    assert sum(read) < 500 * 24 + 4000 + 100


def test_small_parts_become_one(tmp_path):
    """However often little is written, the parts stay few and nothing is lost."""
    cache = _open(tmp_path)
    for number in range(100):
        cache.write(_vectors([number]))
    assert len(list(cache.folder.glob("*.part1"))) < 50
    assert len(dict(cache.read(map(_key, range(100))))) == 100


def test_a_reader_meets_merging_writers(tmp_path, monkeypatch, caplog):
    """Parts that are merged away between a listing and a reading are found in the merged one."""
    monkeypatch.setattr(embedding_cache, "_MANY_PARTS", 4)
    _open(tmp_path).write(_vectors(range(1000, 1050)))

    def write(start):
        for number in range(start, start + 60):
            _open(tmp_path).write(_vectors([number]))

    with ThreadPoolExecutor(3) as pool:
        writing = [pool.submit(write, start) for start in (0, 100, 200)]
        while not all(future.done() for future in writing):
            assert len(dict(_open(tmp_path).read(map(_key, range(1000, 1050))))) == 50
    assert not caplog.text
    assert len(dict(_open(tmp_path).read(map(_key, range(300))))) == 180


_WRITER = """
import sys
from pathlib import Path
import numpy as np
from llmquant.storage.cache import Cache
from llmquant.retrieval.embedding_cache import EmbeddingCache

cache = EmbeddingCache(Cache(Path(sys.argv[1])), sys.argv[2], "document", width=4, late=False)
for number in range(int(sys.argv[3]), int(sys.argv[3]) + 80):
    cache.write({number.to_bytes(16, "big"): np.full(4, number, np.float32)})
"""


def test_processes_write_at_once(tmp_path):
    """Three processes write and merge in one folder; everything is there afterwards."""
    command = [sys.executable, "-c", _WRITER, str(tmp_path), _FINGERPRINT]
    environment = {**os.environ, "PYTHONPATH": ":".join(path for path in sys.path if path)}
    writers = [subprocess.Popen([*command, start], env=environment) for start in ("0", "60", "120")]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    found = dict(_open(tmp_path).read(map(_key, range(200))))
    assert all(found[_key(number)][0] == number for number in range(200))


def test_what_killed_writers_left_is_swept(tmp_path, monkeypatch):
    """Half a part is never read, and merging deletes it when it is a day old."""
    monkeypatch.setattr(embedding_cache, "_MANY_PARTS", 2)
    cache = _open(tmp_path)
    cache.write(_vectors([1]))
    half = cache.folder / ".document-0.part1"
    half.write_bytes(b"half")
    assert len(dict(cache.read([_key(1)]))) == 1
    old = time.time() - 2 * 86400
    os.utime(half, (old, old))
    cache.write(_vectors([2]))
    assert not half.exists()


def test_a_cache_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    """A full or read-only disk costs time later, not the result now."""
    (tmp_path / "embeddings").write_text("a file where the folder should be")
    cache = _open(tmp_path)
    cache.write(_vectors([1]))
    assert "cannot be kept" in caplog.text
    assert not list(cache.read([_key(1)]))


def test_the_list_of_the_cache_names_the_embedder(tmp_path):
    """`llmquant cache list` says what vectors were made from."""
    cache = EmbeddingCache(Cache(tmp_path), _FINGERPRINT, "query", width=2, late=False, name="bigemma3")
    cache.write({b"k" * 16: np.zeros(2, np.float32)})
    assert [(entry.kind, entry.name) for entry in Cache(tmp_path).entries()] == [("embeddings", "bigemma3")]
