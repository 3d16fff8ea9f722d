"""What people see: tables that fit, say what is known and no more, and lose nothing on the way to a file."""

from __future__ import annotations

import builtins
import csv
import io
import json
import math
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from llmquant.errors import MissingDependencyError, StoreError
from llmquant.results.report.block import sample_count
from llmquant.results.report.export import from_portable_json, portable_json, to_csv, to_frame
from llmquant.results.report.html import to_html_table
from llmquant.results.report.summary import summary
from llmquant.results.report.table import Cell, Column, Table, decimals_for, number
from llmquant.results.report.text import print_tables, render, to_markdown
from llmquant.results.rows import rows
from llmquant.stats.paired import paired_difference
from llmquant.study.experiment import ModelUse
from llmquant.study.run import Measurement
from made_up import BASELINE, HARDWARE, MIB, MadeUpStudy, completed, experiment, failed, realistic_study, scored

COQA = "lm_eval(coqa)"


def tables_of(study: MadeUpStudy) -> list[Table]:
    return summary(rows(study.record, study.runs, study.read), study.record)


def table_of(study: MadeUpStudy, title: str) -> Table:
    return next(table for table in tables_of(study) if table.title == title)


def texts(table: Table) -> dict[str, dict[str, str]]:
    """Return a table's cells by row and column name; of columns with one name the first."""
    names = [table.column(index).title for index in range(len(table.columns))]
    return {row[0].text: dict(reversed([*zip(names, (c.text for c in row), strict=True)])) for row in table.cells()}


def quality_of(base, variant) -> Table:
    study = MadeUpStudy()
    for label, scores in ((BASELINE, base), ("nf4", variant)):
        mean, samples = scored("coqa", "f1", scores)
        study.add(completed(experiment(label, COQA), mean), {"coqa": samples})
    return table_of(study, "Quality")


def add_sized(study: MadeUpStudy, label: str, **mib: float) -> None:
    sizes = [Measurement("memory", f"{name}_bytes", value * MIB, "bytes", False) for name, value in mib.items()]
    study.add(completed(experiment(label, "memory", hardware=HARDWARE), *sizes))


# -- quality ---------------------------------------------------------------------------------------------------------


def test_the_baseline_comes_first_and_every_variant_has_a_row():
    """A table has one row a variant, the baseline on top, the failed one among them."""
    for title in ("Quality", "Memory", "Speed"):
        labels = [row[0].text for row in table_of(realistic_study(), title).cells()]
        assert labels[0] == BASELINE
        assert len(labels) == len(set(labels)) == 6


def test_fifty_samples_make_no_winner():
    """67.6 against 62.5 F1 on 50 documents is shown with its interval, and as undecided."""
    base = [1.0] * 31 + [0.25] + [0.0] * 18
    variant = [0.0] * 5 + [1.0] * 26 + [0.25] + [0.0] * 10 + [0.55] + [1.0] * 7
    cells = texts(quality_of(base, variant))["nf4"]
    assert cells["coqa F1 % (n=50 documents)"].startswith("67.6 ± ")
    assert cells["difference [95% interval]"].startswith("+5.1 [-")
    assert cells["verdict"] == "undecided"


def test_a_clear_loss_is_called_worse():
    """A large, consistent loss is called worse and toned so."""
    table = quality_of(np.linspace(0.5, 1, 60), np.linspace(0.0, 0.5, 60))
    assert [cell for cell in table.cells()[1] if cell.tone == "bad"] == [Cell("worse", "bad")]


def test_no_document_changed_is_no_proof_of_no_loss():
    """Equal scores on 50 documents leave a loss of 7 points possible; on 200 they exclude a loss of 2."""
    few, many = (texts(quality_of([0.0, 1.0] * n, [0.0, 1.0] * n))["nf4"] for n in (25, 100))
    assert (few["verdict"], few["difference [95% interval]"]) == ("undecided", "0.0 [-7.1, +7.1]")
    assert many["verdict"] == "no worse"


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_where_every_document_has_one_score_there_is_no_signal(score):
    """At the floor or the ceiling in every variant, nothing is called no worse."""
    table = quality_of([score] * 50, [score] * 50)
    assert texts(table)["nf4"]["verdict"] == "no signal"
    assert any(note.startswith("no signal:") for note in table.footnotes)


