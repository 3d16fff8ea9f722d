"""Names of variants and lists of them stay short enough to be read."""

from __future__ import annotations

import re

import pytest

from llmquant.cli.study_list import study_tables
from llmquant.results.comparison import Comparison
from llmquant.results.pooled import shown_name
from llmquant.results.report.html import to_html_table
from llmquant.results.report.names import ShortNames
from llmquant.results.report.summary import tables
from llmquant.results.report.table import Column, Table
from llmquant.results.report.text import render
from llmquant.study.counting import some
from made_up import BASELINE, MadeUpStudy, completed, experiment, memory, perplexity, realistic_study, scored, store_of

CALIBRATED = [f"gptq(bits={bits}, group_size=128, calibration=/data/calibration/c4.txt)" for bits in range(2, 20)]
TAKEN = "prequantized(/home/someone/models/their-awq)"


def study() -> MadeUpStudy:
    found = MadeUpStudy()
    for place, label in enumerate((BASELINE, *CALIBRATED, TAKEN)):
        value, samples = scored("coqa", "f1", [0.9 - 0.04 * place, 0.8, 0.7, 0.2 + 0.04 * place] * 10)
        found.add(completed(experiment(label, "lm_eval(coqa)"), value), {"coqa": samples})
        found.add(completed(experiment(label, "memory", hardware="cpu"), *memory(900 - place, 0, 950, 80, 90)))
    return found


@pytest.fixture(scope="module")
def found() -> Comparison:
    made = study()
    return Comparison(made.record, made.runs, made.read)


def test_short_names_leave_out_folders_and_what_all_share():
    """And say so."""
    short = ShortNames.of([BASELINE, *CALIBRATED, TAKEN, f"{TAKEN} · int8"])
    assert short.name(CALIBRATED[0]) == "gptq(bits=2)"
    assert short.name(TAKEN) == "prequantized(their-awq)"
    assert short.name(f"{TAKEN} · int8") == "prequantized(their-awq) · int8"
    assert short.name(BASELINE) == BASELINE
    assert short.text(f"Ship {CALIBRATED[1]}.") == "Ship gptq(bits=3)."
    assert short.notes == (
        "Every gptq also has group_size=128, calibration=/data/calibration/c4.txt.",
        "their-awq is /home/someone/models/their-awq.",
    )


@pytest.mark.parametrize(
    "labels",
    [
        ["bf16_baseline", "gptq(bits=3, calibration=./c.txt)"],
        ["an imported variant, whose name is no call (of anything at all)"],
        ['prequantized("/home/someone/my models/a checkpoint with spaces")'],
        [f"prequantized(/home/someone/models/{folder}/checkpoint)" for folder in ("awq", "gptq")],
        [TAKEN, "prequantized(their-awq)"],
        [],
    ],
)
def test_names_stay_that_are_short_or_would_be_equal(labels):
    """A path keeps its folders where another path ends alike."""
    short = ShortNames.of(labels)
    names = [short.name(label) for label in labels]
    assert names == labels


def test_a_report_has_short_names_and_the_command_has_all(found):
    """The lines to copy stay as they are."""
    *_, advice = shown = tables(found)
    words = "\n".join(text for table in shown for text in (table.title, *table.footnotes))
    assert "gptq(bits=3)" in words
    assert not any(label in words for label in CALIBRATED)
    assert any("/c4.txt)" in line or BASELINE in line for line in advice.code)
    assert CALIBRATED[0] in found.to_csv().replace('"', "")
    body = found.to_html().partition("Make it again")[0]
    assert body.count("/data/calibration/c4.txt") == sum("c4.txt" in line for line in advice.code) + 1


def test_a_page_shows_the_runner_up(found):
    """Beside what to ship; only the reasons against the others are shown on a click."""
    page = found.at_margin(99).to_html()
    assert re.search(r"<p>Runner-up: [^<]*</p><details><summary>Why not the other 18<", page)


def test_lists_show_their_first_items(found):
    """All of them with explain."""
    short, whole = (found.to_text(explain=explain) for explain in (False, True))
    assert "- 10 more with --explain" in short
    assert "more with --explain" not in whole
    assert len(whole.splitlines()) > len(short.splitlines()) + 8


