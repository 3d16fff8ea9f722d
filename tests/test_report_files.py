"""A report in other forms: Markdown, Parquet, a model card, the Hub's files of results, a figure."""

from __future__ import annotations

import builtins
import re
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCardData, parse_eval_result_entries
from pyarrow import parquet
from typer.testing import CliRunner

from llmquant.cli.app import app
from llmquant.errors import MissingDependencyError, OptionError, RequestError, UnknownNameError
from llmquant.results.comparison import Comparison
from llmquant.results.report.plot import plot
from llmquant.results.row import Row
from llmquant.study.experiment import ModelUse, RunId
from made_up import BASELINE, MadeUpStudy, experiment, realistic_study
from test_neutral import HOSTILE, hostile_study


def comparison(study: MadeUpStudy) -> Comparison:
    return Comparison(study.record, study.runs, study.read)


def front_matter(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_markdown_begins_with_the_answer_and_ends_with_how_to_run_it_again():
    """The verdict, the recommendation and the protocol come before the tables, the study file comes last."""
    text = comparison(realistic_study()).to_markdown()
    titles = re.findall(r"^### (\w+)", text, re.MULTILINE)
    assert titles[:3] == ["Verdict", "Recommendation", "Protocol"]
    assert titles[-1] == "Make"
    assert '    quantizers = ["bf16_baseline", "bnb_8bit", ' in text


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_and_card_have_no_markup_from_a_store(text):
    """Whatever a store's texts are, neither form has a tag, a link or a fence of theirs, nor another front matter."""
    study = hostile_study(text)
    found = Comparison(replace(study.record, notes=(text,), title=text), study.runs, study.read)
    card = found.to_model_card(text)
    assert front_matter(card)["tags"] == ["llmquant"]
    for written in (found.to_markdown(), card.split("\n---\n", 1)[1]):
        prose = "\n".join(line for line in written.splitlines() if not line.startswith("    "))
        prose = re.sub(r"\\[!-/:-@\[-`{-~]", "", prose)
        assert not re.search(r"[<>`~]|\]\(|\]:", prose)


def test_parquet_has_the_rows_with_their_types(tmp_path):
    """The file has one line per row; numbers are numbers, also in columns without a value, and gaps are null."""
    found = comparison(realistic_study())
    found.save_parquet(tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    rows = found.rows()
    assert table.column("value").to_pylist() == [row.value for row in rows]
    assert table.column("verdict").to_pylist() == [row.verdict for row in rows]
    types = {field.name: str(field.type) for field in table.schema}
    assert (types["dollars"], types["pairs"], types["pooled"], types["mean_of"]) == (
        "double",
        "int64",
        "bool",
        "string",
    )


def test_parquet_is_written_by_the_command(tmp_path):
    """`report -f parquet` needs a file and says so."""
    study = tmp_path / "study.json"
    comparison(realistic_study()).save_json(study)
    command = ["report", str(study), "-f", "parquet"]
    assert CliRunner().invoke(app, [*command, "--out", str(tmp_path / "a.parquet")]).exit_code == 0
    assert parquet.read_table(tmp_path / "a.parquet").num_rows
    refused = CliRunner().invoke(app, command).exception
    assert isinstance(refused, OptionError)
    assert refused.hint == "Give a file: --out report.parquet"


def test_the_command_writes_the_page_beside_the_table(tmp_path):
    """`report --html FILE` prints the table and writes the page."""
    study = tmp_path / "study.json"
    comparison(realistic_study()).save_json(study)
    command = ["report", str(study), "--html", str(tmp_path / "a.html"), "--max-memory", "1GiB"]
    assert "Verdict at a margin" in CliRunner().invoke(app, command).stdout
    assert "above the limit 1.00 GiB" in (tmp_path / "a.html").read_text()


def test_a_card_has_its_results_as_the_hub_reads_them():
    """The front matter is a valid model-index: values, differences with intervals and verdicts, and the base model."""
    card = comparison(realistic_study()).to_model_card("bnb_4bit_nf4")
    data = ModelCardData(**front_matter(card))
    results = {(result.dataset_name, result.metric_type): result for result in data.eval_results}
    rows = {
        (row.task, row.metric): row for row in comparison(realistic_study()).rows() if row.variant == "bnb_4bit_nf4"
    }
    assert results["coqa", "f1"].metric_value == rows["coqa", "f1"].value
    assert results["coqa", "f1"].metric_name.endswith(f"points from {BASELINE}: {rows['coqa', 'f1'].verdict}")
    assert data.base_model == "meta-llama/Llama-3.2-1B"
    assert "Verdict at a margin of 2 points" in card


def test_a_model_from_a_folder_has_no_base_model_on_the_hub():
    """A local checkpoint's path is not taken for a name on the Hub."""
    study = realistic_study(model=ModelUse("./tiny", "sha256:1"))
    assert "base_model" not in front_matter(comparison(study).to_model_card("bnb_4bit_nf4"))


def test_results_for_the_hub_are_of_the_hubs_data_sets():
    """A task whose data set is on the Hub has a file; local data have none."""
    study = realistic_study()
    asked = experiment("bnb_4bit_nf4", "lm_eval(coqa)").run_id
    found = comparison(study)
    assert found.to_eval_results("bnb_4bit_nf4") == {}
    details = {"coqa": {"config": {"dataset_path": "EleutherAI/coqa"}}}
    study.runs[asked] = replace(study.runs[asked], details=details)
    ((path, text),) = comparison(study).to_eval_results("bnb_4bit_nf4").items()
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    assert (path, entry.dataset_id, entry.task_id) == (".eval_results/coqa.yaml", "EleutherAI/coqa", "coqa")
    assert entry.notes.startswith("bnb_4bit_nf4, llmquant, lm_eval(coqa), n=50; f1, ")


def test_a_variant_that_is_not_there_is_named():
    """A card of an unknown variant is an error with the nearest name."""
    with pytest.raises(UnknownNameError) as caught:
        comparison(realistic_study()).to_model_card("bnb_4bit_nf5")
    assert "bnb_4bit_nf4" in caught.value.hint


def test_a_figure_has_the_rows_differences():
    """The first panel has each variant's pooled difference; the others have its memory and latency."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = comparison(realistic_study())
    forest, *others = found.plot().axes
    dots = [line.get_xdata()[0] for line in forest.get_lines() if line.get_marker() == "o"]
    assert dots == [row.difference for row in found.rows() if row.pooled and row.difference is not None]
    assert [axes.get_xlabel() for axes in others] == ["peak while running, MiB", "ms per token or query"]


def test_a_figure_without_comparisons_is_refused():
    """Where nothing was compared, the error says what to add."""
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    with pytest.raises(RequestError, match="nothing to plot"):
        comparison(MadeUpStudy()).plot()


def test_a_figure_without_matplotlib_names_the_install_line(monkeypatch):
    """Without matplotlib the error says what to install."""
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError) as caught:
        comparison(realistic_study()).plot()
    assert "llmquant[plot]" in caught.value.hint


def test_a_figure_has_one_unit():
    """Beside a variant that is judged in margins, one that is judged in points is drawn in margins."""
    pytest.importorskip("matplotlib")
    head = Row("m", "d", "a", False, "all tasks", "k", RunId(""), "completed", pooled=True)
    rows = [
        replace(head, unit="points", difference=-4.0, margin=2.0),
        replace(head, variant="b", unit="margins", difference=-1.0, margin=1.0),
    ]
    (axes,) = plot(rows, []).axes
    assert axes.get_xlabel() == "difference in margins, 95% intervals"
    assert [float(line.get_xdata()[0]) for line in axes.lines[:2]] == [-2.0, -1.0]
