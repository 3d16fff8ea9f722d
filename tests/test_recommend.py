"""Which variant to ship: the smallest whose loss is proven acceptable, and why not the others."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest

from llmquant.cli.gate import Gate
from llmquant.errors import OptionError, RequestError
from llmquant.plugins.registry import registry
from llmquant.results.comparison import Comparison
from llmquant.results.costs import RUNNING, SERVED
from llmquant.results.recommend import Limits, rounded
from llmquant.study.call import Call
from llmquant.study.run import Measurement
from made_up import BASELINE, HARDWARE, MIB, MadeUpStudy, completed, experiment, failed, scored

RNG = np.random.default_rng(0)
GOOD = RNG.random(400)
SCORES = {
    BASELINE: GOOD,
    "bnb_8bit": np.clip(GOOD + RNG.normal(0, 0.02, 400), 0, 1),
    "bnb_4bit_nf4": np.clip(GOOD - 0.03 + RNG.normal(0, 0.02, 400), 0, 1),
    "bnb_4bit_fp4": np.clip(GOOD - 0.3, 0, 1),
    "hqq_4bit_g64": np.where(RNG.random(400) < 0.5, GOOD, 1 - GOOD),
}
SIZES = {BASELINE: 1000, "bnb_8bit": 600, "bnb_4bit_nf4": 300, "bnb_4bit_fp4": 290, "hqq_4bit_g64": 280}
MS = {BASELINE: 20, "bnb_8bit": 30, "bnb_4bit_nf4": 15, "bnb_4bit_fp4": 16, "hqq_4bit_g64": 40}


def comparison(*, labels=tuple(SCORES), without: str = "", lost: str = "", second=()) -> Comparison:
    """Make a study of F1, memory and latency.

    Args:
        without: variant without memory.
        lost: variant with a failed task.
        second: another task, its metric, and the value of each of `labels` that ran it; no scores of its documents.
    """
    study = MadeUpStudy()
    for label in labels:
        mean, samples = scored("coqa", "f1", SCORES[label])
        asked = experiment(label, "lm_eval(coqa)")
        if label == lost:
            study.add(failed(asked, "error", "broken"))
        else:
            study.add(completed(asked, mean), {"coqa": samples})
        memory = experiment(label, "memory", hardware=HARDWARE)
        sizes = {"weights_bytes": SIZES[label], "prefill_peak_bytes": 10, "decode_peak_bytes": 24}
        if label != without:
            values = [Measurement("memory", name, mib * MIB, "bytes", False) for name, mib in sizes.items()]
            study.add(completed(memory, *values))
        speed = Measurement("latency", "decode_ms_per_token", MS[label], "ms", False)
        study.add(completed(experiment(label, "latency", hardware=HARDWARE), speed))
    for label, value in zip(labels, second[2:], strict=False):
        task, metric = second[:2]
        study.add(completed(experiment(label, f"lm_eval({task})"), Measurement(task, metric, value, "", True)))
    return Comparison(study.record, study.runs, study.read)


def test_the_smallest_variant_without_a_loss_above_the_margin_is_chosen():
    """At 2 points only int8 and the baseline qualify; every other variant has its reason."""
    found = comparison().recommend()
    assert (found.variant, found.runner_up) == ("bnb_8bit", f"{BASELINE} (1.00 GiB)")
    assert set(found.ruled_out) == {"bnb_4bit_nf4", "bnb_4bit_fp4", "hqq_4bit_g64"}
    assert found.ruled_out["bnb_4bit_nf4"].startswith("worse at a margin of 2 points")
    assert found.ruled_out["hqq_4bit_g64"].startswith(("undecided", "worse"))
    assert "624.0 MiB of memory while running" in found.reasons[0]


def test_a_larger_acceptable_loss_admits_a_smaller_variant():
    """At 5 points the smaller NF4 is chosen; the study's own margin stays as it is."""
    found = comparison()
    assert found.recommend(max_loss=5).variant == "bnb_4bit_nf4"
    assert found.recommend().variant == "bnb_8bit"


