"""Perplexity: each token scored once, after the context that was promised, and nothing else."""

from __future__ import annotations

import functools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmquant.errors import OptionError, RequestErrors, RunError
from llmquant.evaluators.perplexity.evaluator import Perplexity
from llmquant.evaluators.perplexity.options import PerplexityOptions
from llmquant.evaluators.perplexity.windows import encode, sliding_windows
from llmquant.plugins.options import build, dump, input_files, restore
from llmquant.stats.samples import pair_samples
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, InputFile

TEXT = (
    "The lamp above the quay burned blue, and every boat that passed it rang a bell – twice for grain, once for ore.\n"
    "Nobody knew why. “It was so in my grandfather's day,” said the pilot, “and it cost him 3 crowns to forget it.”\n\n"
    "In June the river is low; naïve captains run aground at the bend below the mill, where the sand moves by night.\n"
)


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "river.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def evaluate(subject, ctx, path, **options):
    given = PerplexityOptions(InputFile.read(path), **options)
    (result,) = Perplexity(given).evaluate(subject, ctx)
    return result, {measurement.metric: measurement for measurement in result.measurements}


def with_bos(subject, lead=1):
    """Return the same model with a tokenizer that puts its BOS, or further tokens, in front of every text."""
    from tokenizers.processors import TemplateProcessing

    tokens = [(token, number) for number, token in sorted(subject.tokenizer.added_tokens_decoder.items())][1:]
    assert tokens[0][1] == subject.tokenizer.bos_token_id
    tokens = [(str(token), number) for token, number in tokens[:lead]]
    subject.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=[*(token for token, _ in tokens), "$A"], special_tokens=tokens
    )
    return subject


@torch.no_grad()
def slowly(subject, window, stride, lead):
    """Score each token by itself, with the whole context of its window and float64 sums: nats per token."""
    ids = subject.tokenizer(TEXT, add_special_tokens=False).input_ids
    nats = []
    leading = subject.tokenizer("").input_ids
    assert len(leading) == lead
    for position in range(0 if lead else 1, len(ids)):
        # The windows end at room + 1, then every stride tokens.
        room = window - lead
        stride = min(stride, room + 1)
        end = room + 1 if position <= room else room + 1 + -(-(position - room) // stride) * stride
        begin = max(0, min(end, len(ids)) - 1 - room)
        context = leading + ids[begin:position]
        logits = subject.module(torch.tensor([context])).logits[0, -1].double()
        nats.append(float(torch.logsumexp(logits, 0) - logits[ids[position]]))
    return nats


@pytest.mark.parametrize(("window", "stride"), [(16, 4), (16, 16), (31, 7), (4096, 512)])
@pytest.mark.parametrize("lead", [0, 1, 2], ids=["no-bos", "bos", "two"])
def test_every_token_is_scored_as_if_by_itself(subject, context, text_file, window, stride, lead):
    """Sliding windows give the mean of one forward pass a token, after the tokens that GLM puts before a text, too."""
    nats = slowly(with_bos(subject, lead) if lead else subject, min(window, 2048), stride, lead)
    result, found = evaluate(subject, context(), text_file, window=window, stride=stride)
    assert result.details["tokens"] == len(nats)
    assert found["nll_per_token"].value == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert found["perplexity"].value == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)


