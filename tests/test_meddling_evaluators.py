"""An evaluator of another package changes no number but its own."""

from __future__ import annotations

from pathlib import Path

from misbehaving_studies import Here, by_evaluator, compare, misbehaving

__all__ = ["misbehaving"]  # a fixture


def test_one_that_changes_the_weights_fails_by_name_and_alone(tiny_model: Path, tmp_path: Path):
    """Built-in evaluators come before it, whatever was asked; those after it measure the model as it was loaded."""
    text = tmp_path / "text.txt"
    text.write_text("The river was low in summer, and the boys built a bridge of stones. " * 20)
    perplexity = f"perplexity({text})"
    runs = by_evaluator(compare(tiny_model, tmp_path, "meddle(weights)", "meddle", perplexity, executor=Here()))
    alone = by_evaluator(compare(tiny_model, tmp_path / "alone", "meddle", perplexity, executor=Here()))
    failed = runs["meddle(weights)"]
    assert (failed.status, failed.measurements) == ("failed", ())
    assert failed.failure.message.startswith(
        "evaluator 'meddle' of package registered changed the weights of model.layers.0.mlp.up_proj\n"
    )
    (first,) = (run for label, run in runs.items() if label.startswith("perplexity"))
    assert first.started_at < failed.started_at < runs["meddle"].started_at
    for label, run in alone.items():
        assert runs[label].measurements == run.measurements


def test_a_worker_becomes_a_new_process_where_it_must(tiny_model: Path, tmp_path: Path):
    """The worker continues after a setting was restored, and starts again after a function was replaced."""
    order = ["meddle(dtype)", "meddle(patch)", "meddle(child)"]
    runs = by_evaluator(compare(tiny_model, tmp_path, *order))
    assert [runs[label].provenance["changed_by_evaluator"] for label in order] == [
        ["torch's default dtype"],
        ["the function torch.nn.functional.silu"],
        ["the process 'sleep', left running"],
    ]
    assert [runs[label].details["meddle"]["fresh"] for label in order] == [True, False, True]
