"""Encoding: every content once, in full batches, whatever the items are like and whenever it is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from embedding import build_subject, page
from llmquant.errors import ItemError, PluginError, SanityError, UnsupportedError
from llmquant.loading.memory import is_out_of_memory
from llmquant.retrieval import encode_loop
from llmquant.retrieval.encode import encode, encode_some
from llmquant.retrieval.items import Item
from llmquant.retrieval.loaded import LoadedEmbedder

_TEXTS = [" ".join(f"word{n * k % 37}" for k in range(1 + n % 11)) for n in range(40)]


def _texts(count: int = 40) -> list[Item]:
    return [Item(text=f"{text} {n}") for n, text in enumerate((_TEXTS * (1 + count // 40))[:count])]


def _equal(one, other) -> bool:
    same_offsets = (one.offsets is None) == (other.offsets is None) and (
        one.offsets is None or np.array_equal(one.offsets, other.offsets)
    )
    return same_offsets and one.values.dtype == other.values.dtype and np.array_equal(one.values, other.values)


def _one_by_one(subject: LoadedEmbedder, items: list[Item], role="document") -> list[np.ndarray]:
    opened = subject.opened
    return [opened.embed([opened.prepare(item.text, None, role)], role)[0] for item in items]


@pytest.mark.parametrize("late", [False, True])
def test_it_equals_the_plain_loop(tmp_path, late):
    """Batched, sorted and threaded, every item gets the vectors that it gets alone, in the order asked for."""
    subject = build_subject(tmp_path, late=late, batch_tokens=30)
    embeddings = encode(subject, _texts(), "document")
    assert len(embeddings) == 40
    assert max(map(len, subject.opened.batches)) > 1
    for index, vectors in enumerate(_one_by_one(subject, _texts())):
        np.testing.assert_allclose(embeddings.item(index), vectors, atol=1e-3 if late else 1e-6)


@pytest.mark.parametrize("late", [False, True])
def test_a_second_call_encodes_nothing_and_equals_the_first(tmp_path, late):
    """What is read from the cache is bit by bit what was returned when it was fresh."""
    items = [*_texts(), *(Item(image=page(f"page {n}")) for n in range(5))]
    first = encode(build_subject(tmp_path, late=late), items, "document")
    again = build_subject(tmp_path, late=late)
    assert _equal(encode(again, items, "document"), first)
    assert again.opened.prepared == 0
    assert first.values.dtype == (np.float16 if late else np.float32)


def test_only_what_is_missing_is_encoded(tmp_path):
    """A grown set costs what was added, also in another order."""
    encode(build_subject(tmp_path), _texts(30), "document")
    subject = build_subject(tmp_path)
    embeddings = encode(subject, _texts(40)[::-1], "document")
    assert subject.opened.embedded == 10
    assert _equal(embeddings, encode(build_subject(tmp_path / "other"), _texts(40)[::-1], "document"))


@pytest.mark.parametrize("late", [False, True])
def test_duplicates_are_encoded_once(tmp_path, late):
    """Equal contents under different names share their vector."""
    subject = build_subject(tmp_path, late=late)
    items = [Item(text=f"text {n % 3}", name=str(n)) for n in range(9)]
    embeddings = encode(subject, items, "document")
    assert subject.opened.embedded == 3
    assert all(np.array_equal(embeddings.item(n), embeddings.item(n % 3)) for n in range(9))


def test_queries_documents_and_models_are_apart(tmp_path):
    """The role and the fingerprint are part of what a vector is known by."""
    encode(build_subject(tmp_path), _texts(3), "document")
    for subject, role in ((build_subject(tmp_path), "query"), (build_subject(tmp_path, seed=1), "document")):
        encode(subject, _texts(3), role)
        assert subject.opened.embedded == 3


def test_no_items_give_no_vectors(tmp_path):
    """An empty list is no error, and has the width of the model."""
    assert encode(build_subject(tmp_path), [], "query").values.shape == (0, 32)
    late = encode(build_subject(tmp_path, late=True), [], "query")
    assert (len(late), late.width) == (0, 32)


def test_batches_keep_to_their_budget(tmp_path):
    """The longest item times the number of items, which is what the device computes, is within the budget."""
    subject = build_subject(tmp_path, batch_tokens=24)
    encode(subject, _texts(200), "document")
    batches = subject.opened.batches
    assert all(len(batch) * max(batch) <= 24 for batch in batches)
    assert all(len(batch) > 1 for batch in batches[:4])


def test_sorting_saves_padding(tmp_path):
    """Items of mixed sizes waste less than a quarter of what the device computes."""
    subject = build_subject(tmp_path, batch_tokens=64)
    encode(subject, _texts(400), "document")
    batches = subject.opened.batches
    assert sum(map(sum, batches)) > 0.75 * sum(len(batch) * max(batch) for batch in batches)


def test_an_item_larger_than_the_budget_goes_alone(tmp_path):
    """The budget bounds batches, not items."""
    subject = build_subject(tmp_path, batch_tokens=4)
    encode(subject, [Item(text="one " * 50), Item(text="two")], "document")
    assert sorted(subject.opened.batches) == [[1], [50]]


def test_memory_ahead_of_the_device_is_bounded(tmp_path):
    """However many items there are, only some batches of them are prepared before they are encoded."""
    subject = build_subject(tmp_path, batch_tokens=20)
    opened, ahead = subject.opened, []
    original = opened.embed

    def embed(batch, role):
        ahead.append(opened.prepared - opened.embedded)
        return original(batch, role)

    opened.embed = embed
    encode(subject, [Item(text=f"w{n} a b c d") for n in range(500)], "document")
    assert max(ahead) <= 2 * 4 * 4 + 2 * 16


def test_out_of_memory_halves_the_batch(tmp_path):
    """The rest continues in smaller batches, with equal results."""
    subject = build_subject(tmp_path, batch_tokens=10_000, room=50)
    embeddings = encode(subject, _texts(), "document")
    assert max(len(batch) * max(batch) for batch in subject.opened.batches) <= 50
    np.testing.assert_allclose(
        embeddings.values, encode(build_subject(tmp_path / "other"), _texts(), "document").values, atol=1e-6
    )


def test_one_item_that_does_not_fit_is_an_error_that_names_it(tmp_path):
    """It is reported as out of memory, also where bad items are skipped; earlier items are kept."""
    items = [*_texts(60), Item(text="long " * 99, name="essay.txt")]
    for call in (encode, encode_some):
        with pytest.raises(ItemError, match=r"essay\.txt does not fit in memory on its own: 99 tokens") as raised:
            call(build_subject(tmp_path, batch_tokens=20, room=60), items, "document")
        assert is_out_of_memory(raised.value)
    larger = build_subject(tmp_path)
    encode(larger, items, "document")
    assert larger.opened.embedded < 30


@pytest.mark.parametrize(
    ("item", "found"),
    [
        (Item(text=""), "empty text"),
        (Item(text=" \n"), "empty text"),
        (Item(), "neither"),
        (Item(text="\ud800"), "not Unicode"),
        (Item(image=b""), "0 bytes"),
        (Item(image=page("x")[:50]), "damaged"),
        (Item(image=b"%PDF-1.7"), "a PDF"),
    ],
)
def test_bad_items_are_named_or_skipped(tmp_path, item, found):
    """`encode` raises with the item's name; `encode_some` gives the others and says why not this one."""
    items = [Item(text="good"), replace(item, name="item-13"), Item(text="also good")]
    with pytest.raises(ItemError, match=f"(?s)item-13.*{found}"):
        encode(build_subject(tmp_path), items, "document")
    some = encode_some(build_subject(tmp_path), items, "document")
    assert some.kept.tolist() == [0, 2]
    assert list(some.skipped) == [1]
    assert found in some.skipped[1]
    assert _equal(some.embeddings, encode(build_subject(tmp_path), [items[0], items[2]], "document"))


