"""The checks for plugin packages find what they are for; the example package shows that they let good plugins pass."""

from __future__ import annotations

import importlib
import sys
from itertools import count

import numpy as np
import pytest

import llmquant as lq
from llmquant.builtin_embedders import EMBEDDERS
from llmquant.embedders.chance.embedder import OpenChance
from llmquant.errors import PluginError, UnknownNameError
from llmquant.plugins.spec import PluginSpec
from llmquant.testing import check_embedder, check_evaluator, check_quantizer, check_spec
from tiny_gemma3 import write_gemma3
from tiny_sentence_transformer import save_tiny_sentence_transformer

_NUMBERS = count()

_HEAD = """
import random
from dataclasses import dataclass
import torch
from llmquant import AppliedQuantization, Measurement, Result, Sample
from llmquant.loading.memory import stored_elements

class Heavy:
    def __init__(self, options):
        self.options = options
"""

_EVALUATE = """
    def evaluate(self, subject, ctx):
        mean = Measurement("t", "m", {value})
        yield Result("t", [mean] * {times}, [Sample(d, d, {{}}) for d in {documents}], {details})
"""

_QUANTIZER = """
    def prepare(self, model, out, ctx):
        {prepare}
        return model

    def load_kwargs(self, model, ctx):
        return {{"dtype": torch.float32}}

    def applied(self, module):
        {applied}
        return AppliedQuantization("none", "float32", 32.0, "float32", stored_elements(module), 0)
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that writes a plugin's two halves as modules and returns its spec."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(kind, heavy, *, options="bits: int = 4", light="", **fields):
        name = f"conformance_{next(_NUMBERS)}"
        light = (
            f"{light}\nfrom dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Options:\n    {options}\n"
        )
        (tmp_path / f"{name}_options.py").write_text(light)
        (tmp_path / f"{name}.py").write_text(_HEAD + heavy)
        importlib.invalidate_caches()
        made.extend((name, f"{name}_options"))
        return PluginSpec(
            kind=kind, name="mine", summary="Mine.", options=f"{name}_options:Options", target=f"{name}:Heavy", **fields
        )

    yield make
    for name in made:
        sys.modules.pop(name, None)


def _evaluator(make, *, value="1.0", times=1, documents="'ab'", details="{}", **fields):
    heavy = _EVALUATE.format(value=value, times=times, documents=documents, details=details)
    return make("evaluator", heavy, **fields)


def test_a_light_half_that_is_heavy_is_found(make):
    """Options that import torch would make listing plugins take seconds."""
    with pytest.raises(PluginError, match="imports torch"):
        check_spec(make("quantizer", "", light="import torch"))


def test_a_light_half_that_does_not_import_is_found(make):
    """The error of the import is reported."""
    with pytest.raises(PluginError, match="cannot be imported: ZeroDivisionError"):
        check_spec(make("quantizer", "", light="1 / 0"))


def test_a_preset_with_a_wrong_option_is_found(make):
    """A preset is built as if somebody asked for it."""
    with pytest.raises(UnknownNameError, match="has no option 'bitz'"):
        check_spec(make("quantizer", "", presets={"mine_3bit": {"bitz": 3}}))


def test_options_of_another_type_are_found(make):
    """A field type that no string can become is the plugin's mistake."""
    with pytest.raises(PluginError, match="bits has type"):
        check_spec(make("quantizer", "", options="bits: complex = 4j"))


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"value": "random.random()"}, "m was .* first and .* the second time"),
        ({"documents": "[str(random.random())]"}, "different results or samples"),
        ({"documents": "'aa'"}, "a sample is given twice"),
        ({"times": 2}, "a number is given twice"),
        ({"details": "{'module': subject}"}, "details is .*\nIt must be JSON"),
        ({"value": "'many'"}, "value is 'many' .str.\nIt must be a number"),
    ],
)
def test_an_evaluator_that_does_not_conform_is_found(make, fields, complaint, tmp_path):
    """Numbers that change, samples that do not pair, and values that cannot be stored are reported."""
    with pytest.raises(PluginError, match=complaint):
        check_evaluator(_evaluator(make, **fields), "mine", object(), tmp_path / "files")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("torch.set_default_dtype(torch.float64)", "mine changed torch's default dtype"),
        ("subject.module.lm_head.weight.data.mul_(2)", "mine changed the weights of model.embed_tokens, lm_head"),
    ],
)
def test_an_evaluator_that_changes_what_is_not_its_own_is_found(make, tiny_model, tmp_path, line, complaint):
    """Whoever comes after it would measure something else."""
    subject = lq.load(str(tiny_model), "fp32_baseline", device="cpu")
    body = f"    def evaluate(self, subject, ctx):\n        {line}\n"
    spec = make("evaluator", body + '        yield Result("t", [Measurement("t", "m", 1.0)])\n')
    with pytest.raises(PluginError, match=complaint):
        check_evaluator(spec, "mine", subject, tmp_path / "files")