def test_a_variant_that_fails_beside_one_at_the_ceiling_is_a_signal():
    """Where one variant loses, another that keeps every point is judged."""
    study = MadeUpStudy()
    for label, scores in ((BASELINE, [1.0] * 50), ("int8", [1.0] * 50), ("int2", [0.0] * 50)):
        mean, samples = scored("coqa", "f1", scores)
        study.add(completed(experiment(label, COQA), mean), {"coqa": samples})
    found = texts(table_of(study, "Quality"))
    assert (found["int8"]["verdict"], found["int2"]["verdict"]) == ("undecided", "worse")


@pytest.mark.parametrize("sliver", [1e-2, 1e-4, 1e-9])
def test_an_interval_that_decides_is_never_written_with_a_zero(sliver):
    """Beside better or worse no end of an interval reads as no difference."""
    base = np.linspace(2, 3, 50)
    noise = np.random.default_rng(0).normal(size=50)
    centred = noise - noise.mean()
    reach = paired_difference(base + centred, base).high
    written = texts(quality_of(base, base + centred + reach + sliver))["nf4"]
    assert written["verdict"] == "better"
    assert float(written["difference [95% interval]"].split("[")[1].split(",")[0]) > 0


def test_a_difference_without_pairs_has_no_verdict():
    """Values that cannot be paired are subtracted, and nothing is claimed."""
    study = MadeUpStudy()
    for label, value in ((BASELINE, 0.5), ("nf4", 0.7)):
        study.add(completed(experiment(label, COQA), Measurement("coqa", "f1", value, higher_is_better=True)))
    table = table_of(study, "Quality")
    assert [table.column(i).title for i in range(3)] == ["variant", "coqa F1 %", "difference"]
    assert texts(table)["nf4"]["difference"] == "+20.0"
    assert any("No interval" in note for note in table.footnotes)


def test_only_known_shares_are_written_as_per_cent():
    """An unknown metric is shown as it was measured, in a column of its own."""
    study = MadeUpStudy()
    values = (Measurement("x", "f1", 0.5), Measurement("x", "their_score", 0.5), Measurement("y", "f1", 50.0))
    study.add(completed(experiment(BASELINE, "their_evaluator"), *values))
    (cells,) = texts(table_of(study, "Quality")).values()
    assert cells == {"variant": BASELINE, "x F1 %": "50.0", "x their score": "0.5000", "y F1": "50.00"}


def test_evaluators_that_differ_in_options_have_columns_of_their_own():
    """Two settings of one task are distinguished by the option that differs."""
    study = MadeUpStudy()
    for evaluator in (COQA, "lm_eval(coqa, num_fewshot=2)"):
        study.add(completed(experiment(BASELINE, evaluator), Measurement("coqa", "f1", 0.5)))
    (cells,) = texts(table_of(study, "Quality")).values()
    assert set(cells) == {"variant", "coqa F1 %", "coqa F1 % num_fewshot=2"}


def test_what_says_the_same_as_perplexity_is_left_to_the_files():
    """Bits per byte and log-likelihood per token are in the rows and not in the summary."""
    study = realistic_study()
    names = [table_of(study, "Quality").column(i).title for i in range(len(table_of(study, "Quality").columns))]
    assert not any("bits" in name or "nll" in name for name in names)
    assert "bits_per_byte" in to_csv(rows(study.record, study.runs, study.read))


def test_compute_dtypes_are_told_where_they_differ():
    """Variants that compute in another type than the baseline are named."""
    notes = " ".join(table_of(realistic_study(), "Model and variants").footnotes)
    assert "Computes in bfloat16: bf16_baseline; in float16: bnb_4bit_nf4" in notes


# -- cost ------------------------------------------------------------------------------------------------------------


