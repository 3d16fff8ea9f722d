"""What changed in the answers: flips, texts, lengths, cut and looping answers, and the documents behind them."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from llmquant.errors import DamagedError, OptionError, UnknownNameError
from llmquant.results.comparison import Comparison
from llmquant.results.report.summary import tables
from llmquant.study.run import Measurement, Sample
from made_up import BASELINE, MadeUpStudy, completed, experiment

# Of 100 documents the baseline answers 60; the variant loses 12 of these and gains 5.
BEFORE = [1.0] * 60 + [0.0] * 40
AFTER = [0.0] * 12 + [1.0] * 53 + [0.0] * 35


def samples(scores, metric="acc", **columns) -> list[Sample]:
    """Make one sample per score; each of `columns` is a list of a field's values."""
    made = [Sample(f"d{i}", f"p{i}", {metric: float(score)}, f"answer {i}") for i, score in enumerate(scores)]
    for name, values in columns.items():
        made = [replace(sample, **{name: value}) for sample, value in zip(made, values, strict=True)]
    return made


def study(before, after, *, metric="acc", higher_is_better=True, task="t", prompts=None) -> Comparison:
    """Compare one variant with its baseline."""
    made = MadeUpStudy()
    for label, scored in ((BASELINE, before), ("nf4", after)):
        value = float(np.mean([sample.scores[metric] for sample in scored]))
        measurement = Measurement(task, metric, value, higher_is_better=higher_is_better, n=len(scored))
        made.add(completed(experiment(label, "lm_eval(t)"), measurement), {task: scored})
    texts = prompts or {}
    return Comparison(made.record, made.runs, made.read, prompts=lambda keys: {k: texts[k] for k in keys if k in texts})


def test_flips_are_counted_in_both_directions():
    """Their shares have exact intervals, and their difference is the row's."""
    found = study(samples(BEFORE), samples(AFTER))
    (change,) = found.changes()
    (score,) = change.scores
    assert (score.binary, score.lost.count, score.gained.count, score.changed.count) == (True, 12, 5, 17)
    for share in (score.lost, score.gained, score.changed):
        exact = stats.binomtest(share.count, 100).proportion_ci(0.95, "exact")
        assert (share.value, share.n) == (share.count / 100, 100)
        assert (share.low, share.high) == pytest.approx((exact.low, exact.high))
    row = next(row for row in found.rows() if row.variant == "nf4" and row.metric == "acc")
    assert (score.difference, score.low, score.high) == (row.difference, row.difference_low, row.difference_high)


def test_a_lower_error_is_a_gain():
    """The direction of the metric decides what is lost."""
    (change,) = study(samples(BEFORE, "err"), samples(AFTER, "err"), metric="err", higher_is_better=False).changes()
    assert (change.scores[0].gained.count, change.scores[0].lost.count) == (12, 5)


def test_graded_scores_are_better_or_worse():
    """They are not flips."""
    (change,) = study(samples([0.5, 0.5, 0.5, 1.0]), samples([0.4, 0.1, 0.9, 1.0])).changes()
    (score,) = change.scores
    assert (score.binary, score.gained.count, score.lost.count, score.changed.count) == (False, 1, 2, 3)


def test_answers_that_differ_are_counted_whatever_their_score():
    """Equal scores may come from different texts."""
    after = samples(BEFORE, answer=[f"answer {i}" if i % 4 else "other" for i in range(100)])
    (change,) = study(samples(BEFORE), after).changes()
    assert change.answers is not None
    assert (change.answers.count, change.answers.n, change.scores[0].changed.count) == (25, 100, 0)


