"""What a caller's type checker sees of the public API: checked by `nox -s types`, never run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import assert_type

import llmquant as lq


def a_notebook(folder: Path) -> None:
    """One name or several, and what comes out."""
    comparison = lq.compare("org/model", "bnb_4bit_nf4", "lm_eval(coqa)", margin=2, store=folder)
    assert_type(comparison, lq.Comparison)
    assert_type(
        lq.compare(["a", folder], ["nf4", lq.Call.parse("bnb_4bit(quant_type=fp4)")], limit=None), lq.Comparison
    )
    assert_type(comparison.rows(), list[lq.Row])
    assert_type(comparison.rows()[0].value, float | None)
    assert_type(comparison.recommend(max_memory="8GiB"), lq.Recommendation)
    assert_type(comparison.pareto(), list[lq.ParetoPoint])
    assert_type(comparison.flipped(variant="nf4"), list[lq.DocumentChange])
    assert_type(comparison.failed, list[lq.Run])
    assert_type(lq.Comparison.from_store(folder), lq.Comparison)


def one_model() -> None:
    """In this process."""
    loaded = lq.load("org/model", "bnb_4bit_nf4", device="cpu")
    assert_type(loaded, lq.LoadedModel)
    assert_type(lq.evaluate(loaded, "perplexity", limit=10), list[lq.Result])
    assert_type(lq.load_embedder("bigemma3"), lq.LoadedEmbedder)
    lq.load("org/model", bits=4)  # type: ignore[call-arg]  # an option belongs into the call


@dataclass(frozen=True)
class LengthOptions(lq.EvaluatorOptions):
    """Options of an evaluator."""

    words: int = 10

    def requests(self, limit: int | None) -> int | None:
        """Return how many documents are scored."""
        return limit


class Length(lq.Evaluator[LengthOptions]):
    """The shortest evaluator."""

    def evaluate(self, model: lq.LoadedModel, ctx: lq.Context) -> Iterator[lq.Result]:
        """Yield one result."""
        assert_type(self.options, LengthOptions)
        assert_type(ctx.seed, int)
        samples = [lq.Sample("document", "prompt", {"length": 1.0})]
        yield lq.Result.from_samples("length", samples, "length", higher_is_better=None)


def results(found: Sequence[lq.Result], samples: Mapping[str, Sequence[lq.Sample]]) -> None:
    """What an evaluator returned."""
    assert_type(found[0].measurements[0].value, float)
    assert_type(samples["task"][0].scores, Mapping[str, float])
