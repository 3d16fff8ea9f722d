"""The HTML report: the verdict on top, charts whose numbers are the rows', nothing that a browser loads or runs."""

from __future__ import annotations

import math
import re
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmquant.results.comparison import Comparison
from llmquant.results.report.block import blocks
from llmquant.results.report.curves import divergence_charts, pareto_charts
from llmquant.results.report.protocol import protocol_table, study_toml
from llmquant.results.report.strips import cost_charts, forests, pooled_forest
from llmquant.results.report.svg import Axis
from llmquant.results.rows import rows
from llmquant.study.experiment import ModelUse
from llmquant.study.run import Measurement, Sample
from llmquant.study.study import Study
from made_up import BASELINE, HARDWARE, MadeUpStudy, completed, experiment, realistic_study, scored
from test_neutral import HOSTILE

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
_DATA = re.compile(r'data-value="([^"]*)"')


def comparison(study: MadeUpStudy) -> Comparison:
    return Comparison(study.record, study.runs, study.read)


def with_divergence() -> MadeUpStudy:
    study = realistic_study()
    for label, factor in ((BASELINE, 0.0), ("bnb_4bit_nf4", 1.0), ("bnb_4bit_fp4", 2.0)):
        parts = [
            Measurement("text.txt", "kl_divergence", factor * 0.01 * (place + 1), "nats", at=at, headline=False)
            for name, bins in (("position", ("0-127", "128-255")), ("confidence", ("0-0.5", "0.5-0.9", "0.9-1")))
            for place, at in enumerate({name: each} for each in bins)
        ]
        whole = [
            Measurement("text.txt", "kl_divergence", 0.0123 * factor, "nats", stderr=0.0004, n=9),
            Measurement("text.txt", "kl_p999", 0.9 * factor, "nats", headline=False),
            Measurement("text.txt", "top1_agreement", 1 - 0.05 * factor, stderr=0.002, n=9),
            Measurement("text.txt", "kl_floor", 0.0003, "nats", headline=False),
            Measurement("text.txt", "kl_excess", 0.012 * factor, "nats", stderr=0.0004, n=9),
        ]
        study.add(completed(experiment(label, "fidelity(text.txt)"), *whole, *parts))
    return study


@pytest.fixture(scope="module")
def page() -> str:
    return comparison(with_divergence()).to_html()


def test_the_page_starts_with_the_verdict_and_the_recommendation(page):
    """Before any table of tasks come the sentence of the verdict and what to ship, with its reasons."""
    places = [page.index(text) for text in ("Verdict at a margin of 2 points", "Recommendation", "Protocol", "Quality")]
    assert places == sorted(places)
    assert "Not gptq_3bit_g128: worse" in page


def test_the_page_runs_and_loads_nothing(page):
    """There is no script, no handler and no address, and the policy allows none."""
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in page
    assert not re.search(r"<script|<link|<iframe|<img|\son\w+=|https?:|@import|url\(", page)


def test_every_number_of_a_chart_is_one_of_the_rows():
    """Each mark's number is exactly a value, a difference or a ratio in the rows."""
    found = comparison(with_divergence())
    known = {number for row in found.rows() for number in (row.value, row.difference, row.ratio) if number is not None}
    (block,) = blocks(found.rows())
    charts = [
        pooled_forest(block),
        *forests(block),
        *cost_charts(block),
        *divergence_charts(block),
        *pareto_charts(block, found.pareto()),
    ]
    for chart in charts:
        numbers = [float(text) for text in _DATA.findall(chart)]
        assert numbers
        assert known.issuperset(numbers)


def test_a_dot_stands_where_its_number_is():
    """From a dot's position and two ticks the row's difference is found again."""
    (block,) = blocks(comparison(realistic_study()).rows())
    chart = pooled_forest(block)
    dots = [(float(x), float(value)) for x, value in re.findall(r'cx="([\d.]+)%".*?data-value="([^"]*)"', chart)]
    ticks = [(float(x), float(said)) for x, said in re.findall(r'<text class="" x="([\d.]+)%"[^>]*>([^<]+)<', chart)]
    (x0, v0), (x1, v1) = ticks[0], ticks[-1]
    assert len(dots) == 4
    for x, value in dots:
        assert v0 + (x - x0) * (v1 - v0) / (x1 - x0) == pytest.approx(value, abs=abs(v1 - v0) * 1e-3)


def test_divergence_is_drawn_by_position_and_by_confidence(page):
    """Both charts have a line per variant and say that a small divergence proves nothing."""
    assert "Divergence by position in the text, text.txt" in page
    assert "Divergence by the baseline&#x27;s confidence, text.txt" in page
    assert "A small divergence does not show that a variant is no worse" in page
    assert "bnb_4bit_fp4: 0-127: 0.02; 128-255: 0.04" in page