@pytest.mark.parametrize(
    ("early", "other", "also_early", "differ"),
    [
        ("white\n", "white\nQ: Who else?", False, False),
        ("white\n", "white", False, False),
        ("white\n", "white\n\n", True, False),
        ("white\n", "white cat\n", False, True),
        ("white cat\n", "white", False, True),
        ("white\n", "a white", True, True),
    ],
)
def test_an_early_answer_differs_only_from_what_does_not_continue_it(early, other, also_early, differ):
    """Whatever was not generated does not differ; a stop string cuts off the line break that ends a first line."""
    ones, others = (samples([1.0], answer=[text]) for text in (early, other))
    ones = [replace(ones[0], early=True)]
    others = [replace(others[0], early=also_early)]
    for before, after in ((ones, others), (others, ones)):
        (change,) = study(before, after).changes()
        assert change.answers.count == differ


@pytest.mark.parametrize(
    ("other", "differ"),
    [('[["p1", 0.83], ["p2", 0.5]]', 0), ('[["p2", 0.9], ["p1", 0.8]]', 1), ('[["p1", 0.9]]', 1), ("[[p1", 1)],
)
def test_a_search_has_changed_if_it_finds_other_documents(other, differ):
    """Quantization moves every score; what a user sees are the documents and their order."""
    one = samples([1.0], answer=['[["p1", 0.9], ["p2", 0.8]]'])
    (change,) = study(one, samples([1.0], answer=[other])).changes()
    assert change.answers.count == differ


def test_lengths_are_compared_as_a_ratio_of_means():
    """Its interval is that of a ratio of paired means."""
    random = np.random.default_rng(0)
    before = random.integers(20, 200, 100)
    after = before + random.integers(0, 40, 100)
    (change,) = study(samples(BEFORE, generated=before.tolist()), samples(AFTER, generated=after.tolist())).changes()
    length = change.generated
    ratio = after.mean() / before.mean()
    residuals = after - ratio * before
    reach = stats.t.ppf(0.975, 99) * math.sqrt(100 / 99 * residuals @ residuals) / before.sum()
    assert (length.mean, length.baseline_mean) == (after.mean(), before.mean())
    assert (length.ratio, length.low, length.high) == pytest.approx((ratio, ratio - reach, ratio + reach))


def test_cut_and_looping_answers_are_shares_with_a_paired_difference():
    """Of 100 answers, 10 are cut in both and 8 more in the variant; none loops."""
    cut, no = [True] * 10 + [False] * 90, [False] * 100
    after = samples(AFTER, cut=[True] * 18 + [False] * 82, looping=no)
    (change,) = study(samples(BEFORE, cut=cut, looping=no), after).changes()
    assert (change.cut.value, change.cut.baseline_value, change.cut.difference) == pytest.approx((0.18, 0.1, 0.08))
    assert 0 < change.cut.low < 0.08 < change.cut.high
    assert (change.looping.value, change.looping.difference) == (0, 0)


def test_what_was_not_kept_is_missing():
    """Stores of older versions have no lengths, and some evaluators no answers."""
    (change,) = study(samples(BEFORE, answer=[None] * 100), samples(AFTER)).changes()
    assert (change.answers, change.generated, change.cut, change.looping) == (None,) * 4


