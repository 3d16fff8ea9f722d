"""What a notebook shows: a line or a table per object, one output for progress, one line after an interrupt."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from rich.console import Console

import llmquant as lq
from llmquant.api import _interrupt
from llmquant.results.report.progress import show_progress
from llmquant.running.progress import Progress, Running
from llmquant.storage.cache import Cache
from made_up import BASELINE, realistic_study
from subjects import load_subject


@pytest.fixture(scope="module")
def found() -> lq.Comparison:
    study = realistic_study()
    return lq.Comparison(study.record, study.runs, study.read)


class Output:
    """Stands for the output of a cell that a frontend shows."""

    def __init__(self) -> None:
        self.displayed, self.updates = 0, []

    def display(self, bundle, *, raw: bool, display_id: bool) -> Output:
        self.displayed += 1
        return self

    def update(self, bundle, *, raw: bool) -> None:
        self.updates.append(bundle)


@pytest.fixture
def output(monkeypatch: pytest.MonkeyPatch) -> Output:
    """Put a module in IPython's place, which need not be installed."""
    output, module = Output(), ModuleType("IPython.display")
    module.display = output.display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    return output


def state(completed: int, *running: Running) -> Progress:
    return Progress(3, 0, completed, 0, running, None)


def test_progress_is_one_output_that_is_updated(output: Output):
    """It shows each running experiment with a bar of HTML, and at the end the number of finished ones alone."""
    now = time.monotonic()
    with show_progress(Console(force_jupyter=True)) as watch:
        watch(state(1, Running("nf4 · <coqa>", 3, 8, now), Running("fp4 · loading", 0, 0, now)))
        watch(state(2))
    first, last = output.updates
    assert output.displayed == 1
    assert first["text/plain"].splitlines() == [
        "1 of 3 experiments done",
        "  nf4 · <coqa>  3/8  0 s",
        "  fp4 · loading  0 s",
    ]
    assert '<progress value="3" max="8"></progress> 3/8 nf4 · &lt;coqa&gt;, 0 s' in first["text/html"]
    assert last["text/plain"] == "2 of 3 experiments done, after 0 s"
    assert "progress" not in last["text/html"]


def test_many_states_are_few_updates(output: Output):
    """The scheduler reports ten times per second, and a notebook keeps what it is sent; the last state is shown."""
    with show_progress(Console(force_jupyter=True)) as watch:
        for completed in range(3):
            watch(state(completed))
    assert [update["text/plain"][:6] for update in output.updates] == ["0 of 3", "2 of 3"]


def test_an_interrupted_call_shows_one_line():
    """IPython shows what `_render_traceback_` returns; the exception is KeyboardInterrupt, for Python's exit code."""
    runs = {"a": SimpleNamespace(status="completed"), "b": SimpleNamespace(status="failed")}
    store = SimpleNamespace(root=Path.cwd() / "results")
    record = SimpleNamespace(experiments=range(4))
    error = _interrupt(SimpleNamespace(runs=runs, store=store, record=record))
    assert type(error) is KeyboardInterrupt
    assert error._render_traceback_() == [
        "interrupted: 1 of 4 experiments are stored in results; the same call continues"
    ]


def test_only_public_names_are_listed():
    """Neither modules that were imported meanwhile nor the names that `llmquant` itself imports."""
    assert dir(lq) == sorted(["__version__", *lq.__all__])


def test_a_frame_has_a_line_per_variant_and_main_metric(found: lq.Comparison):
    """Parts of a metric are left out, and a model and conditions that are always the same; failures are in it."""
    frame = found.to_frame()
    assert list(frame) == [
        *("variant", "task", "metric", "at_batch", "at_prompt_tokens", "value", "stderr", "n", "unit"),
        *("difference", "difference_low", "difference_high", "ratio", "ratio_low", "ratio_high", "verdict", "status"),
    ]
    baseline = frame[frame.variant == BASELINE]
    assert list(dict.fromkeys(baseline.metric)) == [
        *("f1", "em", "perplexity", "weights_bytes", "prefill_ms", "ttft_ms", "decode_ms_per_token"),
        *("generated_tokens_per_s", "decode_tokens_per_s", "running_peak_bytes"),
    ]
    assert not frame.duplicated(["variant", "task", "metric", "at_batch", "at_prompt_tokens"]).any()
    assert set(frame[frame.status == "failed"].task) >= {"lm_eval(coqa)", "memory"}


def test_a_whole_frame_has_a_line_per_row(found: lq.Comparison):
    """With every field of the rows."""
    frame = found.to_frame(all=True)
    assert len(frame) == len(found.rows())
    assert {"interval_method", "p_holm", "at_new_tokens"} <= set(frame)


def test_objects_are_a_line(found: lq.Comparison, tiny_model: Path, tmp_path: Path):
    """A comparison, its rows, runs and changes, a study, a store and a loaded model, whose module has pages."""
    row = next(row for row in found.rows() if row.variant == "bnb_4bit_nf4" and row.metric == "f1")
    run = next(iter(found.runs.values()))
    study = lq.Study.of("org/model", ["bnb_8bit"], ["memory"], limit=20)
    assert repr(found) == (
        f"<Comparison {found.record.study_id}: {found.record.title}, 6 variants, "
        f"{len(found.runs) - len(found.failed)} of {len(found.record.experiments)} experiments completed>"
    )
    assert repr(row) == (
        "Row(model='meta-llama/Llama-3.2-1B', variant='bnb_4bit_nf4', task='coqa', metric='f1', value=0.5758, "
        "difference=0.0054, verdict='undecided')"
    )
    assert repr(run) == f"<Run {run.run_id}: {BASELINE} · lm_eval(coqa), completed>"
    assert repr(study) == (
        "Study(models=['org/model'], quantizers=['bnb_8bit'], evaluators=['memory'], limit=20, seed=0)"
    )
    assert repr(lq.Store(tmp_path)) == f"Store({str(tmp_path)!r})"
    loaded = load_subject(tiny_model, Cache(tmp_path))
    assert repr(loaded) == f"<LoadedModel {tiny_model.name}, none, on cpu>"
    for shown in (*found.changes(), *found.flipped()):
        assert len(repr(shown)) < 300


def test_a_recommendation_is_sentences(found: lq.Comparison):
    """As `print` shows it, and as a list in Markdown."""
    advice = found.recommend()
    assert repr(advice) == str(advice)
    assert repr(advice).startswith("Ship bf16_baseline: ")
    shown = advice._repr_markdown_().splitlines()
    assert len(shown) == len(advice.lines())
    assert shown[0].startswith("- Ship bf16_baseline: ")
    assert shown[-1] == f"- `{advice.use[-1]}`"


def test_the_verdict_is_a_sentence_over_its_table(found: lq.Comparison):
    """Not its caption, which would be as narrow as the table; Jupyter's own style does not align text columns."""
    html = found._repr_html_()
    assert '<p class="title">Verdict at a margin of ' in html
    assert "<caption>Verdict" not in html
    assert ".llmquant .part .l { text-align: left; }" in html