def test_fidelity_has_a_table_of_its_own_with_its_floor():
    """The table has divergence, excess over the floor and agreement of each variant, and Quality has none of them."""
    text = comparison(with_divergence()).to_text(width=80)
    assert "Fidelity to bf16_baseline on text.txt" in text
    (line,) = [line for line in text.splitlines() if "0.01230 ± 0.00040" in line]
    assert line.split("  ")[-1].strip() == "95.00 ± 0.20"
    assert "0.01200 ± 0.00040" in line
    assert "0.0003 nats from itself" in text
    assert "kl divergence" not in text


def test_the_protocol_names_variants_only_where_they_differ():
    """A setting that all share stands alone; one that differs has its variants."""
    study = realistic_study()
    settings = {row[0]: row[1] for row in protocol_table(study.record, study.runs).rows}
    assert settings["hardware"] == "NVIDIA A100-SXM4-40GB"
    assert settings["computes in"].startswith("bfloat16 (bf16_baseline, bnb_8bit); float16 (bnb_4bit_nf4, ")


def test_the_protocol_says_how_a_task_was_asked():
    """Chat template, few-shot examples, batch size and the KV cache's dtype are in the protocol."""
    study = MadeUpStudy()
    run = completed(experiment(BASELINE, "lm_eval(coqa)"), Measurement("coqa", "f1", 0.5))
    details = {
        "coqa": {"chat_template": False, "num_fewshot": 0, "batch_size": 4, "prompt_template": "sha256:" + "ab" * 32},
        "memory": {"kv_cache": {"dtype": "torch.bfloat16"}},
    }
    study.add(replace(run, details=details))
    settings = {row[0]: row[1] for row in protocol_table(study.record, study.runs).rows}
    assert settings["coqa"] == "chat template no; few-shot examples 0; batch size 4; prompts abababababab"
    assert settings["memory"] == "KV cache bfloat16"


def test_two_evaluators_of_one_text_have_their_own_settings():
    """Where several evaluators read one task, the protocol names each with its own settings."""
    study = MadeUpStudy()
    for label, stride in (("perplexity(x)", 256), ("fidelity(x)", 512), ("fidelity(x, window=9)", 9)):
        run = completed(experiment(BASELINE, label), Measurement("x", "perplexity", 9.0))
        study.add(replace(run, details={"x": {"stride": stride}}))
    settings = {row[0]: row[1] for row in protocol_table(study.record, study.runs).rows}
    found = {name: value for name, value in settings.items() if value.startswith("stride")}
    assert found == {
        "x, perplexity": "stride 256",
        "fidelity(x)": "stride 512",
        "fidelity(x, window=9)": "stride 9",
    }


def test_the_study_file_of_a_report_asks_for_the_same_study():
    """The TOML is read as a study with the same models, quantizers, evaluators, baseline, limit and margins."""
    record = realistic_study().record
    again = Study.from_json(tomllib.loads(study_toml(record)))
    assert [str(call) for call in again.quantizers] == list(
        dict.fromkeys(each.variant.quantizer.label for each in record.experiments)
    )
    assert [str(call) for call in again.evaluators] == list(
        dict.fromkeys(each.evaluator.label for each in record.experiments)
    )
    assert [model.source for model in again.models] == [
        "meta-llama/Llama-3.2-1B@4e20de362430cd3b72f300e6b0f18e50e7166e08"
    ]
    assert (again.baseline, again.limit, again.seed, again.margins) == (BASELINE, 50, 0, record.margins)


def test_the_study_file_keeps_a_models_settings():
    """A model that runs its own code is asked for with that setting, from the same folder."""
    model = ModelUse("./own", "sha256:1", ("trust_remote_code",))
    (again,) = Study.from_json(tomllib.loads(study_toml(realistic_study(model=model).record))).models
    assert (again.source, again.trust_remote_code, again.allow_pickle) == ("./own", True, False)


def test_every_format_has_the_verdict():
    """Text, Markdown, the page and the notebook begin with the same sentence; rows have the verdicts."""
    found = comparison(realistic_study())
    sentence = "Verdict at a margin of 2 points or 2% of perplexity:"
    for written in (found.to_text(width=200), found.to_markdown(), found.to_html(), found._repr_html_()):
        assert sentence in written
    assert "worse" in found.to_csv()
    assert {row["verdict"] for row in found.rows_json()["rows"] if row["pooled"]} >= {"worse"}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=5), st.booleans())
