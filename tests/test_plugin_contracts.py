"""The contracts of plugins: what is optional may be left out, and what is mistyped is refused."""

from __future__ import annotations

import functools
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path

import pluggy
import pytest

import llmquant as lq
from llmquant.errors import PluginError
from llmquant.plugins.discovery import GROUP, Plugin
from llmquant.plugins.registry import Registry, registry
from llmquant.study.call import Call


@dataclass(frozen=True)
class _Mistyped:
    def request(self):
        return {"bits": 4.0}


@dataclass(frozen=True)
class _MistypedHeir(lq.QuantizerOptions):
    @staticmethod
    def weights_bytes(model, device):
        return 1


@dataclass(frozen=True)
class _Decorated(lq.EvaluatorOptions):
    @functools.cache  # noqa: B019 - a class of a test
    def part(self):
        return [self]


@dataclass(frozen=True)
class _InheritedMistake(_Mistyped):
    bits: int = 4


@dataclass(frozen=True)
class _Embeds:
    checkpoint: str = ""

    def for_dim(self, dims):
        return self


@dataclass(frozen=True)
class _InOrder:
    bits: int = 4
    score: object = field(default=len, init=False)

    @property
    def levels(self):
        return 2**self.bits

    def requests(self):
        return {"bits": float(self.bits)}

    def _helper(self):
        return 1


def _find(options, kind="quantizer"):
    spec = lq.PluginSpec(kind, "mine", "Mine.", f"{__name__}:{options.__name__}", "mine:Mine")
    known = Registry([Plugin(spec, "theirs", "1")], [], pluggy.PluginManager(GROUP))
    return known.choose(kind, Call.parse("mine"))


@pytest.mark.parametrize(
    ("options", "kind", "wrong", "right"),
    [
        (_Mistyped, "quantizer", "request", "requests"),
        (_MistypedHeir, "quantizer", "weights_bytes", "weight_bytes"),
        (_InheritedMistake, "quantizer", "request", "requests"),
        (_Decorated, "evaluator", "part", "parts"),
        (_Embeds, "embedder", "for_dim", "for_dims"),
    ],
)
def test_a_mistyped_method_of_options_is_refused_with_the_nearest_name(options, kind, wrong, right):
    """It would never be called, and what it should check would go unchecked."""
    with pytest.raises(PluginError, match=f"theirs/mine: .*{options.__name__} has a method '{wrong}'") as caught:
        _find(options, kind)
    assert f"Did you mean '{right}'" in caught.value.hint


def test_fields_properties_and_helpers_are_the_authors_own():
    """Only public methods belong to the contract; nothing has to inherit from it."""
    assert _find(_InOrder).options.levels == 16


def test_a_method_of_another_kind_is_refused():
    """Nobody asks an evaluator's options for `requests`."""
    with pytest.raises(PluginError, match="has a method 'requests'"):
        _find(_InOrder, "evaluator")


def test_the_built_in_options_keep_to_the_contract():
    """The same check holds for llmquant's own plugins."""
    for plugin in registry().plugins:
        assert registry().options_class(plugin).__name__


def test_a_quantizer_that_writes_no_checkpoint_needs_no_prepare(tiny_model, tmp_path, monkeypatch):
    """The model's own folder is loaded."""
    from llmquant.quantizers.baseline.quantizer import Baseline

    class WithoutBase:
        load_kwargs, applied = Baseline.load_kwargs, Baseline.applied

        def __init__(self, options):
            self.options = options

    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path))
    monkeypatch.setattr("llmquant.quantizers.baseline.quantizer.Baseline", WithoutBase)
    assert lq.load(tiny_model, device="cpu").path == tiny_model


def _samples(*scores, document="same"):
    return [lq.Sample(document, "prompt", {"f1": score}) for score in scores]


def test_a_result_from_samples_has_their_mean_its_standard_error_and_their_number():
    """The textbook's formulas: s / sqrt(n), with n - 1 under the sum."""
    scores = [0.25, 1.0, 0.5, 0.0]
    result = lq.Result.from_samples("qa", _samples(*scores), "f1", higher_is_better=True, unit="points")
    (measurement,) = result.measurements
    assert measurement.value == pytest.approx(statistics.fmean(scores))
    assert measurement.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(4))
    assert (measurement.n, measurement.unit, measurement.higher_is_better) == (4, "points", True)


def test_repeated_documents_are_numbered():
    """So that each sample pairs with its own of another variant."""
    samples = [*_samples(1, 1), *_samples(0, document="other"), *_samples(1)]
    result = lq.Result.from_samples("qa", samples, "f1", higher_is_better=True)
    assert [sample.occurrence for sample in result.samples] == [0, 1, 0, 2]


def test_only_samples_with_the_score_count():
    """A document without one is kept, and is not part of the mean."""
    samples = [*_samples(0.5, 0.5), lq.Sample("unanswered", "prompt", {"exact": 1})]
    (measurement,) = lq.Result.from_samples("qa", samples, "f1", higher_is_better=True).measurements
    assert (measurement.value, measurement.stderr, measurement.n) == (0.5, 0, 2)


def test_one_sample_has_no_standard_error():
    """There is no spread to take it from."""
    assert lq.Result.from_samples("qa", _samples(1), "f1", higher_is_better=True).measurements[0].stderr is None


@pytest.mark.parametrize("scores", [(math.inf, 1.0), (math.inf, -math.inf), (math.nan, 1.0), (1e308, 1e308)])
def test_scores_that_are_not_finite_are_kept_as_they_are(scores):
    """A model that overflows has a result too, as a mean that is not finite."""
    (measurement,) = lq.Result.from_samples("qa", _samples(*scores), "f1", higher_is_better=True).measurements
    assert not math.isfinite(measurement.value)


@pytest.mark.parametrize(("samples", "hint"), [([], "no scores"), (_samples(1), "Their scores are f1")])
def test_a_metric_that_no_sample_has_is_refused(samples, hint):
    """The scores that are there are named."""
    with pytest.raises(PluginError, match="no sample has a score 'f2'") as caught:
        lq.Result.from_samples("qa", samples, "f2", higher_is_better=True)
    assert hint in caught.value.hint


def test_a_single_file_that_is_declared_and_not_written_is_the_plugins_error(tmp_path: Path):
    """The message names the class and the method."""

    class Declares(lq.Quantizer):
        def load_kwargs(self, model, ctx):
            return {}

        def applied(self, module):
            raise AssertionError

    with pytest.raises(PluginError, match="Declares writes no single file, although its options declare one\nDefine"):
        Declares(None).export(tmp_path, None, tmp_path / "out", None)
