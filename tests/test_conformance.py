"""The checks for plugin packages let good plugins pass, and name what is wrong with the others."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

import meddling
from llmquant.errors import PluginError
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.testing import CHECKS, checks, traces
from llmquant.testing.trial import NotApplicable, Trial

_NUMBERS = count()

_HEAD = """
import random
import numpy as np
import torch
from llmquant import AppliedQuantization, Measurement, Result, Sample
from llmquant.loading.memory import stored_elements

class Heavy:
    def __init__(self, options):
        self.options = options
"""

_EVALUATE = """
    def evaluate(self, subject, ctx):
        {first}
        yield Result("t", [Measurement("t", "m", {value})], [Sample(d, d, {{}}) for d in {samples}], {details})
"""

_QUANTIZER = """
    def prepare(self, model, out, ctx):
        {prepare}
        return model

    def load_kwargs(self, model, ctx):
        {load}
        return {{"dtype": torch.float32}}

    def applied(self, module):
        {applied}
        return AppliedQuantization("none", "float32", 32.0, "float32", stored_elements(module), 0)
"""


_AFTER_LOADING = _QUANTIZER.format(prepare="", load="", applied="") + "    def after_loading(self): ..."
_PREDICTS = """bits: int = 4
    def weight_bytes(self, model, device): return {}