def test_one_chunk_is_the_loss_of_transformers(subject, context, text_file):
    """The first window's mean is what the model itself returns for these labels."""
    ids = torch.tensor([subject.tokenizer(TEXT, add_special_tokens=False).input_ids[:41]])
    with torch.no_grad():
        loss = float(subject.module(ids, labels=ids).loss)
    result, _ = evaluate(subject, context(), text_file, window=40, stride=40)
    first = result.samples[0].scores
    assert first["tokens"] == 40
    assert first["nll"] / first["tokens"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.parametrize("batch_size", [2, 100])
def test_batches_change_nothing(subject, context, text_file, batch_size):
    """Windows of one length go together, without padding."""
    alone, _ = evaluate(subject, context(), text_file, window=16, stride=5)
    together, _ = evaluate(subject, context(), text_file, window=16, stride=5, batch_size=batch_size)
    assert [s.document for s in together.samples] == [s.document for s in alone.samples]
    for one, other in zip(together.samples, alone.samples, strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-5)


@given(
    tokens=st.integers(0, 200),
    window=st.integers(2, 40),
    stride=st.integers(1, 40),
    lead=st.integers(0, 2),
)
def test_windows_cover_the_text_once(tokens, window, stride, lead):
    """Each token once and in order, no window longer than asked, and the promised context before every token."""
    stride = min(stride, window)
    windows = sliding_windows(tokens, window=window, stride=stride, lead=lead)
    assert [t for w in windows for t in range(w.first, w.end)] == list(range(0 if lead else 1, tokens))
    for w in windows:
        assert lead + (w.end - 1) - w.begin <= window
        assert w.first - w.begin + lead >= 1
        assert w.begin == 0 or lead + w.first - w.begin > window - stride


def test_bytes_are_those_of_the_text(subject, context, text_file):
    """The windows' bytes add up to what was scored, also where a token is part of a character."""
    result, found = evaluate(with_bos(subject), context(), text_file, window=16, stride=3)
    total = {key: sum(sample.scores[key] for sample in result.samples) for key in ("nll", "bytes")}
    assert total["bytes"] == pytest.approx(len(TEXT.encode()), abs=1)  # a tokenizer may count out the last line's end
    assert found["bits_per_byte"].value == pytest.approx(total["nll"] / total["bytes"] / math.log(2))


def test_a_tokenizer_that_tells_no_places_gives_no_bits_per_byte(subject, context, text_file):
    """A number that cannot be had is left out, not guessed."""

    class Slow:
        is_fast, bos_token_id = False, None

        def __call__(self, text, return_offsets_mapping=False, **_):
            assert not return_offsets_mapping
            return subject.tokenizer(text, add_special_tokens=False)

    result, found = evaluate(replace(subject, tokenizer=Slow()), context(), text_file, window=16, stride=16)
    assert set(found) == {"perplexity", "nll_per_token"}
    assert "bytes" not in result.samples[0].scores


def test_the_errors_agree_with_each_other(subject, context, text_file):
    """By the delta method the error of a perplexity is its value times the error of the nats."""
    _, found = evaluate(subject, context(), text_file, window=16, stride=16)
    nats, perplexity = found["nll_per_token"], found["perplexity"]
    assert nats.stderr > 0
    assert perplexity.stderr == pytest.approx(perplexity.value * nats.stderr)


def test_one_window_has_no_error(subject, context, text_file):
    """Nothing is known of the spread of one."""
    _, found = evaluate(subject, context(), text_file, window=2048)
    assert {measurement.stderr for measurement in found.values()} == {None}


def test_two_variants_pair_window_by_window(subject, context, text_file):
    """Every measurement is the sum of its samples, so that a difference has an interval."""
    before, found = evaluate(subject, context(), text_file, window=16, stride=16)
    with torch.no_grad():
        subject.module.lm_head.weight.mul_(0.9)
    after, changed = evaluate(subject, context(), text_file, window=16, stride=16)
    for metric in ("perplexity", "nll_per_token", "bits_per_byte"):
        pairs = pair_samples(changed[metric], found[metric], {after.task: after.samples}, {before.task: before.samples})
        assert pairs.difference().n == len(before.samples), pairs.reason


def test_only_so_many_tokens_are_read(subject, context, text_file):
    """The limit counts tokens of the text; the first has nothing before it."""
    result, _ = evaluate(subject, context(), text_file, window=16, stride=16, max_tokens=50)
    assert result.details["tokens"] == 49


def test_a_window_longer_than_the_model_is_clipped_and_told(subject, context, text_file):
    """The model has 2048 positions; a stride that was not given is half of what is left."""
    result, _ = evaluate(subject, context(), text_file, window=5000, stride=5000)
    assert (result.details["window"], result.details["stride"]) == (2048, 2048)
    result, _ = evaluate(subject, context(), text_file, window=5000)
    assert (result.details["window"], result.details["stride"]) == (2048, 1024)


def test_a_model_that_computes_all_logits_gives_the_same(subject, context, text_file, monkeypatch):
    """Models with code of their own may not know how to leave out logits."""
    known, _ = evaluate(subject, context(), text_file, window=32, stride=8)
    forward = subject.module.forward

    def plain(input_ids, use_cache):
        return forward(input_ids=input_ids, use_cache=use_cache)

    monkeypatch.setattr(subject.module, "forward", plain)
    unknown, _ = evaluate(subject, context(), text_file, window=32, stride=8)
    for one, other in zip(known.samples, unknown.samples, strict=True):
        assert one.scores == pytest.approx(other.scores, rel=1e-6)


def test_nan_is_a_failure(subject, context, text_file):
    """A model that overflows has no perplexity, and says so."""
    with torch.no_grad():
        subject.module.model.norm.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="NaN"):
        evaluate(subject, context(), text_file, window=32)


def test_equal_windows_stay_apart(subject, context, tmp_path):
    """A text that repeats itself has samples that still pair one to one."""
    path = tmp_path / "again.txt"
    path.write_text("ha " * 400)
    result, _ = evaluate(subject, context(), path, window=32, stride=16)
    keys = [(sample.document, sample.occurrence) for sample in result.samples]
    assert len(set(keys)) == len(keys) > len({document for document, _ in keys})


def test_a_byte_order_mark_is_not_scored(subject, context, text_file):
    """The numbers are those of the text without it."""
    before, _ = evaluate(subject, context(), text_file, window=32)
    text_file.write_bytes(b"\xef\xbb\xbf" + text_file.read_bytes())
    after, _ = evaluate(subject, context(), text_file, window=32)
    assert (after.measurements, after.samples, after.details) == (before.measurements, before.samples, before.details)