def test_an_axis_holds_its_values(values, log):
    """Values are in order on an axis and inside its ends, and so are a few round ticks."""
    values = [abs(value) + 1e-6 for value in values] if log else values
    axis = Axis.over(values, log=log)
    places = [axis.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(axis.start <= place <= axis.end for place in places)
    ticks = axis.ticks()
    assert len(ticks) <= 13
    assert all(axis.low - 1e-9 * abs(axis.low) <= tick <= axis.high + 1e-9 * abs(axis.high) for tick in ticks)


def test_a_notebook_begins_with_the_answer():
    """The verdict and the recommendation come before all other tables."""
    shown = comparison(realistic_study())._repr_html_()
    assert shown.index("Verdict at") < shown.index("Recommendation") < shown.index("Quality")


@pytest.mark.parametrize("text", HOSTILE)
def test_questions_and_answers_bring_no_markup(text):
    """Whatever a model answers or a data set asks, the page has the same tags as with harmless texts."""

    def tags(text: str) -> list[str]:
        study = MadeUpStudy()
        for label, score in ((BASELINE, 1.0), ("nf4", 0.0)):
            samples = [Sample("d", "p", {"acc": score}, f"{label}{text}", text)]
            mean = Measurement("t", "acc", score, higher_is_better=True, n=1)
            study.add(completed(experiment(label, "lm_eval(t)"), mean), {"t": samples})
        found = Comparison(study.record, study.runs, study.read, prompts=lambda hashes: {"p": f"a\n{text}"})
        page = found.to_html()
        assert "Documents that changed" in page
        return re.findall(r"<[a-z]+[^>]*>", re.sub(r"<title>.*?</title>", "", page))

    assert tags(text) == tags("harmless")


def test_a_report_of_twenty_variants_is_small():
    """With five tasks, answers, divergences and costs of 20 variants the page has under 5 MB."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        from report_page import made_up_comparison
    finally:
        sys.path.remove(str(BENCHMARKS))
    page = made_up_comparison(variants=20, documents=60).to_html()
    assert 100_000 < len(page.encode()) < 5_000_000
    assert "Why not the other" in page


def test_the_sentence_of_many_variants_counts_them():
    """With more than six variants, those of one verdict are counted and not listed."""
    study = MadeUpStudy()
    for index in range(9):
        mean, samples = scored("t", "acc", [1.0, 0.0] * (200 if index < 8 else 0) or [0.0] * 400)
        study.add(completed(experiment(f"v{index}" if index else BASELINE, "lm_eval(t)"), mean), {"t": samples})
    assert "Verdict at a margin of 2 points: 7 variants are no worse; v8 is worse." in comparison(study).to_text()


def test_documents_that_changed_are_shown_with_both_answers():
    """The page and the Markdown have the question, the expected answer and both answers, as text."""
    study = MadeUpStudy()
    for label, answers in ((BASELINE, ["yes", "<b>4</b>"]), ("nf4", ["no", "5"])):
        samples = [
            Sample(f"d{i}", f"p{i}", {"acc": float(answer != "no")}, answer, "the & target")
            for i, answer in enumerate(answers)
        ]
        mean = Measurement("t", "acc", 0.5, higher_is_better=True, n=2)
        study.add(completed(experiment(label, "lm_eval(t)"), mean), {"t": samples})
    prompts = {"p0": "Is 2 < 3?\nAnswer:", "p1": "2 + 2"}
    found = Comparison(study.record, study.runs, study.read, prompts=lambda hashes: prompts)
    page = found.to_html()
    assert "<pre>Is 2 &lt; 3?\nAnswer:</pre>" in page
    assert "acc 1 → 0" in page
    assert "<dt>expected</dt><dd>the &amp; target</dd><dt>baseline</dt><dd>yes</dd><dt>nf4</dt><dd>no</dd>" in page
    assert "| nf4 · t | acc 1 → 0 | the & target | yes | no |" in found.to_markdown()
    assert "2 + 2" not in page


def test_variants_without_a_verdict_share_their_reason():
    """Several variants that cannot be judged for one reason have one footnote, and no empty chart."""
    study = MadeUpStudy()
    for label in (BASELINE, "a", "b"):
        study.add(completed(experiment(label, "lm_eval(t)"), Measurement("t", "acc", 0.5, higher_is_better=True)))
    text = comparison(study).to_text(width=300)
    assert len([line for line in text.splitlines() if "a, b: not judged" in line]) == 1
    assert "All tasks" not in comparison(study).to_html()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_not_drawn(value):
    """A score, a time or a divergence that overflowed breaks no chart."""
    study = MadeUpStudy()
    for label, number in ((BASELINE, 1.0), ("nf4", value), ("int8", 0.5)):
        mean, samples = scored("t", "f1", [number, 0.5] * 20)
        study.add(completed(experiment(label, "lm_eval(t)"), mean), {"t": samples})
        times = Measurement("latency", "decode_ms_per_token", number, "ms", higher_is_better=False)
        study.add(completed(experiment(label, "latency", hardware=HARDWARE), times))
        parts = [
            Measurement("x", "kl_divergence", number, "nats", at={"position": name}, headline=False)
            for name in ("0-127", "128-255")
        ]
        study.add(completed(experiment(label, "fidelity(x)"), *parts))
    page = comparison(study).to_html()
    assert not re.search(r'="-?(nan|inf)', page)
    assert page.count('data-value="0.5"') == 4  # the time in two charts, and the divergence in two bins


def test_a_study_without_a_baseline_or_results_has_a_page():
    """Where nothing can be compared, the page says what there is, without charts of differences."""
    study = MadeUpStudy()
    study.add(experiment("nf4", "lm_eval(coqa)"))
    found = comparison(study)
    assert "Not run" in found.to_html()
    assert not rows(study.record, study.runs, study.read)[0].verdict