def test_hardware_numbers_may_change(make, tmp_path):
    """An evaluator that says its numbers depend on the machine need not repeat them."""
    spec = _evaluator(make, value="random.random()", hardware=True)
    assert len(check_evaluator(spec, "mine", object(), tmp_path / "files")) == 1


def test_an_evaluator_that_yields_nothing_is_found(make, tmp_path):
    """No result is no measurement."""
    spec = make("evaluator", "    def evaluate(self, subject, ctx):\n        return []\n")
    with pytest.raises(PluginError, match="yielded no result"):
        check_evaluator(spec, "mine", object(), tmp_path / "files")


@pytest.mark.parametrize(
    ("prepare", "applied", "complaint"),
    [
        ("(model / 'extra').touch()", "pass", "changed the original checkpoint"),
        ("pass", "module.lm_head.weight.data.fill_(float('nan'))", "not finite"),
    ],
)
def test_a_quantizer_that_does_not_conform_is_found(make, tiny_model, tmp_path, prepare, applied, complaint):
    """A quantizer that writes into the model it was given, or breaks it, is reported."""
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    spec = make("quantizer", _QUANTIZER.format(prepare=prepare, applied=applied))
    with pytest.raises(PluginError, match=complaint):
        check_quantizer(spec, "mine", model, tmp_path / "files")


def test_our_own_embedders_conform(tmp_path):
    """Embedders of one vector, of several, and without weights pass the check that plugin packages use."""
    specs = {spec.name: spec for spec in EMBEDDERS}
    model = save_tiny_sentence_transformer(tmp_path / "tiny")
    gemma = write_gemma3(tmp_path / "gemma", late=True)
    calls = {"sentence_transformers": f"({model})", "colgemma3": f"({gemma})", "random": ""}
    for number, (name, options) in enumerate(calls.items()):
        loaded = check_embedder(specs[name], name + options, tmp_path / str(number))
        assert loaded.applied.code == ("none" if name == "random" else "bfloat16")


def test_an_embedder_whose_padding_shows_is_found(tmp_path, monkeypatch):
    """A text whose vectors depend on what else is in its batch is no way to compare anything."""
    spec = next(spec for spec in EMBEDDERS if spec.name == "random")
    own = OpenChance.embed

    def padded(self, batch, role):
        return [np.roll(vector, len(batch) - 1) for vector in own(self, batch, role)]

    monkeypatch.setattr(OpenChance, "embed", padded)
    with pytest.raises(PluginError, match="has other vectors in a batch"):
        check_embedder(spec, "random", tmp_path)


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ("range(total)", "a slice has the documents"),
        ("sorted(ctx.documents.slice.places(total, ctx.seed)) if ctx.documents.slice else range(total)", None),
    ],
)
def test_an_evaluator_of_slices_must_score_them(make, tmp_path, documents, complaint):
    """And no other documents, in their order."""
    evaluate = f"""
    def evaluate(self, subject, ctx):
        total = 9
        samples = [Sample(str(place), "", {{"m": 1.0}}) for place in ({documents})]
        details = {{"documents_total": total}}
        yield Result.from_samples("t", samples, "m", higher_is_better=True, details=details)
"""
    options = 'bits: int = 4\n    def whole(self):\n        return ""\n'
    spec = make("evaluator", evaluate, options=options, documents=True)
    if complaint is None:
        assert len(check_evaluator(spec, "mine", object(), tmp_path / "files")) == 1
        return
    with pytest.raises(PluginError, match=complaint):
        check_evaluator(spec, "mine", object(), tmp_path / "files")