def test_the_first_bad_item_is_the_one_that_is_named(tmp_path):
    """Of several damaged pages the first in order, though threads decode them."""
    items = [Item(text=f"{n} b c") if n % 10 else Item(image=b"bad", name=f"page {n}") for n in range(5, 60)]
    with pytest.raises(ItemError, match="page 10 "):
        encode(build_subject(tmp_path), items, "document")


def test_an_item_without_a_name_is_named_by_its_place(tmp_path):
    """The role and the index."""
    with pytest.raises(ItemError, match="query 1 "):
        encode(build_subject(tmp_path), [Item(text="a"), Item(text="")], "query")


def test_a_damaged_page_twice_is_two_skips(tmp_path):
    """Both are reported by their own names."""
    items = [Item(image=b"bad", name="a.png"), Item(text="x"), Item(image=b"bad", name="b.png")]
    some = encode_some(build_subject(tmp_path), items, "document")
    assert some.skipped[0].startswith("a.png")
    assert some.skipped[2].startswith("b.png")


def test_all_items_bad_is_no_vectors(tmp_path):
    """Nothing is left, of the right width, with one vector an item and with several."""
    for late in (False, True):
        some = encode_some(build_subject(tmp_path, late=late), [Item(text=""), Item(image=b"bad")], "document")
        assert (len(some.embeddings), some.embeddings.width, len(some.skipped)) == (0, 32, 2)