@pytest.mark.parametrize(
    ("limits", "variant"),
    [({"max_latency": 25}, BASELINE), ({"max_memory": "700MiB"}, "bnb_8bit"), ({"max_loss": 50}, "bnb_4bit_fp4")],
)
def test_every_limit_is_met(limits, variant):
    """A variant above a limit is ruled out, however small or good it is."""
    found = comparison(labels=(BASELINE, "bnb_8bit", "bnb_4bit_nf4", "bnb_4bit_fp4")).recommend(**limits)
    assert found.variant == variant


def test_where_none_is_left_the_limit_to_relax_is_named():
    """A limit that nothing meets gives no recommendation, and what would admit the nearest variant."""
    found = comparison(labels=(BASELINE, "bnb_8bit")).recommend(max_memory="100MiB")
    assert found.variant is None
    assert found.relax == "Allow 624.0 MiB of memory for bnb_8bit."
    assert set(found.ruled_out) == {BASELINE, "bnb_8bit"}


def test_an_undecided_variant_is_not_recommended():
    """Few documents prove nothing, so the baseline is what remains."""
    study = MadeUpStudy()
    for label in (BASELINE, "bnb_8bit"):
        mean, samples = scored("coqa", "f1", SCORES[label][:20] if label == BASELINE else RNG.random(20))
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
        values = {"weights_bytes": SIZES[label], "decode_peak_bytes": 24}
        sizes = [Measurement("memory", name, mib * MIB, "bytes", False) for name, mib in values.items()]
        study.add(completed(experiment(label, "memory", hardware=HARDWARE), *sizes))
    found = Comparison(study.record, study.runs, study.read).recommend()
    assert found.variant == BASELINE
    assert "undecided" in found.ruled_out["bnb_8bit"]


def test_unmeasured_memory_and_failed_tasks_rule_out():
    """A variant of unknown memory, or with a failed task, is not recommended; the reason says so."""
    found = comparison(labels=(BASELINE, "bnb_8bit"), without="bnb_8bit").recommend()
    assert (found.variant, found.ruled_out["bnb_8bit"]) == (BASELINE, "its memory was not measured (add -e memory)")
    found = comparison(labels=(BASELINE, "bnb_8bit"), lost="bnb_8bit").recommend()
    assert "did not finish" in found.ruled_out["bnb_8bit"]


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (("mrpc", "f1", 0.8, 0.1), "mrpc f1 (no scores of single documents were kept)"),
        (("mrpc", "f1", 0.8), "mrpc f1 (not run)"),
    ],
)
def test_a_task_that_cannot_be_compared_rules_out(second, reason):
    """Another task's loss says nothing of this one's, and a gate for undecided variants does not pass."""
    found = comparison(labels=(BASELINE, "bnb_8bit"), second=second)
    assert found.recommend().variant == BASELINE
    assert found.recommend().ruled_out == {"bnb_8bit": f"its loss is unknown in {reason}"}
    assert Gate.of(None, None, None, None, "undecided", None).exit_code(found) == 4


def test_a_task_without_a_margin_is_named():
    """MCC is no share: without a margin of its own it does not count, and the recommendation says so."""
    found = comparison(labels=(BASELINE, "bnb_8bit"), second=("cola", "mcc", 0.6, 0.0)).recommend()
    assert found.variant == "bnb_8bit"
    assert "but cola mcc did not count, without a margin" in found.reasons