"""


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Return a function that writes a plugin's two halves as modules and returns its spec."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before, made = list(registry().plugins), []

    def make(kind, heavy, *, options="bits: int = 4", light="", frozen=True, **fields):
        name = f"conformance_{next(_NUMBERS)}"
        decorator = f"@dataclass(frozen={frozen})" if frozen is not None else ""
        light = f"{light}\nfrom dataclasses import dataclass\n\n{decorator}\nclass Options:\n    {options}\n"
        (tmp_path / f"{name}_options.py").write_text(light)
        (tmp_path / f"{name}.py").write_text(_HEAD + heavy)
        importlib.invalidate_caches()
        made.extend((name, f"{name}_options"))
        values = {"options": f"{name}_options:Options", "target": f"{name}:Heavy", **fields}
        return PluginSpec(kind=kind, name="mine", summary="Mine.", **values)

    yield make
    registry().plugins = before
    for name in made:
        sys.modules.pop(name, None)


def failures(spec: PluginSpec, *names: str, model: Path | None = None, call: str = "", refused=()) -> dict[str, str]:
    """Run some checks, or all, and return the messages of those that fail."""
    trial, found = Trial(spec, call, model=model, refused=refused), {}
    try:
        for check in CHECKS[spec.kind]:
            if not names or check.name in names:
                try:
                    check.run(trial)
                except NotApplicable:
                    pass
                except PluginError as error:
                    found[check.name] = str(error)
    finally:
        trial.close()
    return found


def _evaluator(make, *, first="pass", value="1.0", samples="'ab'", details="{}", rest="", **fields):
    heavy = _EVALUATE.format(first=first, value=value, samples=samples, details=details)
    return make("evaluator", heavy + rest, **fields)


def _quantizer(make, *, prepare="pass", load="pass", applied="pass", **fields):
    return make("quantizer", _QUANTIZER.format(prepare=prepare, load=load, applied=applied), **fields)


# -- specs and options -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "check", "complaint"),
    [
        ({"target": "no_such_module:Heavy"}, "spec_is_complete", "no_such_module"),
        ({"target": "meddling:Meddler"}, "spec_is_complete", "defines no 'Meddler'"),
        ({"accepts": ("causal",)}, "spec_is_complete", "accepts is"),
        ({"light": "import torch"}, "listing_is_light", "imports torch"),
        ({"light": "1 / 0"}, "listing_is_light", "ZeroDivisionError"),
        ({"frozen": None}, "options_are_frozen", "is not a dataclass"),
        ({"frozen": False}, "options_are_frozen", "is not frozen"),
        ({"options": "bits: int = '4'"}, "options_are_frozen", "the default of bits must be a whole number"),
        ({"options": "bits: int = None"}, "options_are_frozen", "the default of bits must be a whole number"),
        ({"options": "names: list[str] = ()"}, "options_are_frozen", "names has type list"),
        ({"options": "bits: complex = 4j"}, "options_are_frozen", "bits has type"),
        ({"options": "bits: int = 4\n    def request(self): ...\n"}, "options_are_frozen", "a method 'request'"),
        ({"presets": {"mine_3bit": {"bitz": 3}}}, "presets_build", "has no option 'bitz'"),
        ({"requires": ("no-such-package",)}, "packages_are_installed", "no-such-package"),
    ],
)
def test_a_broken_spec_is_one_failure_and_what_depends_on_it_is_skipped(make, changes, check, complaint):
    """The message names the plugin and the field, and how to fix it."""
    names = [each.name for each in CHECKS["evaluator"][:7]]
    found = failures(_evaluator(make, **changes), *names)
    assert list(found) == [check]
    assert complaint in found[check]
    assert "evaluator 'mine'" in found[check]


def test_a_call_that_must_be_refused_is_checked(make, tiny_model):
    """An accepted one is a failure, by its call."""
    light = "from llmquant.errors import OptionError"
    body = "bits: int = 4\n    def __post_init__(self):\n        if self.bits > 8: raise OptionError('too many')\n"
    spec = _evaluator(make, options=body, light=light)
    found = failures(spec, "wrong_calls_are_refused", model=tiny_model, refused=["mine(bits=9)"])
    assert found == {}
    found = failures(spec, "wrong_calls_are_refused", model=tiny_model, refused=["mine(bits=9)", "mine(bits=7)"])
    assert "mine(bits=7) was not refused" in found["wrong_calls_are_refused"]


@pytest.mark.parametrize(
    ("kind", "heavy", "complaint"),
    [
        ("evaluator", "", "has no method evaluate"),
        ("quantizer", "    def load_kwargs(self, model, ctx): ...", "has no method applied"),
        ("quantizer", _AFTER_LOADING, "after_load"),
        ("embedder", "", "has no method open"),
        ("executor", "", "has no method check and no method submit"),
    ],
)
def test_a_class_without_the_methods_of_its_contract_is_found(make, without_functions, kind, heavy, complaint):
    """So is a method with almost the right name."""
    light = "from llmquant import EmbedderOptions"
    options = "checkpoint: str = ''\n    def info(self, model): ...\n" if kind == "embedder" else "bits: int = 4"
    found = failures(make(kind, heavy, options=options, light=light), "methods_are_known")
    assert complaint in found["methods_are_known"]


def test_the_embedder_of_the_checks_has_widths_that_groups_divide(make):
    """A quantizer that refuses widths which its groups of 128 do not divide is checked with an embedder as well."""
    widths = "[t.shape[1] for t in model.tensors if 'dense' in t.name and len(t.shape) == 2]"
    check = f"def check(self, model, device):\n        assert not any(width % 128 for width in {widths})"
    spec = _quantizer(make, options=f"bits: int = 4\n    {check}", accepts=("causal_lm", "embedder"))
    assert not failures(spec, "embedders_are_quantized")


# -- evaluators --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "check", "complaint"),
    [
        ({"value": "random.random()"}, None, ""),  # the worker seeds the generators
        (
            {"value": "random.SystemRandom().random()"},
            "a_seed_repeats_results",
            "m was .* first and .* the second time",
        ),
        ({"samples": "[str(id(ctx))]"}, "a_seed_repeats_results", "other results or samples"),
        ({"value": "random.SystemRandom().random()", "hardware": True}, None, ""),
        ({"samples": "'aa'"}, "results_are_valid", "task 't'.*: a sample is given twice"),
        ({"details": "{'module': subject}"}, "results_are_valid", "task 't'.*: details is "),
        ({"value": "'many'"}, "results_are_valid", "value is 'many' .str."),
        ({"value": "torch.ones(1)"}, "results_are_valid", "value is .*Tensor"),
        ({"value": "np.float32(1.5)"}, None, ""),
        ({"first": "return None"}, "results_are_valid", "yielded no result"),
        ({"first": "yield None"}, "results_are_valid", "yielded None"),
        ({"first": "raise KeyError('odd')"}, "results_are_valid", "KeyError: 'odd'"),
        ({"first": "(ctx.files / str(id(ctx))).touch()"}, "files_are_its_own", "the first time"),
        (
            {"first": "globals()['kept'] = (ctx.files / 'a').open('w')"},
            "files_are_its_own",
            "left open, and perhaps incomplete: a",
        ),
        ({"samples": "'abc'", "documents": True}, "the_limit_is_kept", "3 samples with a limit of 2"),
        ({"reference": True}, "the_reference_is_used", "left no reference.safetensors"),
    ],
)
def test_an_evaluator_that_does_not_conform_is_found(make, tiny_model, without_functions, changes, check, complaint):
    """Numbers that change, samples that do not pair, and values that cannot be stored are reported."""
    names = ["results_are_valid", check] if check else [each.name for each in CHECKS["evaluator"]]
    found = failures(_evaluator(make, **changes), *names, model=tiny_model)
    assert list(found) == ([check] if check else [])
    assert check is None or re.search(complaint, found[check])


CORRUPTING = {
    "weights": "the weights of model.layers.0.mlp.up_proj",
    "half": "the weights of model.embed_tokens",
    "training": "the hooks or settings of the model",
    "hook": "the hooks or settings of lm_head",
    "config": "the config of the model",
    "padding": "fields of the tokenizer",
    "dtype": "torch's default dtype",
    "threads": "torch's number of threads",
    "grad": "torch's grad mode",
    "deterministic": "torch's deterministic mode",
    "folder": "the working folder",
    "env": "the environment",
    "thread": "the thread 'left behind', left running",
    "child": "the process 'sleep', left running",
    "memory": "the memory of the process, which grew by",
}


@pytest.mark.parametrize("what", CORRUPTING)
def test_an_evaluator_that_leaves_a_trace_is_found(tiny_model, without_functions, monkeypatch, what):
    """The message names what was changed; the check is the worker's own comparison."""
    monkeypatch.setattr(traces, "_changed_by_import", lambda trial: [])  # it takes a process, and is tried elsewhere
    before = list(registry().plugins)
    found = failures(
        meddling.MEDDLE, "results_are_valid", "nothing_is_left_behind", model=tiny_model, call=f"meddle({what})"
    )
    registry().plugins = before
    meddling.KEPT.clear()
    assert list(found) == ["nothing_is_left_behind"]
    assert CORRUPTING[what] in found["nothing_is_left_behind"]