def test_what_the_embedder_does_not_encode_is_refused(tmp_path):
    """A page for a text embedder, with what it does encode."""
    subject = build_subject(tmp_path, modalities=("text",))
    with pytest.raises(ItemError, match="document 0 has image, and this embedder encodes text only"):
        encode(subject, [Item(image=page())], "document")


def test_what_a_processor_refuses_is_the_items_fault(tmp_path):
    """A ValueError of prepare names the item; any other error is the plugin's and is passed on unchanged."""
    subject = build_subject(tmp_path)
    subject.opened.prepare = lambda text, image, role: int(text)
    with pytest.raises(ItemError, match="odd one cannot be prepared"):
        encode(subject, [Item(text="x", name="odd one")], "document")
    subject.opened.prepare = lambda text, image, role: text.missing
    with pytest.raises(AttributeError):
        encode_some(subject, [Item(text="x")], "document")


@pytest.mark.parametrize("fusion", ["sum", "mean"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_fusion_adds_what_was_encoded_apart(tmp_path, fusion, similarity):
    """Text and image have vectors of their own in the cache; together they are added or averaged."""
    data = page("a chart")
    alone = build_subject(tmp_path, similarity=similarity)
    text, image = encode(alone, [Item(text="a chart"), Item(image=data)], "document").values
    subject = build_subject(tmp_path, similarity=similarity, fusion=fusion)
    items = [Item(image=data), Item(text="a chart", image=data), Item(text="a chart")]
    values = encode(subject, items, "document").values
    assert subject.opened.embedded == 0
    expected = (text + image) / (2 if fusion == "mean" else 1)
    if similarity == "cosine":
        expected /= np.linalg.norm(expected)
    np.testing.assert_allclose(values[1], expected, atol=1e-6)
    assert np.array_equal(values[[0, 2]], [image, text])


def test_fusion_skips_an_item_with_one_bad_part(tmp_path):
    """A good text does not stand in for text and image together."""
    items = [Item(text="a", image=b"bad"), Item(text="a")]
    some = encode_some(build_subject(tmp_path, fusion="sum"), items, "document")
    assert some.kept.tolist() == [1]


def test_joint_fusion_is_one_pass(tmp_path):
    """The model gets both, and the pair has a vector of its own."""
    subject = build_subject(tmp_path)
    data = page("x")
    encode(subject, [Item(text="a", image=data), Item(text="a"), Item(image=data)], "document")
    assert subject.opened.embedded == 3


def test_fusion_of_late_interaction_is_refused(tmp_path):
    """There is no one vector to add."""
    with pytest.raises(UnsupportedError, match="late interaction"):
        encode(build_subject(tmp_path, late=True, fusion="sum"), _texts(1), "document")


def _with_vectors(subject: LoadedEmbedder, change) -> LoadedEmbedder:
    original = subject.opened.embed
    subject.opened.embed = lambda batch, role: change(original(batch, role))
    return subject


def _spoil(number: float):
    def change(vectors):
        for vector in vectors:
            vector[..., 0] = number
        return vectors

    return change


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_vectors_that_are_not_finite_name_the_item(tmp_path, number, late):
    """They are an error of the model, never skipped, and never cached."""
    for call in (encode, encode_some):
        with pytest.raises(SanityError, match=r"page-4\.png is not finite"):
            call(
                _with_vectors(build_subject(tmp_path, late=late), _spoil(number)),
                [Item(text="a", name="page-4.png")],
                "document",
            )
    again = build_subject(tmp_path, late=late)
    encode(again, [Item(text="a")], "document")
    assert again.opened.embedded == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda vectors: [vector[..., :-1] for vector in vectors],
        lambda vectors: [vector[None] for vector in vectors],
        lambda vectors: vectors[:-1],
        lambda vectors: [vector[:0] for vector in vectors],
        lambda vectors: [2 * vector for vector in vectors],
    ],
    ids=["width", "shape", "count", "no vectors", "length"],
)
@pytest.mark.parametrize("late", [False, True])
def test_a_broken_contract_is_the_plugins_error(tmp_path, change, late):
    """Results of the wrong width, shape, number or length are refused before they are cached."""
    with pytest.raises(PluginError, match="embed returned"):
        encode(_with_vectors(build_subject(tmp_path, late=late), change), _texts(3), "document")