def test_line_ends_are_scored_as_they_are(subject, context, text_file):
    """Bits per byte are over the bytes of the file, a carriage return before each line feed among them."""
    text_file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    result, _ = evaluate(with_bos(subject), context(), text_file, window=32)
    assert sum(sample.scores["bytes"] for sample in result.samples) == text_file.stat().st_size
    assert result.details["text"] == InputFile.read(text_file).digest


def test_progress_counts_windows(subject, context, text_file):
    """Up to all of them."""
    seen = []
    ctx = replace(context(), progress=lambda done, total: seen.append((done, total)))
    result, _ = evaluate(subject, ctx, text_file, window=16, stride=16)
    assert seen == [(done, len(result.samples)) for done in range(1, len(result.samples) + 1)]


def test_a_worker_knows_the_text_by_its_content(subject, context, text_file):
    """Restored options have no path; the context does."""
    given = build(PerplexityOptions, Call.parse(f"perplexity({text_file}, window=32, stride=32)"))
    there = restore(PerplexityOptions, dump(given))
    (here,) = Perplexity(given).evaluate(subject, context())
    (result,) = Perplexity(there).evaluate(subject, context(inputs=input_files(given)))
    assert (result.task, result.measurements) == (here.task, here.measurements)


def test_a_text_of_the_hub_is_joined_by_empty_lines(subject, context, monkeypatch):
    """WikiText-2 as everybody scores it."""
    import datasets

    asked = []

    def rows(repository, configuration, *, split):
        asked.append((repository, configuration, split))
        return {"text": TEXT.splitlines()}

    monkeypatch.setattr(datasets, "load_dataset", rows)
    (result,) = Perplexity(PerplexityOptions(window=32, stride=32)).evaluate(subject, context())
    assert asked == [("Salesforce/wikitext", "wikitext-2-raw-v1", "test")]
    assert result.task == "wikitext2"
    tokens = encode(subject.tokenizer, "\n\n".join(TEXT.splitlines())).ids
    assert result.details["tokens"] == len(tokens) - 1


@pytest.mark.parametrize("cell", [None, 5])
def test_a_column_of_the_hub_holds_texts(subject, context, monkeypatch, cell):
    """`None` is not the text "None"."""
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"text": ["a", cell]})
    with pytest.raises(RunError, match=f"column 'text' of Salesforce/wikitext, row 1, is {cell}"):
        list(Perplexity(PerplexityOptions()).evaluate(subject, context()))


def test_a_text_that_cannot_be_fetched_is_asked_for_as_a_file(subject, context, monkeypatch):
    """Without a connection the message names the data set and the way out."""
    import datasets

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'Salesforce/wikitext' on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RunError, match="Salesforce/wikitext") as caught:
        list(Perplexity(PerplexityOptions()).evaluate(subject, context()))
    assert "perplexity(FILE.txt)" in caught.value.hint


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("perplexity(window=1)", "window must be at least 2"),
        ("perplexity(stride=0)", "stride must be 1 to window"),
        ("perplexity(window=64, stride=65)", "stride must be 1 to window"),
        ("perplexity(max_tokens=1)", "max_tokens must be at least 2"),
        ("perplexity(batch_size=0)", "batch_size must be at least 1"),
        ("perplexity(missing.txt)", "'missing.txt' is neither a file"),
        ("perplexity(a:b:c)", "nor the name of a data set"),
    ],
)
def test_what_cannot_be_meant_is_refused(text, words):
    """Before anything is loaded."""
    with pytest.raises(OptionError, match=words):
        build(PerplexityOptions, Call.parse(text)).check(None, "cpu")


def test_mistakes_are_told_together():
    """Two mistakes, two messages."""
    with pytest.raises(RequestErrors) as caught:
        PerplexityOptions(window=1, batch_size=0)
    assert len(caught.value.errors) == 2


@pytest.mark.parametrize(
    ("content", "words"), [(b"too short", "cannot fill a window"), (b"\xff\xfe" + b"x" * 2000, "byte 0 is 0xff")]
)
def test_a_file_that_is_no_text_to_score_is_refused(tmp_path, content, words):
    """Too short for a window, or not UTF-8."""
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=words):
        PerplexityOptions(InputFile.read(path)).check(None, "cpu")


@pytest.mark.parametrize("text", ["wikitext2", "Salesforce/wikitext:wikitext-2-raw-v1:test:text", "a/b::train:text"])
def test_a_data_set_is_taken_by_name(text):
    """With or without a configuration."""
    build(PerplexityOptions, Call.parse(f"perplexity({text})")).check(None, "cpu")


def test_cost_is_the_tokens_of_all_windows():
    """Overlap is paid for."""
    cost = functools.partial(PerplexityOptions.cost, model=None, documents=Documents())
    assert cost(PerplexityOptions(window=1024, stride=1024, max_tokens=4096)).prefill_tokens == 4096
    assert cost(PerplexityOptions(window=1024, stride=512, max_tokens=4096)).prefill_tokens == 7168