def test_sizes_are_mebibytes_beside_the_baseline():
    """Weights are in MiB of 2^20 bytes, and how many times smaller they are than the baseline's."""
    study = MadeUpStudy()
    add_sized(study, BASELINE, weights=1000, load_peak=1010, prefill_peak=50, decode_peak=80)
    add_sized(study, "nf4", weights=400, load_peak=1100, prefill_peak=60, decode_peak=90)
    assert texts(table_of(study, "Memory"))["nf4"] == {
        "variant": "nf4",
        "weights MiB": "400.0",
        "× smaller": "2.50",
        "peak MiB loading": "1,100.0",
        "peak MiB running": "490.0",
    }


def test_a_peak_that_was_not_measured_is_no_zero():
    """Where the system told no peak there is a dash."""
    study = MadeUpStudy()
    add_sized(study, BASELINE, weights=1000, prefill_peak=50)
    add_sized(study, "nf4", weights=400)
    assert texts(table_of(study, "Memory"))["nf4"]["peak MiB running"] == "–"


def test_peaks_of_two_prompt_lengths_are_told_apart():
    """Two memory evaluators give one column of weights, and a running peak for each prompt length."""
    study = MadeUpStudy()
    for tokens, peak in ((128, 50), (2048, 500)):
        values = [
            Measurement("memory", "weights_bytes", 1000.0 * MIB, "bytes"),
            Measurement("memory", "decode_peak_bytes", float(peak) * MIB, "bytes", at={"prompt_tokens": tokens}),
        ]
        study.add(completed(experiment(BASELINE, f"memory(prompt_tokens={tokens})", hardware=HARDWARE), *values))
    (cells,) = texts(table_of(study, "Memory")).values()
    assert cells == {
        "variant": BASELINE,
        "weights MiB": "1,000.0",
        "peak MiB running 128 tokens": "1,050.0",
        "peak MiB running 2048 tokens": "1,500.0",
    }


def test_of_many_conditions_the_smallest_and_largest_are_shown():
    """A study of four prompt lengths shows two in the table; the rows have all."""
    study = MadeUpStudy()
    found = [
        Measurement("latency", "prefill_ms", float(n), "ms", False, at={"prompt_tokens": n, "batch": 1})
        for n in (1024, 128, 512, 256)
    ]
    study.add(completed(experiment(BASELINE, "latency", hardware=HARDWARE), *found))
    (cells,) = texts(table_of(study, "Speed")).values()
    assert cells == {"variant": BASELINE, "prefill ms 128 tokens": "128", "prefill ms 1024 tokens": "1,024"}
    assert len(rows(study.record, study.runs, study.read)) == 4


def test_the_slow_tail_stands_beside_the_median():
    """A decode time has its 95th percentile in brackets, and the conditions it was measured under."""
    table = table_of(realistic_study(), "Speed")
    assert texts(table)[BASELINE]["decode ms/token (p95) 512 tokens"] == "16.2 (17.3)"
    assert any("batch 1" in note for note in table.footnotes)
    assert table.footnotes[-1] == f"Measured on {HARDWARE}."


def test_unknown_costs_get_columns_too():
    """A third party's metric of the machine is shown with its unit."""
    study = MadeUpStudy()
    energy = [Measurement("energy", "energy", 1.25 * n, "J", False, at={"batch": n}) for n in (1, 2, 4)]
    study.add(completed(experiment(BASELINE, "their_meter", hardware=HARDWARE), *energy))
    (cells,) = texts(table_of(study, "Other measurements")).values()
    assert cells == {"variant": BASELINE, "energy energy J batch 1": "1.25", "energy energy J batch 4": "5.00"}


# -- what is not there -----------------------------------------------------------------------------------------------


def test_a_failed_experiment_says_so_in_its_cells_and_below():
    """The failed variant has "failed" in every table, and its reason with the log's place below, said once."""
    study = realistic_study()
    for title in ("Quality", "Memory", "Speed"):
        assert table_of(study, title).cells()[1][1] == Cell("failed", "failed")
    first, second = table_of(study, "Failed").footnotes
    assert first.startswith("bnb_8bit · lm_eval(coqa): out of memory: CUDA out of memory.")
    assert "log: runs/" in first
    assert second.startswith("bnb_8bit · perplexity, memory, latency, throughput: error: RuntimeError: CUDA error")


