"""The table of retrieval, and the page with the worst queries."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from scipy import stats

from llmquant.results.changes import DocumentChange
from llmquant.results.comparison import Comparison
from llmquant.results.report.block import blocks
from llmquant.results.report.flips import answers_of
from llmquant.results.report.html import to_html_table
from llmquant.results.report.protocol import protocol_table
from llmquant.results.report.retrieval import retrieval_table
from llmquant.results.report.summary import summary
from llmquant.results.report.text import render
from llmquant.results.rows import label, rows
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, Variant, VectorForm
from llmquant.study.record import StudyRecord
from llmquant.study.run import Measurement
from made_up import completed, evaluator, failed, quantizer, scored

FULL, SMALL = VectorForm(), VectorForm(dim=256, codec="int8")


def embedder(name: str) -> ModelUse:
    return ModelUse(name, f"sha256:{name}", (), PluginUse(f"llmquant/{name}", "1", {}, name))


def study(models=("bigemma3",), tasks=("DocVQA",), forms=(FULL, SMALL), quantizers=("bf16_baseline", "bnb_4bit_nf4")):
    """Make runs in which every step away from the baseline finds a query in ten fewer."""
    experiments, runs, samples = [], {}, {}
    for model in models:
        for place, name in enumerate(quantizers):
            for step, form in enumerate(forms):
                for task in tasks:
                    variant = Variant(embedder(model), quantizer(name), form)
                    asked = Experiment(variant, evaluator(f"mteb({task})"), Documents(100), 0)
                    lost = 4 * (place + step)
                    measured, found = scored(task, "ndcg_at_5", [0.0] * lost + [1.0] * (40 - lost))
                    size = Measurement(
                        task, "bytes_per_document", 10240.0 / (1 + step), "bytes", higher_is_better=False
                    )
                    hidden = Measurement(task, "recall_at_100", 1.0, higher_is_better=True, headline=False)
                    experiments.append(asked)
                    runs[asked.run_id] = completed(asked, measured, hidden, size)
                    samples[asked.run_id] = {task: found}
    record = StudyRecord("s", "a study", tuple(experiments), {f"sha256:{model}": quantizers[0] for model in models})
    return record, runs, rows(record, runs, lambda run_id: samples[run_id])


def test_the_form_of_the_vectors_is_named_where_there_are_several():
    """A variant's label has the form of its vectors, unless the study has only one."""
    record, _, found = study()
    assert {row.variant for row in found} == {
        "bf16_baseline · float32",
        "bf16_baseline · 256d int8",
        "bnb_4bit_nf4 · float32",
        "bnb_4bit_nf4 · 256d int8",
    }
    record, _, _ = study(forms=(FULL,))
    assert label(record, record.experiments[0].variant) == "bf16_baseline"


def test_the_baseline_is_the_first_form():
    """Every other variant is compared with the baseline's quantizer in the first form of vectors."""
    _, _, found = study()
    assert {row.variant for row in found if row.is_baseline} == {"bf16_baseline · float32"}
    assert {row.baseline for row in found if not row.is_baseline} == {"bf16_baseline · float32"}


def test_one_task_keeps_its_own_interval():
    """Of one task the table has the paired interval and verdict of the comparison."""
    _, _, found = study()
    table = retrieval_table(blocks(found))
    worst = next(row for row in found if row.variant == "bnb_4bit_nf4 · 256d int8" and row.metric == "ndcg_at_5")
    text = render([table], 120)
    assert f"{100 * worst.difference:+.1f} [{100 * worst.difference_low:+.1f}" in text
    assert "DocVQA" in text
    assert "recall" not in text
    assert "Quality" not in render(summary(found, study()[0]), 120)