def test_tables_with_long_names_fit_a_narrow_terminal(found):
    """A verdict stays beside its numbers."""
    text = render(tables(found), 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("no worse\n") == 1


def test_a_table_with_many_tasks_is_several_in_a_notebook():
    """Each with the names of the variants, so that none is wider than the page; two tasks stay in one table."""

    def heads(tasks: int) -> int:
        column = [
            part for task in range(tasks) for part in (Column((f"{task}",), f"{task}"), Column(("d",), f"{task}"))
        ]
        cells = ("a", *["1"] * (2 * tasks))
        return to_html_table([Table("Quality", ("variant", *column), (cells,))]).count(">variant</th>")

    assert [heads(tasks) for tasks in (1, 2, 3, 4)] == [1, 1, 3, 4]


def test_the_list_of_studies_names_a_few_variants(tmp_path):
    """And counts the others."""
    *_, listed = study_tables(store_of(study(), tmp_path / "store"))
    (line,) = listed.footnotes
    assert line.endswith("gptq(bits=5) and 15 more; evaluators lm_eval(coqa), memory")


def test_the_verdict_names_the_best_first():
    """Variants that could be shipped stand before those that could not."""
    made = realistic_study()
    title, *_ = [table.title for table in tables(Comparison(made.record, made.runs, made.read)) if table.is_verdict]
    assert title.partition(": ")[2] == (
        "bnb_4bit_nf4 and gptq_4bit_g128 are undecided; bnb_4bit_fp4 and gptq_3bit_g128 are worse; "
        "bnb_8bit is not judged."
    )


def test_a_verdict_without_an_interval_says_why():
    """Four windows have a ratio, and no interval that could exclude anything."""
    made = MadeUpStudy()
    for label, nll in ((BASELINE, [10.0, 11, 12, 13]), ("bnb_4bit_nf4", [12.0, 14, 13, 16])):
        values, windows = perplexity(nll, [8, 8, 8, 8])
        made.add(completed(experiment(label, "perplexity"), *values), {"perplexity": windows})
    text = Comparison(made.record, made.runs, made.read).to_text()
    assert "· bnb_4bit_nf4: too few documents for an interval; the footnotes of the next tables say why." in text
    assert "· No interval for perplexity: fewer than 6 scores differ." in text


def test_one_variant_alone_is_not_compared_and_says_so():
    """There is neither a verdict nor a recommendation."""
    made = MadeUpStudy()
    made.add(completed(experiment(BASELINE, "memory", hardware="cpu"), *memory(900, 0, 950, 80, 90)))
    *_, notes = tables(Comparison(made.record, made.runs, made.read))
    assert (notes.title, notes.footnotes) == (
        "Notes",
        ("Nothing is compared, because the study has only one variant.",),
    )


def test_answers_have_no_column_without_values():
    """Nor a footnote about one: here documents are right or wrong, and no answer was kept or counted."""
    made = realistic_study()
    (answers,) = [table for table in tables(Comparison(made.record, made.runs, made.read)) if "Answers" in table.title]
    assert [answers.column(place).title for place in range(len(answers.columns))] == ["variant", "lost / gained"]
    assert [note.partition(":")[0] for note in answers.footnotes] == ["Lost"]


def test_a_metric_has_one_name_in_a_report():
    """In tables, footnotes and captions of charts."""
    assert [shown_name(name) for name in ("coqa f1", "em", "VidoreDocVQA ndcg_at_5", "acc_norm", "a_task em")] == [
        *("coqa F1", "EM", "VidoreDocVQA NDCG@5", "acc norm", "a_task EM")
    ]
    made = realistic_study(200)
    page = Comparison(made.record, made.runs, made.read).to_html().partition("Make it again")[0]
    assert "coqa F1" in page
    assert not re.search(r"coqa (f1|em)\b", page)


def test_a_few_names_are_written_whole():
    """One more than is cut would be as long."""
    assert some("abcdef") == "a, b, c, d, e, f"
    assert some("abcdefg") == "a, b, c, d, e and 2 more"
    assert some(["a", "a"]) == "a"
