"""A plugin with a broken class costs its own runs, with one clear message each, and nothing else."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

import llmquant as lq
from meddling import KEPT
from misbehaving_studies import Here, by_evaluator, compare, misbehaving

__all__ = ["misbehaving"]  # a fixture

_MODULE = """
from dataclasses import dataclass
import numpy as np
import torch
from llmquant import AppliedQuantization, Measurement, Result

@dataclass(frozen=True)
class Options:
    how: str = ""

class WithoutEvaluate:
    def __init__(self, options): ...

class Evaluates:
    def __init__(self, options):
        self.how = options.how

    def evaluate(self, subject, ctx):
        if self.how == "none":
            return None
        if self.how == "empty":
            return []
        value = torch.ones(1) if self.how == "tensor" else np.float32(2)
        return [Result("t", [Measurement("t", "m", value)])]

class Quantizes:
    def __init__(self, options):
        self.how = options.how

    def prepare(self, model, out, ctx):
        return None if self.how == "prepare" else model

    def load_kwargs(self, model, ctx):
        return None if self.how == "load_kwargs" else {}

    def applied(self, module):
        return None
"""


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, misbehaving: None, without_functions: None):
    """Register a quantizer and two evaluators whose classes are broken."""
    (tmp_path / "broken_classes.py").write_text(_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    kinds = {"lacks": ("evaluator", "WithoutEvaluate"), "gives": ("evaluator", "Evaluates")}
    for name, (kind, cls) in {**kinds, "badly": ("quantizer", "Quantizes")}.items():
        lq.register(lq.PluginSpec(kind, name, "Is broken.", "broken_classes:Options", f"broken_classes:{cls}"))
    yield
    sys.modules.pop("broken_classes", None)


def test_a_broken_evaluator_fails_by_its_name(tiny_model: Path, tmp_path: Path, broken: None):
    """Without `evaluate`, with nothing to yield, and with a tensor; numpy's numbers are taken, and others complete."""
    words = {
        "lacks": "registered/lacks: broken_classes:WithoutEvaluate has no method evaluate",
        "gives(none)": "registered/gives: evaluate returned None",
        "gives(empty)": "registered/gives yielded no result",
        "gives(tensor)": "registered/gives, task 't' (str), metric 'm' (str): value is tensor(",
    }
    runs = by_evaluator(compare(tiny_model, tmp_path, *words, "gives(numpy)", executor=Here()))
    for label, beginning in words.items():
        assert runs[label].status == "failed"
        assert runs[label].failure.message.startswith(beginning)
    assert [m.value for m in runs["gives(numpy)"].measurements] == [2.0]


def test_a_broken_quantizer_fails_by_its_name(tiny_model: Path, tmp_path: Path, broken: None):
    """What its methods returned is in the message, and the baseline completes."""
    words = {
        "badly(prepare)": "registered/badly: prepare returned None",
        "badly(load_kwargs)": "broken_classes:Quantizes: load_kwargs returned None",
        "badly(applied)": "broken_classes:Quantizes: applied() returned NoneType",
    }
    found = lq.compare(
        str(tiny_model),
        ["fp32_baseline", *words],
        ["gives(numpy)"],
        executor=Here(),
        store=tmp_path / "store",
        progress=False,
    )
    runs = {run.experiment.variant.quantizer.label: run for run in found.runs.values()}
    assert runs["fp32_baseline"].status == "completed"
    for label, beginning in words.items():
        assert runs[label].failure.message.startswith(beginning)


def test_a_worker_notices_every_trace(tiny_model: Path, tmp_path: Path, broken: None):
    """What can be restored is listed, damage fails the run, and the next evaluator measures what the first one did."""
    listed = ["dtype", "training", "hook", "config", "padding", "threads", "grad", "deterministic", "folder", "env"]
    listed, damaged = [*listed, "memory"], ["weights", "vocabulary"]
    runs = by_evaluator(
        compare(tiny_model, tmp_path, *(f"meddle({what})" for what in (*listed, *damaged)), "meddle", executor=Here())
    )
    KEPT.clear()
    for what in listed:
        assert runs[f"meddle({what})"].status == "completed"
        assert runs[f"meddle({what})"].provenance["changed_by_evaluator"], what
    for what in damaged:
        assert runs[f"meddle({what})"].failure.message.startswith("evaluator 'meddle' of package registered changed")
    assert runs["meddle"].measurements == runs["meddle(dtype)"].measurements