@pytest.mark.parametrize("measured_by", ["memory(batch=8)", "latency(batch=8)"])
def test_what_did_not_fit_under_one_condition_is_not_judged_by_another(measured_by):
    """The baseline runs out of memory in a batch of 8: its peak and its latency alone are no measure of it."""
    study = MadeUpStudy()
    for label in (BASELINE, "bnb_8bit"):
        mean, samples = scored("coqa", "f1", SCORES[label])
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
        for name, scale in (("memory", 1), ("latency", 1), (measured_by, 10)):
            asked = experiment(label, name, hardware=HARDWARE)
            values = {"weights_bytes": SIZES[label], "decode_peak_bytes": 24 * scale, "decode_ms_per_token": MS[label]}
            wanted = [metric for metric in values if ("ms" in metric) == name.startswith("latency")]
            found = [Measurement(name, metric, values[metric] * MIB, "bytes", False) for metric in wanted]
            small = scale == 1 or label != BASELINE
            study.add(completed(asked, *found) if small else failed(asked, "out_of_memory", "out of memory"))
    compared = Comparison(study.record, study.runs, study.read)
    assert None in {point.memory and point.latency for point in compared.pareto()}
    found = compared.recommend(max_latency=1e12, max_memory="2GiB")
    assert found.variant == "bnb_8bit"
    assert re.match("its (memory could not be|latency was not) measured", found.ruled_out[BASELINE])


def test_where_no_memory_was_measured_the_proven_variants_are_named():
    """Without any memory the smallest is unknown, but what has no loss is not."""
    study = comparison(labels=(BASELINE, "bnb_8bit", "bnb_4bit_fp4"))
    quality = tuple(each for each in study.record.experiments if each.hardware is None)
    found = Comparison(replace(study.record, experiments=quality), study.runs, study._samples).recommend()
    assert found.variant is None
    assert found.relax.endswith(f"acceptable: {BASELINE}, bnb_8bit.")
    assert set(found.ruled_out) == {"bnb_4bit_fp4"}


def test_nothing_compared_is_an_error():
    """A study without a compared variant says what to add."""
    with pytest.raises(RequestError, match="no variant was compared"):
        comparison(labels=(BASELINE,)).recommend()


@pytest.mark.parametrize(
    "limits", [{"max_memory": "8 apples"}, {"max_memory": 0}, {"max_latency": -1}, {"gpu": "L40"}, {"max_loss": "x"}]
)
def test_a_wrong_limit_is_refused(limits):
    """A size that cannot be read, a limit of nothing, or an unknown GPU is an error."""
    with pytest.raises(OptionError):
        comparison().recommend(**limits)


def test_a_gpu_limits_memory_with_a_tenth_kept_free():
    """The memory of a GPU is the table's, less 10%."""
    assert Limits.of(gpu="L4").max_memory == 0.9 * 24 * 2**30


def test_the_peak_while_running_is_a_row():
    """The peak is the weights and the larger of the passes, compared with the baseline's."""
    (row,) = [row for row in comparison().rows() if row.metric == RUNNING and row.variant == "bnb_8bit"]
    assert (row.value, row.baseline_value) == (624 * MIB, 1024 * MIB)


def test_what_runs_dequantized_counts_with_the_size_that_is_served():
    """Its 16-bit weights are shown, and the recommendation, its limits and its reasons are about the file."""
    study = MadeUpStudy()
    sizes = {BASELINE: (1000, None), "bnb_8bit": (600, None), "gguf_q8_0": (1000, 550)}
    for label, (here, there) in sizes.items():
        mean, samples = scored("coqa", "f1", SCORES.get(label, GOOD))
        study.add(completed(experiment(label, "lm_eval(coqa)"), mean), {"coqa": samples})
        values = {"weights_bytes": here, "decode_peak_bytes": 24, **({"weights_served_bytes": there} if there else {})}
        measured = [Measurement("memory", name, mib * MIB, "bytes", False) for name, mib in values.items()]
        study.add(completed(experiment(label, "memory", hardware=HARDWARE), *measured))
    study = Comparison(study.record, study.runs, study.read)
    found = study.recommend(max_memory="600MiB")
    assert (found.variant, found.ruled_out.keys()) == ("gguf_q8_0", {BASELINE, "bnb_8bit"})
    assert found.reasons[0].startswith("574.0 MiB of memory where it is served (it runs dequantized here)")
    rows = {row.metric: row for row in study.rows() if row.variant == "gguf_q8_0"}
    assert (rows[RUNNING].value, rows[SERVED].value) == (1024 * MIB, 574 * MIB)
    assert rows[SERVED].ratio == pytest.approx(574 / 1024)
    (line,) = [line for line in study.to_text().splitlines() if line.startswith("gguf_q8_0") and "550.0" in line]
    assert line.split()[1:] == ["1,000.0", "550.0", "1.82", "1,024.0", "574.0"]


