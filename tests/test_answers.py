"""What changed in the answers: lengths, loops, cut answers, and the texts of prompts, in samples and stores."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from llmquant.errors import DamagedError
from llmquant.executors.shipping import bring_home
from llmquant.results.comparison import Comparison
from llmquant.storage.store import Store
from llmquant.study.looping import is_looping
from llmquant.study.record import StudyRecord
from llmquant.study.run import Sample
from test_store import make_run

SENTENCE = "The ferry left at nine with forty goats and two sacks. "
SAMPLES = [
    Sample("d1", "p1", {"f1": 0.5}, "nine", "nine", "", 0, 12, cut=True, looping=False, decision_margin=0.25),
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
    pq.write_table(pq.read_table(file).drop_columns(["generated", "cut", "looping", "decision_margin"]), file)
    assert [(s.answer, s.generated, s.cut, s.looping, s.decision_margin) for s in store.samples(make_run())["t"]] == [
        ("nine", None, None, None, None),
        ("", None, None, None, None),
    ]


def test_a_negative_length_is_damage(tmp_path: Path):
    """The message names the field."""
    store, _ = committed(tmp_path, [Sample("d", "p", {}, generated=-1)])
    with pytest.raises(DamagedError, match="generated must be at least 0, found -1"):
        store.samples(make_run())


PROMPTS = {"p1": "When did the ferry leave?", "p2": "What color is the sea?"}


def asked(store: Store, label: str, prompts=PROMPTS):
    """Commit a run with the texts of its prompts."""
    run, partial = make_run(label), store.begin()
    store.keep(run, partial, {"t": SAMPLES}, prompts)
    store.commit(run, partial, {"t": SAMPLES})
    return run


def test_variants_of_a_study_share_the_texts_of_their_prompts(tmp_path: Path):
    """However many runs came with them, the store has each once."""
    store = Store(tmp_path)
    for label in "abc":
        asked(store, label)
    store.sweep()
    assert [store.prompt(key) for key in ("p1", "p2", "p3")] == [*PROMPTS.values(), None]
    assert len(list(tmp_path.rglob("prompts-*.parquet"))) == 1


def test_several_programs_collect_prompts_at_once(tmp_path: Path):
    """None fails, and nothing is lost."""
    for number in range(20):
        asked(Store(tmp_path), str(number), {f"p{number}": f"question {number}"})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: Store(tmp_path).sweep(), range(8)))
    assert Store(tmp_path).prompts([f"p{n}" for n in range(20)]) == {f"p{n}": f"question {n}" for n in range(20)}


def test_prompts_come_home_with_their_run(tmp_path: Path):
    """A worker on another machine has a store of its own, and only its runs come back."""
    there, here = Store(tmp_path / "there"), Store(tmp_path / "here")
    asked(there, "a")
    bring_home(there.root, here.root, "study", 1)
    here.sweep()
    assert here.prompt("p1") == PROMPTS["p1"]


def test_a_long_prompt_loses_its_middle(tmp_path: Path):
    """The text says so, and keeps its beginning and its question."""
    store = Store(tmp_path)
    asked(store, "a", {"p": "Begin. " + "é" * 10**6 + " Why?"})
    store.sweep()
    text = store.prompt("p")
    assert text.startswith("Begin. é")
    assert text.endswith("é Why?")
    assert "bytes are left out" in text
    assert len(text.encode()) < 2**16 + 100


def test_a_damaged_file_of_prompts_is_named(tmp_path: Path):
    """The message says what is lost without it."""
    store = Store(tmp_path)
    asked(store, "a")
    store.sweep()
    (file,) = (tmp_path / "prompts").iterdir()
    file.write_bytes(b"PAR1")
    with pytest.raises(DamagedError, match="prompts") as raised:
        store.prompt("p1")
    assert raised.value.hint == "Delete the file; the texts of its prompts are then unknown."


def test_a_portable_file_carries_prompts_once(tmp_path: Path):
    """They read back, and a file without them is read as before."""
    store = Store(tmp_path / "store")
    runs = [asked(store, "a"), asked(store, "b")]
    store.sweep()
    record = StudyRecord("s", "title", tuple(run.experiment for run in runs), {"sha256:00": "a"})
    found = Comparison.of(record, store)
    found.save_json(tmp_path / "study.json")
    text = (tmp_path / "study.json").read_text()
    assert text.count(PROMPTS["p1"]) == 1
    again = Comparison.load(tmp_path / "study.json")
    assert [again.prompt(key) for key in ("p1", "p2", "p3")] == [*PROMPTS.values(), None]
    assert again.samples() == found.samples()
    older = {key: value for key, value in json.loads(text).items() if key != "prompts"}
    (tmp_path / "older.json").write_text(json.dumps(older))
    assert Comparison.load(tmp_path / "older.json").prompt("p1") is None
