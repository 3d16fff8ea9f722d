"""What models, data sets, plugins and other people's stores call things is shown as text and does nothing."""

from __future__ import annotations

import csv
import io
import json
import logging
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from llmquant.cli.inspect import print_json, say
from llmquant.cli.terminal import Printable
from llmquant.errors import StoreError
from llmquant.models.info import ModelInfo
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.results.comparison import Comparison
from llmquant.results.report.export import to_csv
from llmquant.results.report.html import to_html_table
from llmquant.results.report.progress import show_progress
from llmquant.results.report.summary import summary
from llmquant.results.report.table import Table
from llmquant.results.report.text import render, to_markdown
from llmquant.results.rows import rows
from llmquant.running.model_card import model_card
from llmquant.running.progress import Progress, Running
from llmquant.study.experiment import ModelUse
from llmquant.study.neutral import csv_cell, html_text, json_text, markdown_text, printable
from llmquant.study.run import Measurement
from made_up import BASELINE, MadeUpStudy, completed, experiment, failed

# Each does something in one of the formats: colours, titles and clears; reverses; hides; closes a cell, a tag, a fence.
HOSTILE = (
    "\x1b[31mred\x1b[2J",
    "\x1b]0;title\x07",
    "\x9b31m",
    "\u202egnp.exe\u2066",
    "zero\u200bwidth\ufeff",
    "a\rb\nc\td\x00\x7f\u2028e",
    "[bold red]x[/]",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '" onmouseover="alert(1)',
    "</style></div><iframe>",
    "a|b",
    "`code` ``` ~~~",
    "![x](http://example.org/x.png) [y](javascript:alert(1)) [z]: http://example.org",
    "=HYPERLINK(A1)",
    "+1+cmd|' /C calc'!A0",
    "@SUM(1)",
    "-2+3",
    " \t=1+1",
    "＝1",
    "\ud800",
    "&lt;b&gt;",
)
# What may stand in text on a terminal: everything printable, and line breaks.
_LINES = "\n"


def hostile_study(text: str) -> MadeUpStudy:
    """Make a study with one text wherever a store has text."""
    model = ModelUse(f"org/{text}", "commit:1")
    study = MadeUpStudy()
    for label in (BASELINE, text):
        values = (
            Measurement(text, text, 0.5, unit=text, at={text: text}),
            Measurement(text, "f1", 0.5, higher_is_better=True, stderr=0.1, n=3),
            Measurement(text, "weights_bytes", 2**20, "bytes"),
            Measurement(text, text, 3.0, "bytes", at={"batch": text}),
        )
        run = completed(experiment(label, text, model=model, hardware=text), *values, torch=text)
        applied = {**run.applied, "note": text, "compute_dtype": f"{label}{text}"}
        study.add(replace(run, applied=applied, provenance={"packages": {text: label}, "device": text}))
        study.add(failed(experiment(label, f"other {text}", model=model), "error", text))
    return study


def tables_of(study: MadeUpStudy, text: str) -> list[Table]:
    record = replace(study.record, notes=(text, f"{text}: {text}"), title=text)
    return summary(rows(record, study.runs, study.read), record)


class _Page(HTMLParser):
    """Collects what a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.text += data


def _is_quiet(text: str, keep: str = _LINES) -> bool:
    return all(char.isprintable() or char in keep for char in text)


# -- whole reports -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
def test_a_terminal_gets_printable_text_alone(text):
    """Whatever a store's texts are, no control, override or invisible character reaches the terminal."""
    assert _is_quiet(render(tables_of(hostile_study(text), text), 100))


@pytest.mark.parametrize("text", HOSTILE)
def test_html_has_the_tags_of_the_report_alone(text):
    """The page has the same tags and attributes as one of harmless texts, and shows the texts."""
    page, plain = (to_html_table(tables_of(hostile_study(name), name)) for name in (text, "harmless"))
    found, expected = _Page(page), _Page(plain)
    assert set(found.tags) == set(expected.tags)
    assert found.attributes == expected.attributes
    assert printable(text) in found.text
    assert _is_quiet(page)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_has_the_tags_of_the_report_alone(text):
    """The whole report, its charts included, has the same tags and attributes as one of harmless texts."""
    found, expected = (_Page(_report(name)) for name in (text, "harmless"))
    assert set(found.tags) == set(expected.tags)
    assert found.attributes == expected.attributes
    assert printable(text) in found.text