def test_documents_with_a_shared_source_count_as_one():
    """The interval is wider than that of independent documents, as all of a story flip together."""
    groups = [f"story {i // 10}" for i in range(400)]
    before = samples([1.0] * 400, group=groups)
    after = samples([float(i // 10 % 4 > 0) for i in range(400)], group=groups)
    (change,), (apart,) = (
        study(before, after).changes(),
        study(samples([1.0] * 400), samples([s.scores["acc"] for s in after])).changes(),
    )
    together, alone = change.scores[0].lost, apart.scores[0].lost
    assert together.count == alone.count == 100
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_only_documents_asked_alike_are_compared():
    """Another prompt, another document and a score that is not a number are left out."""
    after = samples(AFTER)
    after[0] = replace(after[0], prompt="another")
    after[1] = replace(after[1], document="another")
    (change,) = study(samples(BEFORE), after).changes()
    assert (change.documents, change.scores[0].lost.count) == (98, 10)


@pytest.mark.parametrize("values", [[math.nan], [math.inf]], ids=str)
def test_scores_that_are_not_finite_are_left_out(values):
    """A task without any other score has no change of scores."""
    (change,) = study(samples([1.0]), samples(values)).changes()
    assert (change.documents, change.scores) == (1, ())


def test_one_document_is_enough():
    """It has shares, whose intervals are nearly everything."""
    (change,) = study(samples([1.0], generated=[4]), samples([0.0], generated=[8])).changes()
    assert (change.scores[0].lost.value, change.scores[0].lost.high, change.generated.ratio) == (1, 1, 2)


def test_nothing_is_compared_without_a_baseline():
    """There are no changes then, and the tables show none."""
    found = study(samples(BEFORE), samples(AFTER))
    first = next(iter(found.runs))
    alone = Comparison(found.record, {k: v for k, v in found.runs.items() if k != first}, found._samples)
    assert alone.changes() == []
    assert "Answers" not in alone.to_text()


def test_damaged_samples_leave_the_other_variants():
    """The rows say why; nothing fails."""
    found = study(samples(BEFORE), samples(AFTER))
    last = list(found.runs)[-1]

    def read(run_id):
        if run_id == last:
            raise DamagedError("the samples cannot be read")
        return found._samples(run_id)

    assert Comparison(found.record, found.runs, read).changes() == []


def test_changes_are_json():
    """Every number is finite, and every missing one is null."""
    (change,) = study(samples(BEFORE, generated=[0] * 100), samples(AFTER, generated=[3] * 100)).changes()
    data = json.loads(json.dumps(change.to_json(), allow_nan=False))
    assert data["scores"][0]["lost"]["count"] == 12
    assert data["generated"] == {"mean": 3.0, "baseline_mean": 0.0, "ratio": None, "low": None, "high": None}


def test_flipped_documents_come_with_question_and_both_answers():
    """Those whose score changed most come first; unchanged ones are left out."""
    before = samples([0.5, 1.0, 0.5, 0.2], target=["blue"] * 4)
    after = samples([0.4, 0.0, 0.5, 0.9], answer=["a", "b", "c", "d"], generated=[1, 2, 3, 4])
    found = study(before, after, prompts={"p1": "What color was the kite?"})
    first, second = found.flipped("nf4", "t", limit=2)
    assert (first.prompt, first.baseline_answer, first.answer) == ("What color was the kite?", "answer 1", "b")
    assert (first.baseline_score, first.score, first.change, first.generated) == (1, 0, -1, 2)
    assert (second.document, second.prompt, second.change) == ("d3", None, pytest.approx(0.7))
    assert [each.document for each in found.flipped("nf4", "t")] == ["d1", "d3", "d0"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"variant": "nf5", "task": "t"}, "there is no variant 'nf5'"),
        ({"variant": "nf4", "task": "u"}, "there is no task 'u'"),
        ({"variant": "nf4", "task": "t", "metric": "f1"}, "there is no metric 'f1'"),
    ],
    ids=["variant", "task", "metric"],
)
def test_an_unknown_name_is_refused(asked, message):
    """The message names what was asked for."""
    with pytest.raises(UnknownNameError, match=message):
        study(samples(BEFORE), samples(AFTER)).flipped(**asked)


def test_the_frame_of_samples_has_a_line_per_document():
    """Scores and answers stand beside the baseline's."""
    frame = study(samples(BEFORE), samples(AFTER, target=["blue"] * 100), prompts={"p0": "Why?"}).samples_frame()
    assert len(frame) == 100
    line = frame.iloc[0]
    assert (line["variant"], line["task"], line["metric"], line["prompt"]) == ("nf4", "t", "acc", "Why?")
    assert (line["baseline_score"], line["score"], line["change"], line["reference"]) == (1, 0, -1, "blue")
    assert frame["prompt"].isna().sum() == 99
    assert len(study(samples(BEFORE), samples(AFTER)).samples_frame(variant=BASELINE)) == 0


