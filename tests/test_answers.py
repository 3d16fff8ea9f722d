"""What changed in the answers: lengths, loops, cut answers, and the texts of prompts, in samples and stores."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmquant.errors import DamagedError
from llmquant.storage.store import Store
from llmquant.study.looping import is_looping
from llmquant.study.run import Sample
from test_store import make_run

SENTENCE = "The ferry left at nine with forty goats and two sacks. "
SAMPLES = [
    Sample("d1", "p1", {"f1": 0.5}, "nine", "nine", "", 0, 12, cut=True, looping=False),
    Sample("d2", "p2", {"f1": 0.5}, "", None),
]


def committed(folder: Path, samples=SAMPLES) -> tuple[Store, Path]:
    """Return a store with one run, and the file of its samples."""
    store, run = Store(folder), make_run()
    store.commit(run, store.begin(), {"t": samples})
    return store, store.folder(run.run_id) / "samples" / "t.parquet"


@pytest.mark.parametrize(
    "text",
    [
        "It begins. " + SENTENCE * 3,
        "It begins. " + SENTENCE * 9 + SENTENCE[:20],
        SENTENCE + "\n" * 60,
        SENTENCE + "no " * 40,
        "7" * 48,
    ],
    ids=["three times", "cut in a unit", "empty lines", "a word", "a digit"],
)
def test_a_text_that_repeats_its_end_loops(text):
    """At least three times in a row, over the last third of the text."""
    assert is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1000000000",
        "no no no no no",
        SENTENCE * 2,
        "A story of many words. " * 2 + "".join(f"{n} goats and {n + 1} sacks. " for n in range(40)),
        SENTENCE * 3 + "".join(f"Then {n} more goats came aboard. " for n in range(9)),
        "".join(f"{n} goats. " for n in range(60)) + "no " * 18,
    ],
    ids=["nothing", "a number", "short", "twice", "like parts", "earlier", "less than a third"],
)
def test_a_text_that_ends_otherwise_does_not_loop(text):
    """Short answers never loop, and a text that left its loop does not."""
    assert not is_looping(text)


def test_lengths_and_ends_of_answers_read_back_equal(tmp_path: Path):
    """What was generated is kept, and what was not generated stays unknown."""
    store, _ = committed(tmp_path)
    assert store.samples(make_run()) == {"t": SAMPLES}


def test_samples_without_lengths_are_read(tmp_path: Path):
    """An older store lacks the columns: they are unknown."""
    store, file = committed(tmp_path)
    pq.write_table(pq.read_table(file).drop_columns(["generated", "cut", "looping"]), file)
    assert [(s.answer, s.generated, s.cut, s.looping) for s in store.samples(make_run())["t"]] == [
        ("nine", None, None, None),
        ("", None, None, None),
    ]


def test_a_negative_length_is_damage(tmp_path: Path):
    """The message names the field."""
    store, _ = committed(tmp_path, [Sample("d", "p", {}, generated=-1)])
    with pytest.raises(DamagedError, match="generated must be at least 0, found -1"):
        store.samples(make_run())