def test_compute_types_that_differ_are_said_beside_one_task_too():
    """A study of one task has no other table than that of retrieval, and keeps its notes all the same."""
    record, runs, _ = study(forms=(FULL,))
    for run_id, run in runs.items():
        if run.experiment.variant.quantizer.label == "bnb_4bit_nf4":
            applied = {**run.applied, "compute_dtype": "float16", "note": "repacked"}
            runs[run_id] = replace(run, applied=applied)
    record = replace(record, notes=("bigemma3: an adapter is merged in",))
    text = render(summary(rows(record, runs, lambda run_id: {}), record), 120)
    assert "Computes in bfloat16: bf16_baseline; in float16: bnb_4bit_nf4." in text
    assert "bnb_4bit_nf4: repacked." in text
    assert "bigemma3: an adapter is merged in" in text


@pytest.mark.parametrize("searched", [True, False])
def test_items_that_could_not_be_encoded_are_counted_under_the_table(searched):
    """Under that of retrieval, or under that of quality for tasks without search."""
    record, runs, _ = study(forms=(FULL,), quantizers=("bf16_baseline",))
    (run,) = runs.values()
    kept = [m for m in run.measurements if searched or m.metric != "bytes_per_document"]
    what, count = ("queries", 1.0) if searched else ("items", 2.0)
    kept.append(Measurement("DocVQA", f"{what}_not_encoded", count, higher_is_better=False, headline=False))
    text = render(summary(rows(record, {run.run_id: replace(run, measurements=tuple(kept))}, None), record), 120)
    said = "1 query" if searched else "2 items"
    assert text.count(f"DocVQA: {said} could not be encoded (every variant)") == 1


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("documents_cut", 0.25, "about 25.0% of the documents are longer than the model reads"),
        ("own_ids_left_out", 40.0, "40 queries cannot find the document of the same id, as in BEIR"),
    ],
)
def test_what_a_search_leaves_out_is_said_under_the_table(metric, value, said):
    """Ends of documents that are cut, and documents that a query with their id does not find."""
    record, runs, _ = study(forms=(FULL,), quantizers=("bf16_baseline",))
    (run,) = runs.values()
    left_out = Measurement("DocVQA", metric, value, headline=False)
    found = rows(record, {run.run_id: replace(run, measurements=(*run.measurements, left_out))}, None)
    assert f"DocVQA: {said} (every variant)." in " ".join(render(summary(found, record), 120).split())


def test_a_benchmark_is_its_mean():
    """Of several tasks the table has the row of their mean, with its interval and verdict."""
    _, _, found = study(tasks=("A", "B", "C", "D"))
    text = render([retrieval_table(blocks(found))], 120)
    mean = next(row for row in found if row.mean_of and row.variant == "bf16_baseline · 256d int8" and not row.unit)
    line = next(line for line in text.splitlines() if line.startswith(mean.variant))
    assert "mean of 4 tasks" in text
    assert "90.0" in line
    assert f"{100 * mean.difference:.1f} [{100 * mean.difference_low:.1f}, {100 * mean.difference_high:.1f}]" in line
    assert "worse" in line


def test_the_mean_is_a_row():
    """Its value, difference and standard errors are those of its tasks, its interval narrower than a single task's."""
    _, _, found = study(tasks=("A", "B", "C", "D"))
    tasks = [row for row in found if row.variant == "bnb_4bit_nf4 · float32" and row.metric == "ndcg_at_5"]
    (mean,) = [row for row in tasks if row.mean_of]
    tasks.remove(mean)
    assert (mean.mean_of, mean.task, mean.verdict, mean.higher_is_better) == (
        ("A", "B", "C", "D"),
        "mean of 4 tasks",
        "worse",
        True,
    )
    assert mean.value == pytest.approx(sum(row.value for row in tasks) / 4)
    assert mean.difference == pytest.approx(mean.value - mean.baseline_value)
    assert mean.stderr == pytest.approx(tasks[0].stderr / 2)
    assert mean.difference_stderr == pytest.approx(tasks[0].difference_stderr / 2)
    # Four tasks of 40 queries that spread alike have 4 * 39 degrees of freedom.
    reach = stats.t.ppf(0.975, 156) * mean.difference_stderr
    assert mean.difference_high == pytest.approx(mean.difference + reach)
    assert mean.difference_low < mean.difference - reach  # only a few queries are worse, all others equal: skewed
    assert (mean.n, mean.pairs, mean.pairs_lower) == (160, 160, 16)