def test_an_evaluator_that_replaces_a_function_is_found(make, tiny_model):
    """When it is imported, and when it evaluates."""
    patch = "torch.nn.functional.{0} = (lambda own: lambda *a, **k: own(*a, **k))(torch.nn.functional.{0})"
    spec = _evaluator(make, first=patch.format("silu"), rest="\n" + patch.format("gelu") + "\n")
    names = ("methods_are_known", "results_are_valid", "nothing_is_left_behind")
    text = failures(spec, *names, model=tiny_model)["nothing_is_left_behind"]
    assert "the function torch.nn.functional.gelu" in text
    assert "the function torch.nn.functional.silu" in text


@pytest.mark.parametrize(
    ("documents", "complaint"),
    [
        ("range(total)", "a slice has the documents"),
        ("sorted(ctx.documents.slice.places(total, ctx.seed)) if ctx.documents.slice else range(total)", None),
    ],
)
def test_an_evaluator_of_slices_must_score_them(make, tiny_model, without_functions, documents, complaint):
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
    found = failures(spec, "results_are_valid", "slices_are_scored", model=tiny_model)
    assert list(found) == ([] if complaint is None else ["slices_are_scored"])
    assert complaint is None or complaint in found["slices_are_scored"]


# -- quantizers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "check", "complaint"),
    [
        ({}, None, ""),
        (
            {"prepare": "(model / f'extra{len(list(model.iterdir()))}').touch()"},
            "original_is_unchanged",
            "changed extra",
        ),
        ({"prepare": "return None"}, "loads_as_applied", "prepare returned None"),
        ({"load": "return None"}, "loads_as_applied", "load_kwargs returned None"),
        ({"load": "raise KeyError('odd')"}, "loads_as_applied", "KeyError: 'odd'"),
        ({"applied": "return None"}, "loads_as_applied", "returned NoneType"),
        ({"applied": "module.lm_head.weight.data.fill_(float('nan'))"}, "text_is_generated", "not finite"),
        ({"applied": "module.lm_head.weight.data.normal_()"}, None, ""),  # the worker seeds the generators
        (
            {"applied": "module.lm_head.weight.data.mul_(1 + random.SystemRandom().random())"},
            "loading_repeats",
            "the logits moved by",
        ),
        ({"load": "torch.set_default_dtype(torch.float64)"}, "nothing_is_left_behind", "torch's default dtype"),
        ({"load": "torch.set_num_threads(2)"}, "nothing_is_left_behind", "torch's number of threads"),
        ({"options": _PREDICTS.format("100000")}, "size_is_predicted", "predicts 100000"),
        ({"options": _PREDICTS.format("'1'")}, "size_is_predicted", "returned '1' .str"),
        ({"load": "assert model.config['hidden_size'] == 64"}, "other_widths_are_refused_early", "does not load"),
    ],
)
def test_a_quantizer_that_does_not_conform_is_found(
    make, tiny_model, tmp_path, without_functions, changes, check, complaint
):
    """The failing check has the reason; a good quantizer passes all checks."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    names = ["loads_as_applied", check] if check else [each.name for each in CHECKS["quantizer"]]
    found = failures(_quantizer(make, **changes), *names, model=model)
    assert list(found) == ([check] if check else [])
    assert check is None or re.search(complaint, found[check])


# -- pytest ------------------------------------------------------------------------------------------------------------


def test_each_check_is_a_line_and_expected_failures_are_strict(pytester_run):
    """A check that fails as expected is xfailed, one that passes unexpectedly fails, and a wrong name is refused."""
    lines = pytester_run('{"listing_is_light": "torch is needed", "presets_build": "none"}')
    assert "test_mine[spec_is_complete] PASSED" in lines
    assert "test_mine[listing_is_light] XFAIL" in lines
    assert "test_mine[presets_build] FAILED" in lines
    with pytest.raises(PluginError, match="no check is called 'presets_built'\nDid you mean 'presets_build'"):
        checks(meddling.MEDDLE, expected_failures={"presets_built": "none"})


@pytest.fixture
def pytester_run(make, tmp_path):
    """Return a function that runs pytest on a file with the checks of one evaluator, and returns its lines."""

    def run(expected: str) -> str:
        spec = _evaluator(make, light="import torch", presets={"mine_4bit": {"bits": 4}})
        (tmp_path / "test_it.py").write_text(
            "from llmquant import PluginSpec\nfrom llmquant.testing import checks\n"
            f"test_mine = checks({spec!r}, expected_failures={expected})\n"
        )
        names = "spec_is_complete or listing_is_light or presets_build"
        file = str(tmp_path / "test_it.py")
        command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-k", names, file]
        environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path)
        return done.stdout

    return run


def test_the_page_of_checks_is_the_docstrings():
    """``python -m llmquant.testing.table > docs/plugin-checks.md`` renews it."""
    from llmquant.testing.table import page

    shown = Path(__file__).parents[1].joinpath("docs", "plugin-checks.md").read_text()
    assert shown.splitlines() == list(page())
