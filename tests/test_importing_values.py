"""Result files without single documents, of mteb and llama.cpp, become rows that say why they carry no verdict."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from llmquant.errors import OptionError
from llmquant.importers.studies import import_results
from llmquant.results.comparison import Comparison

# As llama-perplexity prints it, shortened.
PERPLEXITY = """
perplexity: tokenizing the input ..
perplexity: calculating perplexity over 8 chunks, n_ctx=512, batch_size=2048, n_seq=4
perplexity: 1.21 seconds per pass - ETA 0.03 minutes
[1]4.6118,[2]5.0125,[3]18.1,[4]18.5,
Final estimate: PPL = 18.5041 +/- 0.90313

llama_perf_context_print:        load time =     100.00 ms
"""
DIVERGENCE = """
kl_divergence: 1.48 seconds per pass - ETA 0.20 minutes

chunk             PPL               ln(PPL(Q)/PPL(base))          KL Divergence              Same top p
   1      19.9283 ±    0.3726       0.00000 ±       -nan       0.02000 ±    0.00010    91.000 ±  1.000 %

====== Perplexity statistics ======
Mean PPL(Q)                   :  19.227711 ±   0.837833
Mean PPL(base)                :  18.504100 ±   0.837771
Cor(ln(PPL(Q)), ln(PPL(base))):  99.10%
Mean ln(PPL(Q)/PPL(base))     :   0.038360 ±   0.004100
Mean PPL(Q)/PPL(base)         :   1.039105 ±   0.004260
Mean PPL(Q)-PPL(base)         :   0.723611 ±   0.078536

====== KL divergence statistics ======
Mean    KLD:   0.040251 ±   0.000520
Maximum KLD:   6.412206
99.9%   KLD:   1.200799
99.0%   KLD:   0.420222
95.0%   KLD:   0.150000
Median  KLD:   0.012013
10.0%   KLD:   0.000002
 1.0%   KLD:  -0.000023
Minimum KLD:  -0.000059

====== Token probability statistics ======
Mean    Δp: -0.512 ± 0.040 %
Maximum Δp: 75.100%
99.0%   Δp: 10.500%
Median  Δp: -0.010%
 1.0%   Δp: -14.250%
