"""One real study of embedders, end to end: quantizers, a grid of vectors, drift, and what cannot work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import llmquant as lq
from embedding import page
from llmquant.errors import OptionError, RequestErrors, UnsupportedError
from llmquant.plugins.embedder import Prepared
from misbehaving_studies import Here
from tiny_gemma3 import write_gemma3

PAGES = 6


@pytest.fixture(scope="module")
def local_set(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Draw pages, one of them damaged, and ask for each."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "pages").mkdir()
    for number in range(PAGES):
        drawn = page(f"topic {number}", size=(120, 160), colour=["white", "beige", "pink"][number % 3])
        (folder / "pages" / f"p{number}.png").write_bytes(drawn)
    (folder / "pages" / "torn.png").write_bytes(page("torn")[:200])
    queries = [{"query": f"topic {number}", "relevant": [f"p{number}.png"]} for number in range(PAGES)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    return folder / "pages", folder / "queries.jsonl"


@pytest.fixture(scope="module")
def study(local_set, tmp_path_factory: pytest.TempPathFactory) -> tuple[lq.Comparison, Path]:
    """Compare a tiny Gemma 3 in bfloat16 and NF4, in two forms of vectors, with chance beside it."""
    folder = tmp_path_factory.mktemp("study")
    pages, queries = local_set
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMQUANT_CACHE", str(folder / "cache"))
        found = lq.compare(
            [f"bigemma3({write_gemma3(folder / 'gemma')})"],
            ["bnb_4bit_nf4"],
            [
                f"retrieval({pages}, queries={queries})",
                f"drift({pages}, queries={queries}, results=3)",
                "memory",
                "query_latency(documents=50, repeats=3)",
            ],
            vectors={"codecs": ["float32", "binary"]},
            executor=Here(),
            store=folder / "store",
            progress=False,
        )
    return found, folder


def values(found: lq.Comparison, metric: str) -> dict[str, float]:
    return {row.variant: row.value for row in found.rows() if row.metric == metric}


def test_every_experiment_completes(study):
    """Two quantizers in two forms of vectors, and once a quantizer what does not depend on vectors."""
    found, _ = study
    assert not found.failed
    assert len(found.runs) == 2 * (3 * 2 + 1)


def test_quantizers_go_on_embedders(study):
    """The weights are read back as NF4, and take less."""
    found, _ = study
    codes = {run.experiment.variant.quantizer.label: run.applied["code"] for run in found.runs.values()}
    assert codes == {"bf16_baseline": "bfloat16", "bnb_4bit_nf4": "nf4"}
    weights = values(found, "weights_bytes")
    assert weights["bnb_4bit_nf4 · float32"] < weights["bf16_baseline · float32"]


def test_sizes_are_those_of_packed_bytes(study):
    """A binary vector takes a bit a dimension, a thirty-second of float32."""
    found, _ = study
    size = values(found, "bytes_per_document")
    assert size["bf16_baseline · float32"] == 32 * size["bf16_baseline · binary"]


def test_pages_are_encoded_once_a_quantizer(study):
    """All forms of vectors and all evaluators share what is in the cache."""
    _, folder = study
    kept = [path for path in (folder / "cache" / "embeddings").iterdir() if path.is_dir()]
    assert len(kept) == 2


def test_the_baseline_does_not_drift_from_itself(study):
    """Its cosine is 1, its results are its own, and every variant is compared with its file."""
    found, _ = study
    assert values(found, "overlap_at_3")["bf16_baseline · float32"] == 1
    assert values(found, "cosine")["bf16_baseline · float32"] == pytest.approx(1)
    assert values(found, "cosine")["bnb_4bit_nf4 · float32"] < 1
    drift = [e for e in found.record.experiments if e.evaluator.plugin == "llmquant/drift"]
    assert [e.reference for e in drift] == [None] + 3 * [drift[0].run_id]


def test_a_damaged_page_is_a_recorded_skip(study):
    """The page that cannot be decoded is named with its reason; the others are searched."""
    found, _ = study
    run = next(run for run in found.runs.values() if run.experiment.evaluator.plugin == "llmquant/retrieval")
    (details,) = run.details.values()
    assert list(details["skipped"]) == ["torn.png"]
    assert "damaged" in details["skipped"]["torn.png"]
    assert set(values(study[0], "documents_not_encoded").values()) == {1}
    assert "pages: 1 document could not be encoded (every variant)" in found.to_text()


def test_the_report_has_the_grid_and_the_worst_queries(study):
    """The table has every variant with its size, and the page shows what the worst queries found."""
    found, folder = study
    text = found.to_text()
    assert "bytes per" in text
    assert "bnb_4bit_nf4 · binary" in text
    found.save_html(folder / "report.html")
    assert "Worst queries" in (folder / "report.html").read_text()
    assert "data:image/webp" in (folder / "report.html").read_text()


def test_the_same_study_again_runs_nothing(study, local_set):
    """What is stored is reused, whatever the files are called."""
    found, folder = study
    again = lq.Comparison.from_store(folder / "store")
    assert again.record.experiments == found.record.experiments
    assert {run.status for run in again.runs.values()} == {"completed"}


def test_an_embedder_opens_in_a_notebook(study, monkeypatch):
    """`load_embedder` gives vectors of texts, at unit length."""
    _, folder = study
    monkeypatch.setenv("LLMQUANT_CACHE", str(folder / "cache"))
    loaded = lq.load_embedder(f"bigemma3({folder / 'gemma'})", "bnb_8bit", device="cpu")
    vectors = loaded.encode(["an invoice", "a river"], "query")
    assert vectors.values.shape == (2, loaded.embeds.width)
    assert (vectors.values**2).sum(axis=1) == pytest.approx([1, 1], abs=1e-3)
    assert isinstance(loaded.opened.prepare("x", None, "query"), Prepared)


def test_what_cannot_work_is_refused_before_anything_is_loaded(study, local_set, tiny_model, tmp_path):
    """Calibrated quantizers, widths that are not offered, pooling of single vectors, and grids of language models."""
    _, folder = study
    pages, queries = local_set
    gemma, evaluator = f"bigemma3({folder / 'gemma'})", f"retrieval({pages}, queries={queries})"
    with pytest.raises(UnsupportedError, match="supports a causal LM, but bigemma3"):
        lq.compare(gemma, ["gptq_4bit_g128"], [evaluator], store=tmp_path)
    with pytest.raises(OptionError, match="cannot be cut to 500 dimensions"):
        lq.compare(gemma, ["bf16_baseline"], [evaluator], vectors={"dims": [500]}, store=tmp_path)
    with pytest.raises(OptionError, match="pooling is not possible"):
        lq.compare(gemma, ["bf16_baseline"], [evaluator], vectors={"pools": [2]}, store=tmp_path)
    with pytest.raises(OptionError, match=r"codecs\[0\] is 'int7'"):
        lq.compare(gemma, ["bf16_baseline"], [evaluator], vectors={"codecs": ["int7"]}, store=tmp_path)
    with pytest.raises(RequestErrors) as caught:
        lq.compare(tiny_model, ["bf16_baseline"], [evaluator], vectors={"dims": [8]}, store=tmp_path)
    assert "is a causal LM" in str(caught.value)
    assert not list(tmp_path.iterdir())