def test_the_mean_size_is_a_row():
    """Bytes per document are averaged over the same tasks, and have neither an interval nor a verdict."""
    _, _, found = study(tasks=("A", "B"))
    (size,) = [
        row for row in found if row.mean_of and row.unit == "bytes" and row.variant == "bf16_baseline · 256d int8"
    ]
    assert (size.metric, size.value, size.difference) == ("bytes_per_document", 5120.0, -5120.0)
    assert (size.verdict, size.difference_low) == (None, None)


def test_each_benchmark_has_a_mean_of_its_own():
    """A study of two benchmarks has the mean of each, and of all that was searched; the table shows the last."""
    record, runs, _ = study(tasks=("A", "B", "C", "D"), forms=(FULL,))
    benchmarks = {"mteb(One)": ("mteb(A)", "mteb(B)"), "mteb(Two)": ("mteb(C)", "mteb(D)", "mteb(A)")}
    found = rows(replace(record, benchmarks=benchmarks), runs, lambda run_id: {})
    means = [(row.evaluator, row.mean_of) for row in found if row.mean_of and row.is_baseline and not row.unit]
    assert means == [
        ("mteb(One)", ("A", "B")),
        ("mteb(Two)", ("A", "C", "D")),
        ("all tasks of retrieval", ("A", "B", "C", "D")),
    ]
    assert "mean of 4 tasks" in render([retrieval_table(blocks(found))], 120)


@pytest.mark.parametrize("state", ["failed", "missing"])
def test_there_is_no_mean_of_some_tasks(state):
    """A variant of which a task failed or has not run has no mean: its line has a dash, its rows none."""
    record, runs, _ = study(tasks=("A", "B"), forms=(FULL,))
    last = record.experiments[-1]
    if state == "failed":
        runs[last.run_id] = failed(last, "error", "no data")
    else:
        del runs[last.run_id]
    found = rows(replace(record, benchmarks={"mteb(One)": ("mteb(A)", "mteb(B)")}), runs, lambda run_id: {})
    assert {row.variant for row in found if row.mean_of} == {"bf16_baseline"}
    text = render([retrieval_table(blocks(found))], 120)
    assert next(line for line in text.splitlines() if line.startswith("bnb_4bit_nf4")).split()[1] == "–"


def test_a_mean_is_in_every_form_of_the_results(tmp_path):
    """CSV, data frame, JSON of rows and a file that is read again have it, with the tasks that it is over."""
    record, runs, _ = study(tasks=("A", "B"), forms=(FULL,))
    made = Comparison(replace(record, benchmarks={"mteb(One)": ("mteb(A)", "mteb(B)")}), runs, lambda run_id: {})
    made.save_json(tmp_path / "study.json")
    for found in (made, Comparison.load(tmp_path / "study.json")):
        assert found.to_csv().count("mean of 2 tasks,ndcg_at_5,A; B,") == 2
        frame = found.to_frame(all=True)
        assert frame[(frame.mean_of == "A; B") & (frame.unit == "")].value.tolist() == [1.0, 0.9]
        in_json = [row for row in found.rows_json()["rows"] if row["mean_of"] == ["A", "B"] and not row["unit"]]
        assert [(row["evaluator"], row["value"]) for row in in_json] == [("mteb(One)", 1.0), ("mteb(One)", 0.9)]


def test_models_stand_side_by_side():
    """Several models are in one table, each against its own baseline."""
    _, _, found = study(models=("bigemma3", "siglip"), forms=(FULL,))
    text = render([retrieval_table(blocks(found))], 120)
    assert text.count("baseline ") >= 2
    assert "bigemma3" in text
    assert "siglip" in text


