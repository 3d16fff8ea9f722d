"""A value of the wrong kind is refused by name when a study is planned, with what to give instead."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import llmquant as lq
from llmquant.cli.options import executor_of


def compare(quantizer: str = "bnb_8bit", **more: Any) -> Callable[[str], object]:  # Any: wrong on purpose
    return lambda model: lq.compare(model, quantizer, "memory", **more)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (compare(executor=3), 'executor is 3\nGive a name such as "local"'),
        (compare(store=None), "store is None, not a path"),
        (compare(timeout_s="1h"), "timeout_s must be a finite number, found '1h'"),
        (compare(margin={"f1": 2}), 'Write margin="f1=2"'),
        (compare("nf4"), "Did you mean 'bnb_4bit_nf4'"),
        (compare(executor="local(device=gpu)"), "Use auto, cpu, cuda, mps"),
        (compare("gptq(group_size=32, calibration=./a.txt)"), "there is no file './a.txt'"),
        (compare("gptq(group_size=32, calibration=a.txt)"), "there is no file 'a.txt'"),
        (
            lambda model: lq.quantize(model, "bnb_8bit", "out.gguf"),
            "writes a folder, and out.gguf is the name",
        ),
        (lambda model: lq.evaluate(model, "memory"), "is not a loaded model\nGive what lq.load"),
    ],
)
def test_a_wrong_value_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: Callable[[str], object], said: str
):
    """No error of Python's own is raised, and nothing is loaded."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(lq.errors.RequestError, match=re.escape(said)):
        call(str(tiny_model))
    assert not (tmp_path / "out.gguf").exists()


def test_a_misspelled_embedder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its name may also be a name on the Hub, where it is not found."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(lq.errors.ModelError, match="Did you mean 'bigemma3'"):
        lq.compare("bigema3", "bnb_8bit", "memory", store=tmp_path)


@pytest.mark.parametrize("given", [{"gpu": "A100"}, {"budget": 5.0}, {"yes": True}])
def test_options_of_rented_machines_are_refused_on_this_one(given: dict[str, Any]):
    """The option is named as on the command line; elsewhere it becomes the executor's."""
    options = {"gpu": None, "budget": None, "yes": False, **given}
    with pytest.raises(lq.errors.OptionError, match=f"--{next(iter(given))} is for executors that run elsewhere"):
        executor_of("local(threads=2)", **options)
    assert next(iter(given)) in executor_of("modal", **options)