def test_a_cause_that_several_variants_share_is_said_once():
    """The variants and experiments that it ended are named in front of it."""
    study = MadeUpStudy()
    for label in (BASELINE, "bnb_8bit"):
        study.add(failed(experiment(label, COQA), "error", "no route to the hub"))
    study.add(failed(experiment(BASELINE, "perplexity"), "error", "no route to the hub"))
    (line,) = table_of(study, "Failed").footnotes
    assert line.startswith(f"{BASELINE} · {COQA}, perplexity; bnb_8bit · {COQA}: error: no route to the hub (log: ")


def test_a_reason_and_what_to_do_are_two_sentences():
    """The lines of an error follow each other in a report."""
    study = MadeUpStudy()
    study.add(failed(experiment(BASELINE, COQA), "error", "PyTorch finds no GPU\nRun nvidia-smi."))
    assert "error: PyTorch finds no GPU. Run nvidia-smi. (log:" in table_of(study, "Failed").footnotes[0]


def test_the_log_of_a_second_attempt_is_where_it_is():
    """The log that is named is that of the attempt that failed."""
    study = MadeUpStudy()
    run = replace(failed(experiment(BASELINE, COQA), "timeout", "too long"), attempt=2)
    study.add(run)
    assert f"runs/{run.run_id}-2/log.txt" in table_of(study, "Failed").footnotes[0]


def test_an_experiment_that_has_not_run_is_a_dash():
    """What has not run yet has dashes, and is named below."""
    study = realistic_study()
    assert table_of(study, "Speed").cells()[-1][-1].text == "–"
    assert table_of(study, "Not run").footnotes == ("gptq_3bit_g128 · throughput",)


def test_notes_about_a_model_stand_under_its_tables():
    """A note that starts with a model's name belongs to the model; the others come last."""
    study = realistic_study(model=ModelUse("./tiny.gguf", "sha256:1"))
    record = replace(study.record, notes=("tiny.gguf: was dequantized from GGUF Q4_1", "something else"))
    tables = summary(rows(record, study.runs, study.read), record)
    about = next(table for table in tables if table.title == "Model and variants")
    assert "tiny.gguf: was dequantized from GGUF Q4_1" in about.footnotes
    assert tables[-1].title == "Notes"
    assert tables[-1].footnotes == ("something else",)


