"""What an evaluator leaves changed is put back, or named, before anything else is measured."""

from __future__ import annotations

import gc
import logging
import random
import re
import warnings

import numpy as np
import pytest
import torch

import llmquant as lq
from llmquant.running import guard
from llmquant.running.guard import Change, Snapshot
from meddling import KEPT, MEDDLING

RESTORED = {
    "dtype": "torch's default dtype",
    "threads": "torch's number of threads",
    "grad": "torch's grad mode",
    "deterministic": "torch's deterministic mode",
    "precision": "torch's matmul precision",
    "env": "the environment",
    "folder": "the working folder",
    "path": "sys.path",
    "signal": "signal handlers",
    "global_hook": "torch's hooks of all modules (_global_forward_hooks)",
    "hook": "the hooks or settings of lm_head",
    "training": "the hooks or settings of the model",
    "epsilon": "the hooks or settings of model.norm",
    "config": "the config of the model",
    "generation": "the generation_config of the model",
    "padding": "fields of the tokenizer",
}
DAMAGED = {
    "vocabulary": "what the tokenizer makes of a text",
    "weights": "the weights of model.layers.0.mlp.up_proj",
    "rows": "the weights of model.layers.1.self_attn.q_proj",
    "new_weight": "the weights of model.norm",
    "new_layer": "the weights of layers that were added, removed or replaced",
    "buffer": "the weights of model.rotary_emb",
}


@pytest.fixture
def subject(tiny_model):
    return lq.load(str(tiny_model), "fp32_baseline", device="cpu")


@pytest.fixture
def without_functions(monkeypatch):
    """Listing functions takes most of a snapshot's time, and is tried by itself."""
    monkeypatch.setattr(guard, "functions", dict)
    monkeypatch.setattr(guard, "put_back", lambda before, *, keep: [])


def test_what_can_be_put_back_is_put_back_and_named(subject, without_functions):
    """Modes, environment, hooks, configuration and tokenizer are as they were, whatever was changed together."""
    before = Snapshot.take(subject)
    ids = torch.arange(3, 20)[None]
    logits = subject.module(ids).logits
    for what in (*RESTORED, "forward", "template", "special"):
        MEDDLING[what](subject)
    changes = before.undo()
    assert {change.now for change in changes} == {"restored"}
    assert {change.what for change in changes} >= set(RESTORED.values())
    assert before.undo() == []
    assert torch.equal(subject.module(ids).logits, logits)


@pytest.mark.parametrize("what", DAMAGED)
def test_what_cannot_be_put_back_is_named(subject, without_functions, what):
    """Weights in whatever way they were changed, layers, and what a tokenizer does."""
    before = Snapshot.take(subject)
    MEDDLING[what](subject)
    assert Change(DAMAGED[what], "damaged") in before.undo()


def test_many_changed_layers_are_counted(subject, without_functions):
    """The first ones are named."""
    before = Snapshot.take(subject)
    MEDDLING["half"](subject)
    (change,) = before.undo()
    assert change.now == "damaged"
    assert re.fullmatch(
        r"the weights of model.embed_tokens, (model\.layers\.0\.\w+\.\w+(, )?){2} and \d+ more", change.what
    )


def test_a_mode_that_has_no_switch_is_named(subject, without_functions):
    """Inference mode that was entered and not left cannot be left from outside."""
    before = Snapshot.take(subject)
    mode = torch.inference_mode()
    mode.__enter__()
    changes = before.undo()
    mode.__exit__(None, None, None)
    assert Change("torch's inference mode", "damaged") in changes


def test_replaced_functions_are_put_back_and_ask_for_a_new_process(subject):
    """Also one that hides its base class's; a package that replaces functions as it is imported does so once."""
    before = Snapshot.take(subject)
    own = torch.nn.functional.silu
    MEDDLING["patch"](subject)
    MEDDLING["patch_class"](subject)
    assert before.undo() == [
        Change("the function torch.nn.functional.silu, torch.nn.modules.linear.Linear.__call__", "renew")
    ]
    assert torch.nn.functional.silu is own
    assert "__call__" not in vars(torch.nn.Linear)
    assert before.undo() == []


def test_a_class_that_an_import_registers_is_no_change():
    """PyTorch keeps the last registered class in a table, under a name for all that have none."""
    before = Snapshot.take(None)
    torch.utils._pytree.register_pytree_node(type("Output", (), {}), lambda value: ([], None), lambda *_: None)
    assert before.undo() == []


def test_processes_are_ended_and_threads_are_named(subject, without_functions):
    """Neither computes beside what is measured next."""
    before = Snapshot.take(subject)
    MEDDLING["child"](subject)
    MEDDLING["thread"](subject)
    assert set(before.undo()) == {
        Change("the process 'sleep', left running", "restored"),
        Change("the thread 'left behind', left running", "renew"),
    }


def test_memory_that_is_kept_is_named(subject, without_functions):
    """300 MB would be counted for whatever is measured next."""
    before = Snapshot.take(subject)
    MEDDLING["memory"](subject)
    (change,) = before.undo()
    KEPT.clear()
    assert change.now == "renew"
    assert re.fullmatch(r"the memory of the process, which grew by 2\d\d MiB", change.what)


def test_the_random_state_is_put_back_silently(subject, without_functions):
    """Every experiment is seeded, and using random numbers is no fault."""
    before = Snapshot.take(subject)
    first = random.random(), np.random.rand(), torch.rand(1).item()
    assert before.undo() == []
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == first


def test_what_loading_changes_is_named_and_functions_stay(subject):
    """A quantizer may work by a function that it replaced; settings are put back."""
    own = torch.nn.functional.silu
    before = Snapshot.take(None)
    MEDDLING["patch"](subject)
    MEDDLING["dtype"](subject)
    changes = {change.what for change in before.undo(loading=True)}
    patched, torch.nn.functional.silu = torch.nn.functional.silu, own
    assert changes == {"torch's default dtype", "the function torch.nn.functional.silu"}
    assert patched is not own
    assert torch.get_default_dtype() is torch.float32


@pytest.mark.parametrize("quantizer", ["fp32_baseline", "bnb_8bit", "bnb_4bit_nf4"])
def test_an_evaluator_that_only_measures_changes_nothing(tiny_model, quantizer, request):
    """Forward passes, generation, padding, chats and what imports do to filters and levels are no change."""
    if quantizer != "fp32_baseline":  # once is enough
        request.getfixturevalue("without_functions")
    subject = lq.load(str(tiny_model), quantizer, device="cpu")
    subject.module(torch.arange(3, 20)[None])
    before = Snapshot.take(subject)
    texts = ["Hello there, my friend", "Hello"]
    inputs = subject.tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=8)
    subject.tokenizer.apply_chat_template([{"role": "user", "content": "Hello"}])
    with torch.inference_mode():
        subject.module.generate(**inputs, max_new_tokens=4)
        subject.module(torch.randint(3, 200, (3, 100)))
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    gc.collect()
    assert before.undo() == []