def test_progress_counts_to_the_end(tmp_path):
    """It never goes back, begins with what was cached, and ends at the total."""
    encode(build_subject(tmp_path), _texts(10), "document")
    seen = []
    items = [*_texts(20), Item(image=b"bad")]
    encode_some(build_subject(tmp_path), items, "document", lambda done, total: seen.append((done, total)))
    assert seen == [(done, 21) for done in range(10, 22)]


def test_items_may_be_read_as_they_are_asked_for(tmp_path):
    """A sequence that opens files on demand is never held as a whole, nor asked from other threads."""
    import threading

    class Lazy:
        def __len__(self):
            return 30

        def __getitem__(self, index):
            assert threading.current_thread() is threading.main_thread()
            assert index < 30
            return Item(text=f"lazy text {index}")

    assert len(encode(build_subject(tmp_path), Lazy(), "document")) == 30


def test_damage_in_the_cache_is_encoded_again(tmp_path):
    """A part with a flipped bit gives the same vectors as before, made anew."""
    first = encode(build_subject(tmp_path), _texts(5), "document")
    (part,) = (tmp_path / "cache").rglob("*.part1")
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    again = build_subject(tmp_path)
    assert np.allclose(encode(again, _texts(5), "document").values, first.values, atol=1e-6)
    assert again.opened.embedded >= 1


def test_an_interrupt_keeps_what_was_encoded(tmp_path):
    """After Ctrl-C halfway, the next call continues from there."""
    subject = build_subject(tmp_path, batch_tokens=12)

    def progress(done, total):
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode(subject, _texts(), "document", progress)
    again = build_subject(tmp_path)
    encode(again, _texts(), "document")
    assert again.opened.embedded == 20


_SLOW = """
import sys, time
from pathlib import Path
import torch
from embedding import build_subject
from llmquant.retrieval import encode as module
from llmquant.retrieval.items import Item

torch.set_num_threads(1)
module._FLUSH_S = 0.2
subject = build_subject(Path(sys.argv[1]), batch_tokens=8)
original = subject.opened.embed

def slowly(batch, role):
    time.sleep(0.02)
    return original(batch, role)

subject.opened.embed = slowly
module.encode(subject, [Item(text=f"some text number {n}") for n in range(1000)], "document")
"""


def test_killed_half_way_it_resumes(tmp_path):
    """After kill -9 the next call encodes only what was not flushed, and gives what a fresh one gives."""
    environment = {**os.environ, "PYTHONPATH": ":".join([str(Path(__file__).parent), *filter(None, sys.path)])}
    with subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path)], env=environment) as process:
        try:
            deadline = time.monotonic() + 300
            while len(list((tmp_path / "cache").rglob("document-*.part1"))) < 4:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
        finally:
            process.kill()
    items = [Item(text=f"some text number {n}") for n in range(1000)]
    subject = build_subject(tmp_path, batch_tokens=8)
    embeddings = encode(subject, items, "document")
    assert 0 < subject.opened.embedded <= 1000 - 4 * 2
    assert _equal(embeddings, encode(build_subject(tmp_path / "fresh", batch_tokens=8), items, "document"))


def test_loaded_embedder_takes_texts_and_items(tmp_path):
    """The public way in."""
    embeddings = build_subject(tmp_path).encode(["a text", Item(image=page("b"))])
    assert len(embeddings) == 2


def test_workers_leave_the_cores_to_the_model(monkeypatch):
    """On a CPU preparing does not compete with the model's threads; there is always one worker."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert encode_loop._workers("cpu") == 1
    assert encode_loop._workers("cuda") >= 1


def test_pages_ahead_are_few_whatever_the_budget(tmp_path):
    """Pages become few tokens and take much memory: 64 are prepared together, and as many ahead."""
    subject = build_subject(tmp_path, batch_tokens=1_000_000)
    opened, ahead = subject.opened, []
    original = opened.embed

    def embed(batch, role):
        ahead.append(opened.prepared - opened.embedded)
        return original(batch, role)

    opened.embed = embed
    encode(subject, [Item(image=page(str(n), size=(40, 40))) for n in range(200)], "document")
    assert max(map(len, opened.batches)) == 64
    assert max(ahead) <= 2 * 64


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (None, "embed returned None for a batch of 2"),
        ([np.ones(4)], "embed returned 1 results for a batch of 2"),
        ([torch.ones(4)] * 2, "embed returned Tensor for an item"),
        ([[1.0]] * 2, "embed returned list for an item"),
    ],
)
def test_what_is_no_array_per_item_is_the_embedders_error(returned, words):
    """The message says what was returned."""
    with pytest.raises(PluginError, match=words):
        encode_loop.one_per_item(returned, 2)