def test_the_front_has_what_nothing_beats():
    """A variant that another beats in everything is off the front; one within the noise is on it sometimes."""
    points = {point.variant: point for point in comparison().pareto()}
    assert points[BASELINE].on_front
    assert points["bnb_4bit_nf4"].on_front
    assert 0 <= points["hqq_4bit_g64"].probability <= 1
    assert all(point.memory and point.latency for point in points.values())


def test_a_dominated_variant_is_off_the_front():
    """A larger and worse variant is never on the front."""
    found = comparison(labels=(BASELINE, "bnb_4bit_nf4", "hqq_4bit_g64"))
    by_label = {point.variant: point for point in found.pareto()}
    study = comparison(labels=(BASELINE, "bnb_4bit_nf4"), without="")
    assert by_label["bnb_4bit_nf4"].probability == 1
    assert {point.variant for point in study.pareto()} == {BASELINE, "bnb_4bit_nf4"}


@pytest.mark.parametrize(
    ("labels", "fail_on", "code"),
    [
        ((BASELINE, "bnb_8bit"), "undecided", 0),
        ((BASELINE, "bnb_8bit", "bnb_4bit_fp4"), "worse", 3),
        ((BASELINE, "bnb_8bit", "bnb_4bit_fp4"), None, 0),
        ((BASELINE,), "worse", 0),
        ((BASELINE,), "undecided", 4),
    ],
)
def test_verdicts_become_exit_codes(labels, fail_on, code):
    """3 for a worse variant, 4 where nothing is proven, and 0 without a gate."""
    gate = Gate.of(None, None, None, None, fail_on, None)
    assert gate.exit_code(comparison(labels=labels)) == code


def test_junit_has_a_case_per_variant(tmp_path):
    """A worse variant is a failure, and hostile names stay well-formed XML."""
    path = tmp_path / "junit.xml"
    Gate.of(None, None, None, None, "worse", str(path)).exit_code(
        comparison(labels=(BASELINE, "bnb_8bit", "bnb_4bit_fp4"))
    )
    suite = ElementTree.parse(path).getroot()
    cases = {case.get("name"): [child.tag for child in case] for case in suite}
    assert cases == {"bnb_8bit": [], "bnb_4bit_fp4": ["failure"]}
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")


@pytest.mark.parametrize(
    ("preset", "package"),
    [("gptq_4bit_g128", ""), ("gptq_3bit_g128", None), ("bnb_4bit_nf4", "vllm-bnb-plugin"), ("awq_4bit_g128", "")],
)
def test_a_quantizer_says_what_vllm_needs(preset, package):
    """VLLM loads GPTQ of 4 bits and not of 3; bitsandbytes needs a package."""
    assert registry().choose("quantizer", Call.of(preset)).options.serving() == package


def test_the_recommendation_ends_with_the_lines_that_use_it():
    """A variant that can be saved is quantized, loaded and served with three lines."""
    found = comparison(labels=(BASELINE, "bnb_8bit"))
    lines = found.recommend().lines()
    assert any(line.startswith("llmquant quantize ") and "-q bnb_8bit" in line for line in lines) or any(
        "lq.load(" in line for line in lines
    )


@pytest.mark.parametrize(
    ("value", "digits", "written"),
    [(16.24, 3, "16.2"), (0.943, 2, "0.94"), (336.3, 3, "336"), (1333.8, 3, "1,334"), (126.2, 2, "126"), (4.0, 3, "4")],
)
def test_no_number_has_an_exponent(value, digits, written):
    """Large numbers keep their whole digits, for people."""
    assert rounded(value, digits) == written