def test_each_model_has_its_tables():
    """Two models give two headed blocks, each with its own baseline."""
    study = realistic_study()
    other = realistic_study(model=ModelUse("org/other", "commit:2"))
    for asked in other.experiments:
        study.add(other.runs.get(asked.run_id, asked), other.samples.get(asked.run_id))
    headings = dict.fromkeys(table.heading for table in tables_of(study) if table.heading)
    assert list(headings) == [f"meta-llama/Llama-3.2-1B · baseline {BASELINE}", f"org/other · baseline {BASELINE}"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_told_in_words(value):
    """A perplexity that overflowed is in the table in words and breaks no format."""
    study = MadeUpStudy()
    for label, measured in ((BASELINE, 20.0), ("nf4", value)):
        perplexity = Measurement("perplexity", "perplexity", measured, higher_is_better=False)
        study.add(completed(experiment(label, "perplexity"), perplexity))
    assert texts(table_of(study, "Quality"))["nf4"]["perplexity"] in ("not a number", "infinite")
    for write in (to_markdown, to_html_table, lambda tables: render(tables, 80)):
        assert BASELINE in write(tables_of(study))


# -- terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120, 200])
def test_tables_fit_the_terminal(width):
    """No line is wider than the terminal, and no label, number or heading is folded into the next line."""
    tables = tables_of(realistic_study())
    text = render(tables, width)
    assert max(map(cell_len, text.splitlines())) <= width
    for table in tables:
        for row in table.cells():
            assert all(cell.text in text for cell in row)
        for index in range(len(table.columns)):
            assert all(line in text for line in table.column(index).name)


@pytest.mark.parametrize("width", [30, 60])
def test_a_terminal_too_narrow_folds_words_and_loses_none(width):
    """Where not even one score fits beside its difference, words are folded, none is cut off."""
    tables = tables_of(realistic_study())
    text = render(tables, width)
    assert max(map(cell_len, text.splitlines())) <= width
    assert "…" not in text


def test_a_wide_table_is_split_between_its_groups():
    """At 80 columns a score stays beside its difference and verdict, and each part names its variants."""
    text = render([table_of(realistic_study(), "Quality")], 80)
    assert text.count("gptq_4bit_g128  ") == 3
    for line in text.splitlines():
        assert line.count("[95% interval]") <= 1


def test_the_parts_of_a_table_are_aligned():
    """The verdicts of all parts stand below each other, and fit 80 columns."""
    text = render([table_of(realistic_study(), "Quality")], 80)
    assert len({line.index("verdict") for line in text.splitlines() if "verdict" in line and "variant" in line}) == 1
    assert max(map(cell_len, text.splitlines())) <= 80


def test_a_table_has_few_footnotes():
    """No table has more than three footnotes in a study without surprises; notes have a place of their own."""
    assert all(len(table.footnotes) <= 3 for table in tables_of(realistic_study()) if table.columns)


@pytest.mark.parametrize("columns", [("variant",), ()])
def test_three_footnotes_of_a_table_are_shown_unless_more_are_asked_for(columns):
    """The rest is counted; a list of sentences is complete."""
    table = Table("title", columns, (), tuple(f"note {number}" for number in range(5)))
    shown = render([table], 80)
    assert shown.count("note ") == (3 if columns else 5)
    assert ("2 more with --explain" in shown) == bool(columns)
    assert render([table], 80, explain=True).count("note ") == 5
    assert to_markdown([table]).count("note ") == to_html_table([table]).count("note ") == 5


def test_footnotes_that_change_the_reading_come_first():
    """A score without any signal is said before what an interval and a verdict are."""
    first, second, *_ = quality_of([1.0] * 50, [1.0] * 50).footnotes
    assert first.startswith("no signal: ")
    assert second.startswith("± is one standard error.")


def test_lines_to_copy_are_not_wrapped():
    """A command is on one line of its own, whatever the width, as a block in Markdown and in HTML."""
    command = "llmquant quantize ./a-model-with-a-name -q bnb_4bit_nf4 -o a-model-with-a-name-bnb_4bit_nf4"
    table = Table("Recommendation", footnotes=("Ship it.",), code=(command, "second"))
    assert f"\n  {command}\n  second\n" in render([table], 40)
    assert f"- Ship it.\n\n      {command}\n      second" in to_markdown([table])
    assert f"<pre>{command}\nsecond</pre>" in to_html_table([table])


@pytest.mark.parametrize(
    ("evaluator", "counts", "text"),
    [
        ("lm_eval(coqa)", [50], "(n=50 documents)"),
        ("llmquant/perplexity(a.txt, window=128)", [1], "(n=1 window)"),
        ("mteb(NFCorpus)", [300, 1323], "(n=300–1,323 queries)"),
        ("a_package/other", [2], "(n=2 samples)"),
        ("lm_eval(coqa)", [None], ""),
    ],
)
def test_a_heading_says_what_its_n_counts(evaluator, counts, text):
    """A document, a window or a query; of an evaluator that is not known, a sample."""
    row = rows(realistic_study().record, {}, None)[0]
    assert sample_count([replace(row, evaluator=evaluator, n=count) for count in counts]) == text


def test_a_cosine_counts_documents():
    """Drift compares the vectors of documents, and the rankings of queries."""
    row = replace(rows(realistic_study().record, {}, None)[0], evaluator="drift(NFCorpus)", n=42)
    counts = [sample_count([replace(row, metric=metric)]) for metric in ("cosine", "overlap_at_10")]
    assert counts == ["(n=42 documents)", "(n=42 queries)"]


def test_a_benchmark_run_to_its_end_is_exact_about_itself():
    """Where all documents of a task were run, the table says that the difference on this benchmark is exact."""
    study = MadeUpStudy()
    for label in (BASELINE, "nf4"):
        mean, samples = scored("coqa", "f1", np.linspace(0, 1, 50) if label == BASELINE else np.linspace(0, 0.9, 50))
        run = completed(experiment(label, COQA, limit=None), mean)
        study.add(replace(run, details={"coqa": {"documents_total": 50}}), {"coqa": samples})
    notes = " ".join(table_of(study, "Quality").footnotes)
    assert "All 50 documents of coqa were run: on this benchmark itself the differences are exact." in notes


def test_long_labels_are_wrapped_between_their_options():
    """A variant named by a long call is broken at its spaces."""
    label = "bnb_4bit(quant_type=fp4, double_quant=false, compute_dtype=float32)"
    study = MadeUpStudy()
    study.add(completed(experiment(label, COQA), Measurement("coqa", "f1", 0.5)))
    lines = render(tables_of(study), 80).splitlines()
    assert any(line.startswith("bnb_4bit(quant_type=fp4,") for line in lines)
    assert any(line.startswith("compute_dtype=float32)") for line in lines)


def test_colour_says_nothing_that_the_words_do_not():
    """Without colour the same text is printed, with no control codes."""
    tables = tables_of(realistic_study())
    plain, coloured = (
        Console(width=100, file=io.StringIO(), force_terminal=True, color_system=system, no_color=system is None)
        for system in (None, "standard")
    )
    for console in (plain, coloured):
        print_tables(tables, console)
    assert "\x1b[31mworse" in coloured.file.getvalue()
    assert "\x1b[31m" not in plain.file.getvalue()
    assert "\x1b" not in render(tables, 100)


def test_markup_in_names_is_text():
    """Square brackets in labels and messages are printed, not taken for rich's markup."""
    study = MadeUpStudy()
    study.add(failed(experiment(BASELINE, "x([red]y[/red])"), "error", "[bold]lost[/bold]"))
    text = render(tables_of(study), 120)
    assert "x([red]y[/red])" in text
    assert "[bold]lost[/bold]" in text


# -- other forms -----------------------------------------------------------------------------------------------------


def test_markdown_has_every_cell():
    """Each table is a pipe table with as many cells in every line, all texts in it."""
    study = realistic_study()
    text = to_markdown(tables_of(study))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == (2 + 5) + 3 * (2 + 6)  # the verdict has no line for the baseline
    assert "| bnb_4bit_nf4 | 981.3 | 2.40 |" in text


def test_markdown_escapes_what_would_be_markup():
    """A pipe, a tag or emphasis in a label stays text."""
    table = Table("T", ("a|b", "c"), (("<b>x</b>", "*y* _z_"),), ("see [this](url)",))
    text = to_markdown([table])
    assert r"| a\|b | c |" in text
    assert r"\<b\>x\</b\> | \*y\* \_z\_ |" in text
    assert r"[this\](url)" in text


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def test_html_is_escaped_and_well_formed():
    """Every tag is closed, every cell is there, and a label cannot bring tags of its own."""
    study = realistic_study()
    study.add(failed(experiment("<script>alert(1)</script>", COQA), "error", "a < b & c"))
    page = to_html_table(tables_of(study))
    parser = _Tags()
    parser.feed(page)
    assert not parser.open
    assert "<script>" not in page
    assert "<script>alert(1)</script>" in parser.text
    assert "+0.5 \n[-6.6, +7.8]\n" in parser.text
    assert '<span class="whole">[-6.6, +7.8]</span>' in page
    assert "http" not in page


def test_csv_has_a_line_a_row_and_empty_fields_for_what_is_not_there():
    """The CSV reads back with all rows; a value that is missing is empty, never 0."""
    study = realistic_study()
    found = rows(study.record, study.runs, study.read)
    lines = list(csv.DictReader(io.StringIO(to_csv(found))))
    assert len(lines) == len(found)
    for line, row in zip(lines, found, strict=True):
        assert line["value"] == ("" if row.value is None else str(row.value))
        assert line["at_batch"] == str(row.at.get("batch", ""))


def test_a_frame_is_tidy():
    """The data frame has a line a row, numbers as numbers, missing ones as missing."""
    pytest.importorskip("pandas")
    study = realistic_study()
    frame = to_frame(rows(study.record, study.runs, study.read))
    failed_lines = frame[frame["status"] == "failed"]
    assert len(failed_lines) == 5
    assert failed_lines["value"].isna().all()
    speeds = frame[(frame["metric"] == "generated_tokens_per_s") & (frame["variant"] == BASELINE)]
    assert list(speeds["at_batch"]) == [1, 4, 8]
    assert frame["value"].dtype == "Float64"


def test_a_frame_without_pandas_names_the_install_line(monkeypatch):
    """Without pandas the error says what to install."""
    real = builtins.__import__

    def without_pandas(name, *rest):
        if name == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(MissingDependencyError, match=r'pip install "llmquant\[frame\]"'):
        to_frame([])


def test_one_file_rebuilds_the_comparison():
    """From its portable JSON a study gives the very same rows."""
    study = realistic_study()
    data = json.loads(json.dumps(portable_json(study.record, study.runs, study.samples, {}), allow_nan=False))
    record, runs, samples, *_ = from_portable_json(data)
    again = rows(record, runs, lambda run_id: samples.get(run_id, {}))
    assert again == rows(study.record, study.runs, study.read)


def test_portable_samples_keep_what_is_no_number():
    """NaN and infinity come back as they were."""
    study = MadeUpStudy()
    mean, samples = scored("coqa", "f1", [math.inf, 1.0])
    run = completed(experiment(BASELINE, COQA), mean)
    study.add(run, {"coqa": samples})
    text = json.dumps(portable_json(study.record, study.runs, study.samples, {}), allow_nan=False)
    assert from_portable_json(json.loads(text))[2] == {run.run_id: {"coqa": samples}}


@pytest.mark.parametrize(
    "damage",
    [{"schema_version": 99}, {"kind": "rows"}, {"runs": [{}]}, {"samples": 3}, {"samples": {"a": {"b": [{}]}}}],
    ids=lambda damage: next(iter(damage)),
)
def test_a_file_that_is_no_study_is_refused(damage):
    """A newer, other or damaged file is a StoreError."""
    study = realistic_study()
    with pytest.raises(StoreError):
        from_portable_json({**portable_json(study.record, study.runs, study.samples, {}), **damage})


# -- numbers and splitting -------------------------------------------------------------------------------------------


@given(st.floats(-1e9, 1e9), st.integers(0, 6))
def test_numbers_are_what_they_say(value, decimals):
    """A written number is the value to half of its last digit, and zero has no sign."""
    text = number(value, decimals)
    assert abs(float(text.replace(",", "")) - value) <= 0.5 * 10**-decimals * (1 + 1e-9) + abs(value) * 1e-12
    assert not text.startswith("-0") or float(text.replace(",", "")) < 0


@given(st.lists(st.floats(1e-5, 1e5), min_size=1))
def test_uncertainties_keep_two_digits(uncertainties):
    """The smallest uncertainty is written with two digits, as far as six decimals go."""
    decimals = decimals_for(uncertainties)
    assert decimals is not None
    smallest = min(uncertainties)
    assert decimals == 6 or round(smallest * 10**decimals) >= 10 or smallest * 10**decimals >= 9.9


@given(
    groups=st.lists(st.integers(1, 3), min_size=1, max_size=8),
    cells=st.integers(1, 30),
    width=st.integers(70, 200),
)
@settings(deadline=None, max_examples=60)
def test_splitting_loses_no_column(groups, cells, width):
    """However a table is split, every column is printed once and the first in every part."""
    columns = [Column(("variant",), align="left")]
    for index, size in enumerate(groups):
        columns += [Column((f"c{index}.{place}",), str(index)) for place in range(size)]
    table = Table("T", tuple(columns), (("v", *("x" * min(cells, 16) for _ in columns[1:])),))
    text = render([table], width)
    assert max(map(len, text.splitlines())) <= width
    for column in columns[1:]:
        assert text.split().count(column.title) == 1
    assert text.split().count("variant") == text.count("\nv ")


@pytest.mark.parametrize(
    ("value", "shown"), [(1e308, "1.000e+308"), (-2e18, "-2.000e+18"), (9e15, "9,000,000,000,000,000.0")]
)
def test_a_number_too_long_for_a_table_has_an_exponent(value: float, shown: str):
    """From 19 digits on, as a diverged model has it."""
    assert number(value, 1) == shown
