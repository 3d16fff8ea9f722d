"""The Python interface: one real study, looked at from every side."""

from __future__ import annotations

from pathlib import Path

import pytest

import llmquant as lq
from misbehaving_studies import Here

TEXT = "The keeper counted the ships that passed before dawn, and wrote each name into a ledger bound in green cloth. "


@pytest.fixture(scope="module")
def study(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[lq.Comparison, Path]:
    """Compare the tiny model in two quantizations on a text, memory, and latency; return it with its store."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "text.txt").write_text(TEXT * 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMQUANT_CACHE", str(folder / "cache"))
        found = lq.compare(
            tiny_model,
            ["bnb_4bit_nf4"],
            [
                f"perplexity({folder / 'text.txt'}, window=128, stride=64)",
                "latency(prompt_tokens=[8, 16], decode_tokens=4, warmup=1, repeats=3)",
                "memory(prompt_tokens=16, decode_tokens=2)",
            ],
            executor=Here(),
            store=folder / "store",
            progress=False,
        )
    return found, folder / "store"


def test_a_baseline_is_added_and_said(study: tuple[lq.Comparison, Path]):
    """No `*_baseline` was named, so bf16 is there, first, with a note."""
    found, _ = study
    assert not found.failed
    assert found.record.experiments[0].variant.quantizer.label == "bf16_baseline"
    assert "bf16_baseline was added as the baseline" in found.record.notes


def test_memory_comes_first_and_latency_before_scores(study: tuple[lq.Comparison, Path]):
    """Hardware experiments run before the rest in each job, whatever their order in the request."""
    found, _ = study
    order = [e.evaluator.plugin for e in found.record.experiments][:3]
    assert order == ["llmquant/memory", "llmquant/latency", "llmquant/perplexity"]


def test_hardware_is_part_of_hardware_runs_alone(study: tuple[lq.Comparison, Path]):
    """A score may be reused on another machine; a latency may not."""
    found, _ = study
    for experiment in found.record.experiments:
        assert (experiment.hardware is None) == (experiment.evaluator.plugin == "llmquant/perplexity")


def test_rows_pair_the_windows_of_both_variants(study: tuple[lq.Comparison, Path]):
    """The difference in perplexity is over every window, and has an interval."""
    found, _ = study
    (row,) = [r for r in found.rows() if r.metric == "perplexity" and r.variant == "bnb_4bit_nf4"]
    windows = [len(samples["text.txt"]) for samples in map(found.samples().get, found.runs) if "text.txt" in samples]
    assert [row.pairs] * 2 == windows
    assert row.ratio_low < row.ratio < row.ratio_high


def test_memory_tells_the_quantized_weights_apart(study: tuple[lq.Comparison, Path]):
    """The state of the quantization is there and is not forgotten in the total."""
    found, _ = study
    values = {(r.variant, r.metric): r.value for r in found.rows() if r.task == "memory"}
    assert values["bf16_baseline", "weights_quantization_state_bytes"] == 0
    assert values["bnb_4bit_nf4", "weights_quantization_state_bytes"] > 0
    parts = ("weights_parameters_bytes", "weights_quantization_state_bytes", "weights_buffers_bytes")
    assert values["bnb_4bit_nf4", "weights_bytes"] == sum(values["bnb_4bit_nf4", part] for part in parts)


def test_a_portable_file_is_the_whole_study(study: tuple[lq.Comparison, Path], tmp_path: Path):
    """Read back without its store, it has the same rows and samples."""
    found, _ = study
    found.save_json(tmp_path / "study.json")
    again = lq.Comparison.load(tmp_path / "study.json")
    assert again.rows() == found.rows()
    assert again.samples() == found.samples()


def test_a_store_gives_the_newest_study(study: tuple[lq.Comparison, Path]):
    """By id, by the start of an id, or the newest."""
    found, store = study
    assert lq.Comparison.from_store(store).rows() == found.rows()
    assert lq.Comparison.from_store(store, found.record.study_id[:5]).record.study_id == found.record.study_id
    with pytest.raises(lq.errors.StoreError, match="nothing"):
        lq.Comparison.from_store(store, "nothing")


def test_a_frame_has_a_row_a_measurement(study: tuple[lq.Comparison, Path]):
    """Tidy: no nested values in its cells."""
    found, _ = study
    frame = found.to_frame(all=True)
    assert len(frame) == len(found.rows())
    assert set(frame["variant"]) == {"bf16_baseline", "bnb_4bit_nf4"}


def test_a_notebook_shows_the_table(study: tuple[lq.Comparison, Path]):
    """HTML with both variants, and nothing that needs the network."""
    html = study[0]._repr_html_()
    assert "bnb_4bit_nf4" in html
    assert "http" not in html


def test_one_experiment_can_be_run_again(study: tuple[lq.Comparison, Path], monkeypatch: pytest.MonkeyPatch):
    """An experiment of a study is enough to find or repeat its run."""
    found, store = study
    monkeypatch.setenv("LLMQUANT_CACHE", str(store.parent / "cache"))
    experiment = found.record.experiments[0]
    run = lq.run_experiment(experiment, executor="local(device=cpu, threads=1)", store=store)
    assert run == found.runs[experiment.run_id]


def test_run_ids_do_not_depend_on_where_files_are(study: tuple[lq.Comparison, Path], tiny_model: Path, tmp_path: Path):
    """The same text and model elsewhere are the same experiment."""
    import shutil

    from llmquant.results.preview import preview

    found, _ = study
    shutil.copytree(tiny_model, tmp_path / "copy")
    (tmp_path / "moved.txt").write_text(TEXT * 60)
    call = f"perplexity({tmp_path / 'moved.txt'}, window=128, stride=64)"
    record = preview(
        lq.Study((lq.ModelRequest(str(tmp_path / "copy")),), (lq.Call("bf16_baseline"),), (lq.Call.parse(call),)),
        executor="local(device=cpu)",
    ).record
    assert record.experiments[0].run_id in found.runs


def test_a_study_file_has_lists():
    """One string instead of a list is refused there, with the list to write."""
    with pytest.raises(lq.errors.OptionError, match="must be a list") as caught:
        lq.Study.from_json({"models": ["m"], "quantizers": "bnb_4bit_nf4"})
    assert "['bnb_4bit_nf4']" in caught.value.hint