def _report(text):
    study = hostile_study(text)
    record = replace(study.record, notes=(text, f"{text}: {text}"), title=text)
    page = Comparison(record, study.runs, study.read).to_html()
    assert _is_quiet(page)
    return page


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_has_whole_tables_and_no_markup(text):
    """Each line of a pipe table has its cells, and no tag, code, image or link is left."""
    found = to_markdown(tables_of(hostile_study(text), text))
    unescaped = re.sub(r"\\[!-/:-@\[-`{-~]", "", found)
    for block in re.findall(r"(?:^\|.*\n)+", unescaped, re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    assert not re.search(r"[<>`~]|\]\(|\]:", unescaped)
    assert _is_quiet(found)


@pytest.mark.parametrize("text", HOSTILE)
def test_csv_has_no_formulas(text):
    """No field of text starts as a formula does, every line has as many fields, and none has control characters."""
    study = hostile_study(text)
    head, *lines = csv.reader(io.StringIO(to_csv(rows(study.record, study.runs, study.read))))
    numbers = {"value", "difference", "baseline_value"}
    for line in lines:
        assert len(line) == len(head)
        for name, field in zip(head, line, strict=True):
            assert name in numbers or not field.lstrip().startswith(("=", "+", "-", "@", "＝"))
            assert _is_quiet(field)


def test_a_page_allows_nothing_but_its_own_style_and_pictures():
    """The page's policy allows no script and no address, and its title and study are escaped."""
    study = hostile_study("<b>")
    record = replace(study.record, title="</title><script>", study_id='"><script>')
    page = Comparison(record, study.runs, study.read).to_html()
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert "<script" not in page


# -- the worst queries -------------------------------------------------------------------------------------------------


def _page_of_kept(folder, document, *, file="failures/q.json", **query):
    """Return the page of a study whose one run kept a query with one document."""
    study = MadeUpStudy()
    run = completed(experiment(BASELINE, "mteb(x)"), Measurement("x", "ndcg_at_5", 0.5))
    study.add(replace(run, details={"x": {"failures": file}}))
    (folder / "files" / "failures").mkdir(parents=True, exist_ok=True)
    kept = {"query": "q", "score": 0.0, "found": [], "missed": [{"id": "p", "grade": 1, **document}], **query}
    (folder / "files" / "failures" / "q.json").write_text(json.dumps({"metric": "ndcg_at_5", "queries": [kept]}))
    return Comparison(study.record, study.runs, study.read, lambda run: folder / "files").to_html()


@pytest.mark.parametrize("field", ["id", "text"])
def test_what_a_store_says_of_a_document_is_text(tmp_path, field):
    """A name or a text of a stored document brings no markup into the page."""
    page = _page_of_kept(tmp_path, {field: "<script>\x1b"})
    assert "<script" not in page
    assert r"&lt;script&gt;\x1b" in page


def test_a_thumbnails_name_is_no_style(tmp_path):
    """A picture is shown whatever its file is called, and its name is not in the page."""
    (tmp_path / "files" / "failures").mkdir(parents=True)
    (tmp_path / "files" / "failures" / "a{}<b>.webp").write_bytes(b"RIFF")
    page = _page_of_kept(tmp_path, {"thumbnail": "a{}<b>.webp"})
    assert "data:image/webp;base64,UklGRg==" in page
    assert "a{}" not in page


@pytest.mark.parametrize("place", ["relative", "absolute", "link"])
@pytest.mark.parametrize("kind", ["failures", "thumbnail"])
def test_a_store_shows_no_files_of_this_machine(tmp_path, place, kind):
    """A name that leads out of the run's folder, also through a link, is refused; the file's content is not shown."""
    secret = tmp_path / "secret.webp"
    secret.write_text(json.dumps({"metric": "private", "queries": []}))
    run = tmp_path / "runs" / "r"
    (run / "files" / "failures").mkdir(parents=True)
    (run / "files" / "failures" / "link.webp").symlink_to(secret)
    up = "../../../.." if kind == "thumbnail" else "../../.."
    folder = "" if kind == "thumbnail" else "failures/"
    name = {"relative": f"{up}/secret.webp", "absolute": str(secret), "link": f"{folder}link.webp"}[place]
    given = {"file": name} if kind == "failures" else {}
    with pytest.raises(StoreError, match="outside the run's folder"):
        _page_of_kept(run, {"thumbnail": name} if kind == "thumbnail" else {}, **given)


@pytest.mark.parametrize(
    "damage",
    [
        {"score": "0"},
        {"missed": [{"id": "a", "grade": 1, "rank": "<script>"}]},
        {"score": None},
        {"query": 3},
        {"missed": 4},
        {"missed": [{}]},
        {"found": [{"id": [], "grade": 1}]},
    ],
)
def test_worst_queries_of_another_form_are_one_error(tmp_path, damage):
    """A kept file with wrong types is an error that names the run and what to do."""
    with pytest.raises(StoreError, match=r"worst queries of run .* cannot be read"):
        _page_of_kept(tmp_path, {}, **damage)


# -- elsewhere ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_printable(text, terminal):
    """A line of progress, live or not, shows a label as text."""
    console = Console(file=io.StringIO(), force_terminal=terminal, color_system=None, width=120)
    with show_progress(console) as show:
        show(Progress(2, 0, 1, 0, (Running(f"{text} · x", 1, 2, 0.0),), None))
    printed = re.sub(r"\x1b\[[\d?]*[a-zA-Z]", "", console.file.getvalue())  # the display's own, of the cursor
    assert _is_quiet(printed, "\n\r")
    if not terminal:
        assert printable(text).rstrip() in printed


@pytest.mark.parametrize("text", HOSTILE)
def test_what_the_command_line_says_is_printable(text, capsys):
    """A line of the command line, and what a package logs, are printable and stay one line."""
    say(f"error: {text}", err=True)
    printed = capsys.readouterr().err
    logged = Printable().format(logging.LogRecord("x", logging.WARNING, "", 0, "%s", (text,), None))
    assert printed.count("\n") == 1
    assert _is_quiet(printed)
    assert _is_quiet(logged)


@given(st.text())
def test_json_is_exact_and_printable(text):
    """What is printed as JSON reads back as it was, and a terminal obeys nothing in it."""
    written = json_text({"a": [text]})
    assert json.loads(written) == {"a": [text]}
    assert _is_quiet(written)


@pytest.mark.parametrize("text", HOSTILE)
def test_json_on_standard_output_is_exact(text, capsys):
    """Standard output can be parsed, whatever the texts are."""
    print_json({"a": text})
    assert json.loads(capsys.readouterr().out) == {"a": text}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_model_card_is_what_it_would_be_for_a_harmless_name(text):
    """Names and notes bring no table cell, no line, no tag and no code of their own into a model card."""
    applied = AppliedQuantization("made", "int8", 8, "float32", {}, 1, layers_left=(text,), note=text)
    cards = []
    for name in (text.replace("/", "").replace("\x00", ""), "harmless"):
        info = ModelInfo(f"/models/{name}", "sha256:1", (), "folder", None, None, None, {}, (), (), 0)
        cards.append(model_card(info, applied, text, None, 2**20))
    hostile, plain = (re.sub(r"\\[!-/:-@\[-`{-~]", "", card) for card in cards)
    assert hostile.count("\n") == plain.count("\n")
    assert len(re.findall("^```", hostile, re.MULTILINE)) == 4
    assert "<script" not in hostile.partition("```console")[0]
    assert _is_quiet(hostile)


@given(st.text())
def test_each_format_is_harmless_for_any_text(text):
    """Of any text each function makes what its format takes for text."""
    assert printable(text).isprintable()
    assert _Page(f'<p title="{html_text(text)}">{html_text(text)}</p>').tags == ["p"]
    assert "|" not in re.sub(r"\\[!-/:-@\[-`{-~]", "", markdown_text(text))
    assert not csv_cell(text).lstrip().startswith(("=", "+", "-", "@"))


@given(st.text(st.characters(whitelist_categories=("L", "N"))))
def test_letters_and_digits_stay(text):
    """Names in any script are shown as they are."""
    assert printable(text) == markdown_text(text) == csv_cell(text) == text