def test_the_table_of_answers_fits_a_terminal():
    """It has flips, answers, lengths and ends, each with the baseline's."""
    before = samples(BEFORE, generated=[200] * 100, cut=[False] * 100, looping=[False] * 100)
    after = samples(AFTER, generated=[216] * 100, cut=[True] * 4 + [False] * 96, looping=[True] * 2 + [False] * 98)
    text = study(before, after).to_text(width=80)
    assert max(map(len, text.splitlines())) <= 80
    (line,) = [line for line in text[text.index("Answers to t") :].splitlines() if line.startswith("nf4")]
    assert line.split() == ["nf4", "12", "/", "5", "0.0", "216", "(1.08x)", "4.0", "(0.0)", "2.0", "(0.0)"]


def test_many_tasks_have_one_line_per_variant():
    """Counts are added up, and shares are of all documents."""
    made = MadeUpStudy()
    for label, scores in ((BASELINE, BEFORE), ("nf4", AFTER)):
        for number in range(5):
            scored = {f"t{number}": samples(scores)}
            measurement = Measurement(f"t{number}", "acc", float(np.mean(scores)), higher_is_better=True, n=100)
            made.add(completed(experiment(label, f"lm_eval(t{number})"), measurement), scored)
    found = Comparison(made.record, made.runs, made.read)
    (table,) = [table for table in tables(found) if "Answers" in table.title]
    assert table.title == "Answers to 5 tasks"
    assert [[cell.text for cell in row] for row in table.cells()] == [["nf4", "60 / 25", "0.0"]]


@pytest.mark.parametrize("metric", ["ndcg_at_10", "top_1_changed"])
def test_queries_are_neither_right_nor_wrong(metric):
    """A search lists the queries with other best documents, not flips of scores that all happen to be 0 or 1."""
    made = MadeUpStudy()
    for label, best in ((BASELINE, '[["a", 0.9], ["b", 0.8]]'), ("nf4", '[["b", 0.9], ["a", 0.8]]')):
        kept = [best] * 25 + ['[["c", 0.7]]'] * 75 if metric == "ndcg_at_10" else [None] * 100
        scored = {"t": samples([0.0] * 100, metric, answer=kept)}
        measurement = Measurement("t", metric, 0.0, higher_is_better=metric == "ndcg_at_10", n=100)
        evaluator = "beir(t)" if metric == "ndcg_at_10" else "drift(t)"
        made.add(completed(experiment(label, evaluator), measurement), scored)
    found = [table for table in tables(Comparison(made.record, made.runs, made.read)) if "Answers" in table.title]
    if metric == "top_1_changed":
        assert not found
    else:
        assert [[cell.text for cell in row] for row in found[0].cells()] == [["nf4", "25.0"]]
        assert found[0].footnotes == ("The answer to a query is its five best documents, in their order.",)


def test_text_in_answers_is_not_markup():
    """A label with control characters is shown, not obeyed."""
    text = study(samples(BEFORE), samples(AFTER), task="t\x1b[31m").to_text()
    assert "\x1b" not in text
    assert "Answers to t" in text


def test_more_documents_than_are_kept_are_refused():
    """The message names the way to all of them."""
    with pytest.raises(OptionError, match="limit is 51") as raised:
        study(samples(BEFORE), samples(AFTER)).flipped(limit=51)
    assert "samples_frame()" in raised.value.hint


def test_each_run_is_read_once_for_rows_changes_and_documents():
    """A large study takes minutes to read."""
    found = study(samples(BEFORE), samples(AFTER))
    read = []
    counted = Comparison(found.record, found.runs, lambda run_id: [read.append(run_id), found._samples(run_id)][1])
    counted.rows(), counted.changes(), counted.flipped(), counted.to_text()
    assert sorted(read) == sorted(found.runs)