def test_the_page_shows_the_worst_queries(tmp_path):
    """The HTML page has the text of the worst queries and the thumbnails inside it; texts are escaped."""
    record, runs, _ = study(forms=(FULL,), quantizers=("bf16_baseline",))
    folder = tmp_path / "failures"
    folder.mkdir()
    (folder / "a.webp").write_bytes(b"RIFF")
    query = {
        "query": "How <heavy> is it?",
        "score": 0.0,
        "found": [{"id": "p1", "score": 0.5, "grade": 0, "thumbnail": "a.webp"}],
        "missed": [{"id": "p2", "grade": 1, "rank": 7, "text": "the weight & size"}],
    }
    (folder / "DocVQA.json").write_text(json.dumps({"metric": "ndcg_at_5", "queries": [query]}))
    (run_id,) = runs
    runs = {run_id: replace(runs[run_id], details={"DocVQA": {"failures": "failures/DocVQA.json"}})}
    page = Comparison(record, runs, lambda run_id: {}, lambda run: tmp_path).to_html()
    assert "How &lt;heavy&gt; is it?" in page
    assert "data:image/webp;base64,UklGRg==" in page
    assert "the weight &amp; size" in page
    assert 'src="http' not in page


def test_each_line_of_a_split_table_names_its_model_and_variant():
    """In a terminal of 80 columns, each part has each model once, above its variants."""
    _, _, found = study(models=("bigemma3", "colqwen"), tasks=("A", "B"))
    table = retrieval_table(blocks(found))
    lines = [line.strip() for line in render([table], 80).splitlines()]
    for part in "\n".join(lines).split("\n\n")[:2]:
        model, *variants = part.partition("colqwen\n")[2].splitlines()[:4]
        assert model.startswith("bf16_baseline · float32 ")
        assert any(line.startswith("bnb_4bit_nf4 · float32 ") for line in variants)
    assert lines.count("colqwen") == 2


def test_a_models_name_spans_the_html_table():
    """It stands once above its variants, in a cell of its own."""
    _, _, found = study(models=("bigemma3", "colqwen"), tasks=("A", "B"))
    page = to_html_table([retrieval_table(blocks(found))])
    assert re.findall(r'colspan="\d+">([^<]+)<', page) == ["bigemma3", "colqwen"]


def test_the_protocol_names_quantizers_once_for_all_models_and_forms():
    """What weights are does not depend on vectors; a model is named only where its weights differ."""
    record, runs, _ = study(models=("bigemma3", "colqwen"))

    def said(bits) -> str:
        applied = {
            e.run_id: {"code": "int", "bits": bits(e.variant.model.name, e.variant.quantizer.label)}
            for e in record.experiments
        }
        made = {name: replace(run, applied={**(run.applied or {}), **applied[name]}) for name, run in runs.items()}
        return dict(protocol_table(record, made).rows)["weights"]

    alike = said(lambda model, label: 16 if label == "bf16_baseline" else 4)
    assert alike == "int, 16 bits (bf16_baseline); int, 4 bits (bnb_4bit_nf4)"
    apart = said(lambda model, label: 16 if (model, label) != ("colqwen", "bnb_4bit_nf4") else 4)
    assert apart == "int, 16 bits (bf16_baseline, bigemma3 bnb_4bit_nf4); int, 4 bits (colqwen bnb_4bit_nf4)"


@pytest.mark.parametrize(
    ("metric", "shown"),
    [("ndcg_at_10", ("d1 1", "d1 0.703, d2 0.7", "nothing")), ("em", ('{"d1": 1}', "[[]]", "nothing"))],
)
def test_answers_of_a_search_are_written_for_people(metric, shown):
    """Documents with three digits of their scores, not JSON with sixteen; a model's own JSON stays."""
    texts = ('{"d1": 1}', '[["d1", 0.7034519893], ["d2", 0.6999999999]]' if metric == "ndcg_at_10" else "[[]]")
    one = DocumentChange("m", "v", "e", "t", "d", 0, "p", None, *texts, "nothing", metric, 1, 0, -1, None, None)
    assert answers_of(one) == shown
