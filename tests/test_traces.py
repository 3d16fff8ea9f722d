"""What quantizers and embedders leave changed is named by the checks of plugin packages and by the worker."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import leaving
import llmquant as lq
from llmquant.errors import LlmquantError
from llmquant.plugins.registry import registry
from llmquant.testing.suite import CHECKS
from llmquant.testing.trial import NotApplicable, Trial
from misbehaving_studies import Here, misbehaving

__all__ = ["misbehaving"]  # a fixture

NAMED = {
    "dtype": "torch's default dtype",
    "threads": "torch's number of threads",
    "grad": "torch's grad mode",
    "deterministic": "torch's deterministic mode",
    "global_hook": "torch's hooks of all modules (_global_forward_hooks)",
    "env": "the environment",
    "folder": "the working folder",
    "path": "sys.path",
    "signal": "signal handlers",
    "child": "the process 'sleep', left running",
    "thread": "the thread 'left behind', left running",
    "memory": "the memory of the process, which grew by",
}
FOUR = [list(NAMED)[start : start + 4] for start in range(0, len(NAMED), 4)]
SPECS = {spec.kind: spec for spec in (leaving.QUANTIZER, leaving.EMBEDDER)}
LOADS = {"quantizer": "loads_as_applied", "embedder": "opens_as_declared"}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """End what was left running, and forget what was kept and registered."""
    before = list(registry().plugins)
    yield
    registry().plugins = before
    for kept in leaving.KEPT:
        if hasattr(kept, "kill"):
            kept.kill()
            kept.wait()
    leaving.KEPT.clear()


def _found(spec: lq.PluginSpec, call: str, model: Path | None) -> str:
    """Load in the checks, and return what the check of traces says; empty if it passes."""
    trial, (load, left) = Trial(spec, call, model=model), (LOADS[spec.kind], "nothing_is_left_behind")
    checks = {check.name: check for check in CHECKS[spec.kind]}
    try:
        checks[load].run(trial)
        trial.done.pop("imported before")  # tried below
        checks[left].run(trial)
    except NotApplicable as error:
        raise AssertionError("nothing was compared") from error
    except LlmquantError as error:
        return str(error)
    finally:
        trial.close()
    return ""


@pytest.mark.parametrize("kind", SPECS)
def test_the_checks_name_every_trace(kind: str, tiny_model: Path, without_functions: None):
    """Four at a time are what the check names, and nothing else; what leaves nothing passes."""
    model = tiny_model if kind == "quantizer" else None
    name = SPECS[kind].name
    assert _found(SPECS[kind], name, model) == ""
    for names in FOUR:
        text = _found(SPECS[kind], f"{name}(what={'+'.join(names)})", model)
        assert "more" not in text
        assert [what for what, words in NAMED.items() if words in text] == list(names)


@pytest.mark.parametrize("kind", SPECS)
def test_a_worker_names_every_trace(kind: str, tiny_model: Path, tmp_path: Path, without_functions: None):
    """They are in the provenance of its runs, and a later variant has none."""
    lq.register(SPECS[kind])
    calls = [f"{SPECS[kind].name}(what={what})" for what in ("+".join(NAMED), "nothing")]
    models, quantizers = (str(tiny_model), calls) if kind == "quantizer" else (calls, ["bf16_baseline"])
    evaluator = "meddle" if kind == "quantizer" else "indexing(documents=2)"
    options = {"executor": Here(), "store": tmp_path / "store", "progress": False}
    runs = lq.compare(models, quantizers, [evaluator], **options).runs.values()
    changed = {}
    for run in runs:
        variant = run.experiment.variant
        use = variant.quantizer if kind == "quantizer" else variant.model.embedder
        changed[use.options.get("what")] = run.provenance.get("changed_while_loading"), run.failure
    found, failure = changed["+".join(NAMED)]
    assert failure is None
    assert sorted(re.sub(r" \d.*", "", text) for text in found) == sorted(NAMED.values())
    assert changed["nothing"] == ([], None)


@pytest.mark.parametrize("kind", SPECS)
def test_a_function_that_loading_replaces_is_named(kind: str, tiny_model: Path):
    """By the checks, which compare functions as the worker does."""
    own = torch.nn.functional.silu
    text = _found(SPECS[kind], f"{SPECS[kind].name}(what=patch)", tiny_model if kind == "quantizer" else None)
    torch.nn.functional.silu = own
    assert "it changed the function torch.nn.functional.silu\n" in text


def test_a_worker_names_a_function_that_an_embedder_replaces(tmp_path: Path):
    """It is in the provenance of the embedder's run."""
    lq.register(leaving.EMBEDDER)
    own = torch.nn.functional.silu
    options = {"executor": Here(), "store": tmp_path, "progress": False}
    model = f"{leaving.EMBEDDER.name}(what=patch)"
    (run,) = lq.compare(model, ["bf16_baseline"], ["indexing(documents=2)"], **options).runs.values()
    torch.nn.functional.silu = own
    assert run.provenance["changed_while_loading"] == ["the function torch.nn.functional.silu"]


def test_what_an_import_changes_is_found_although_the_module_was_imported(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_functions: None
):
    """A new process imports the module again, and compares settings and functions."""
    source = Path(leaving.__file__).read_text()
    patch = "\nimport torch\ntorch.set_num_threads(3)\nown = torch.nn.functional.gelu\n"
    (tmp_path / "patching.py").write_text(f"{source}{patch}torch.nn.functional.gelu = lambda *a, **k: own(*a, **k)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    threads, own = torch.get_num_threads(), torch.nn.functional.gelu
    importlib.import_module("patching")
    torch.set_num_threads(threads)
    torch.nn.functional.gelu = own
    spec = lq.PluginSpec("quantizer", "patching", "Patches.", "leaving:QuantizerOptions", "patching:Quantizer")
    trial = Trial(spec, model=tiny_model)
    checks = {check.name: check for check in CHECKS["quantizer"]}
    try:
        checks["loads_as_applied"].run(trial)
        with pytest.raises(LlmquantError) as raised:
            checks["nothing_is_left_behind"].run(trial)
    finally:
        trial.close()
        sys.modules.pop("patching")
    named = "torch's number of threads and the function torch.nn.functional.gelu"
    assert re.search(f"nothing_is_left_behind: it changed {named}\n", str(raised.value))


def test_a_worker_names_what_an_import_changes(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A function that the module of a quantizer replaces is in the provenance, although loading changes nothing."""
    patch = "\nimport torch\nown = torch.nn.functional.gelu\ntorch.nn.functional.gelu = lambda *a, **k: own(*a, **k)\n"
    (tmp_path / "patches.py").write_text(Path(leaving.__file__).read_text() + patch)
    (tmp_path / "text.txt").write_text("The river was low in summer. " * 20)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = torch.nn.functional.gelu
    lq.register(lq.PluginSpec("quantizer", "patches", "Patches.", "leaving:QuantizerOptions", "patches:Quantizer"))
    text = f"perplexity({tmp_path / 'text.txt'}, window=64)"
    options = {"executor": Here(), "store": tmp_path / "store", "progress": False}
    found = lq.compare(str(tiny_model), ["patches"], [text], **options).runs.values()
    torch.nn.functional.gelu = own
    changed = {run.experiment.variant.quantizer.label: run.provenance["changed_while_loading"] for run in found}
    assert changed["patches"] == ["the function torch.nn.functional.gelu"]
    sys.modules.pop("patches")