Minimum Δp: -89.500%
RMS Δp    :  4.210 ± 0.060 %
Same top p: 90.625 ± 0.200 %
"""
EARLIER_DIVERGENCE = """
===== KL-divergence statistics
Average:   0.040251 ±  0.000520
Median :   0.012013
Maximum:   6.412206
KLD_99 :   0.420222
KLD_95 :   0.150000
"""


def values(found: Comparison, variant: str) -> dict[str, float]:
    return {row.metric: row.value for row in found.rows() if row.variant == variant}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_perplexity_is_read_with_its_stated_error(tmp_path):
    """One row per variant, its ratio to the baseline, no verdict, and the reason on the row and in the table."""
    base, other = (
        write(tmp_path / "f16.txt", PERPLEXITY),
        write(tmp_path / "q4.txt", PERPLEXITY.replace("18.5", "19.5")),
    )
    found = import_results([base, other], model="m", store=tmp_path / "store")
    one, two = (row for row in found.rows() if not row.pooled)
    assert (one.variant, one.value, one.stderr) == ("f16", 18.5041, 0.90313)
    assert two.ratio == pytest.approx(19.5041 / 18.5041)
    assert (two.verdict, two.pairs, two.no_interval) == (
        None,
        None,
        "the output of llama.cpp has no values per chunk or token",
    )
    assert two.no_interval in found.to_text(width=400)


def test_divergence_is_read_under_the_names_of_our_own_measures(tmp_path):
    """Shares instead of percent, with the errors that the program states."""
    found = import_results([write(tmp_path / "q4.txt", DIVERGENCE)], model="m", store=tmp_path / "store")
    assert values(found, "q4") == pytest.approx(
        {
            "perplexity": 19.227711,
            "ln_ppl_ratio": 0.038360,
            "kl_divergence": 0.040251,
            "kl_median": 0.012013,
            "kl_p99": 0.420222,
            "kl_p999": 1.200799,
            "kl_max": 6.412206,
            "top1_agreement": 0.90625,
            "dp_mean": -0.00512,
            "dp_rms": 0.0421,
            "dp_p1": -0.1425,
            "dp_p99": 0.105,
        }
    )
    errors = {row.metric: row.stderr for row in found.rows() if row.stderr is not None}
    assert errors == pytest.approx(
        {
            "perplexity": 0.837833,
            "ln_ppl_ratio": 0.0041,
            "kl_divergence": 0.00052,
            "top1_agreement": 0.002,
            "dp_mean": 0.0004,
            "dp_rms": 0.0006,
        }
    )


def test_earlier_and_other_forms_are_read(tmp_path):
    """The lines of early 2024, those of ik_llama.cpp, and lines with the time of the log before them."""
    old = import_results([write(tmp_path / "old.txt", EARLIER_DIVERGENCE)], model="m", store=tmp_path / "old")
    assert values(old, "old") == {
        "kl_divergence": 0.040251,
        "kl_median": 0.012013,
        "kl_p99": 0.420222,
        "kl_max": 6.412206,
    }
    fork = "Final estimate: PPL over 10 chunks for n_ctx=2048 = 3.1931 +/- 0.07007\n"
    logged = "0.01.234.567 I Final estimate: PPL = 3.1931 +/- 0.07007\n"
    for name, text in (("fork", fork), ("logged", logged)):
        found = import_results([write(tmp_path / f"{name}.txt", text)], model="m", store=tmp_path / name)
        assert values(found, name) == {"perplexity": 3.1931}


def test_an_error_that_is_no_number_is_left_out(tmp_path):
    """The value is kept."""
    text = PERPLEXITY.replace("0.90313", "-nan")
    (row,) = import_results([write(tmp_path / "a.txt", text)], model="m", store=tmp_path / "store").rows()
    assert (row.value, row.stderr) == (18.5041, None)


def test_other_windows_are_not_compared(tmp_path):
    """Perplexities of other context lengths are other numbers."""
    base = write(tmp_path / "f16.txt", PERPLEXITY)
    other = write(tmp_path / "q4.txt", PERPLEXITY.replace("n_ctx=512", "n_ctx=2048"))
    found = import_results([base, other], model="m", store=tmp_path / "store")
    assert {row.ratio for row in found.rows()} == {None}
    assert any("n_ctx 2048 against 512" in note for note in found.record.notes)


@pytest.mark.parametrize("text", ["", "llama_model_load: error", PERPLEXITY.partition("Final")[0]])
def test_an_output_without_an_end_is_refused(tmp_path, text):
    """With the command that saves all of it."""
    with pytest.raises(OptionError, match="has no 'Final estimate") as error:
        import_results([write(tmp_path / "q4.txt", text)], model="m", store=tmp_path / "store")
    assert "llama-perplexity" in error.value.hint


@pytest.fixture
def mteb_folder(tmp_path):
    """Return a function that lets mteb write a result of a task in two languages."""

    def make(name, score, *, task="SomeRetrieval", meta=True, **changes) -> Path:
        from mteb.results import TaskResult

        folder = tmp_path / name / "org__model" / "abc123"
        folder.mkdir(parents=True, exist_ok=True)
        entries = [
            {
                "main_score": score + step,
                "ndcg_at_5": score + step,
                "nauc_at_5": math.nan,
                "hf_subset": subset,
                "languages": [f"{subset}-Latn"],
            }
            for step, subset in ((0.0, "eng"), (0.1, "deu"))
        ]
        fields = {
            "task_name": task,
            "dataset_revision": "1",
            "mteb_version": "2.26.24",
            "scores": {"test": entries},
            "evaluation_time": 1.0,
            **changes,
        }
        TaskResult(**fields).to_disk(folder / f"{task}.json")
        if meta:
            write(folder / "model_meta.json", json.dumps({"name": "org/model", "revision": "abc123"}))
        return tmp_path / name

    return make


def test_mteb_results_are_values_with_a_reason(mteb_folder, tmp_path):
    """The mean over languages, the difference to the baseline, no verdict, and why."""
    paths = [mteb_folder("bf16", 0.5), mteb_folder("int8", 0.4)]
    found = import_results(paths, store=tmp_path / "store")
    assert found.record.title == "org/model"
    (row,) = [row for row in found.rows() if (row.variant, row.metric) == ("int8", "main_score")]
    assert (row.value, row.difference) == (pytest.approx(0.45), pytest.approx(-0.1))
    assert (row.verdict, row.pairs, row.no_interval) == (None, None, "an mteb result file has no scores per query")
    assert row.headline
    assert row.no_interval in found.to_text(width=400)
    assert math.isnan(values(found, "int8")["nauc_at_5"])


def test_mteb_results_of_other_data_are_not_compared(mteb_folder, tmp_path):
    """Neither another revision of the data nor another task."""
    paths = [mteb_folder("bf16", 0.5), mteb_folder("int8", 0.4, dataset_revision="2")]
    mteb_folder("int8", 0.3, task="Other")
    found = import_results(paths, store=tmp_path / "store")
    assert {row.difference for row in found.rows()} == {None}
    assert any("dataset_revision 2 against 1" in note for note in found.record.notes)
    assert any(note.startswith("Other: int8 is not compared") for note in found.record.notes)


def test_the_model_of_mteb_results_is_asked_for(mteb_folder, tmp_path):
    """Without mteb's own description of the model no file names it."""
    with pytest.raises(OptionError, match="do not name the model"):
        import_results([mteb_folder("bf16", 0.5, meta=False)], store=tmp_path / "store")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"task_name": "A", "dataset_revision": "1", "scores": {}}', "is not as mteb writes it"),
        ('{"task_name": "A", "dataset_revision": "1", "scores": {"test": 3}}', "is not as mteb writes it"),
        ('{"task_name": "A", "dataset_revision": "1", "scores": {"test": [{"main_score": null}]}}', "not a number"),
        ('{"mteb_dataset_name": "A", "test": {"map": 0.1}}', "has no results of lm-eval"),
        ('{"task_name": ', "cannot be read"),
    ],
    ids=["empty", "no-list", "null", "before-1.11", "damaged"],
)
def test_damaged_mteb_results_are_refused(tmp_path, text, message):
    """With the file or the folder."""
    folder = tmp_path / "folder"
    folder.mkdir()
    write(folder / "A.json", text)
    with pytest.raises(OptionError, match=message) as error:
        import_results([folder], model="m", store=tmp_path / "store")
    assert str(folder) in error.value.message


def test_programs_are_mixed_in_one_variant(mteb_folder, tmp_path):
    """Perplexity and retrieval of one variant are rows of it."""
    sources = [
        f"bf16={mteb_folder('a', 0.5)}",
        f"bf16={write(tmp_path / 'p.txt', PERPLEXITY)}",
        f"q4={write(tmp_path / 'q.txt', DIVERGENCE)}",
    ]
    found = import_results(sources, store=tmp_path / "store")
    assert set(values(found, "bf16")) >= {"main_score", "perplexity"}
    assert "SomeRetrieval: q4 has no results, but bf16 has" in found.record.notes
