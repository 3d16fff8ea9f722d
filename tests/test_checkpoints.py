"""Quantized checkpoints: made once, whole or not at all, and checked when they are used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import checkpoint_makers
import llmquant as lq
from llmquant.errors import RunError, StoreError
from llmquant.loading.memory import is_out_of_memory
from llmquant.loading.quantized import quantized_checkpoint, read_recipe
from llmquant.models.info import inspect_model
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest
from misbehaving_studies import wait_until


@pytest.fixture
def make(tiny_model, context, tmp_path):
    """Return a function that asks for a checkpoint, and the file that gets a line whenever one is made."""
    lq.register(checkpoint_makers.SPEC)
    started = tmp_path / "started"
    ctx = context()

    def ask(how="not", **changes):
        info = inspect_model(ModelRequest(str(tiny_model)), ctx.cache)
        chosen = registry().choose("quantizer", Call("copy", (), {"how": how, "marker": str(started)}))
        return quantized_checkpoint(tiny_model, info, chosen, replace(ctx, **changes))

    ask.started = started
    ask.cache = ctx.cache
    return ask


def test_a_checkpoint_is_made_once(make):
    """Whoever asks again gets the same folder; another seed is no other checkpoint."""
    first = make()
    assert make(seed=7) == first
    assert len(make.started.read_text().splitlines()) == 1


def test_a_recipe_says_how_a_checkpoint_was_made(make, tiny_model):
    """The model, the quantizer and the versions, and the digest of each file."""
    folder = make()
    recipe = read_recipe(folder)
    assert recipe["model"]["digest"].startswith("sha256:")
    assert recipe["quantizer"]["plugin"] == "registered/copy"
    assert recipe["packages"]["torch"]
    files = json.loads((folder / "llmquant.json").read_text())["files"]
    assert set(files) == {path.name for path in tiny_model.iterdir()}


def test_a_converted_file_has_no_recipe(tmp_path):
    """An entry of the cache that no quantizer made says nothing about quantizing."""
    assert read_recipe(Cache(tmp_path).get("gguf", 1, lambda folder: None, name="model.gguf")) is None


def test_a_checkpoint_is_made_in_a_process_of_its_own(make):
    """What a quantization leaves behind cannot show in a measurement."""
    make()
    assert int(make.started.read_text()) != os.getpid()


def test_progress_of_the_quantization_arrives(make):
    """Layer by layer."""
    seen = []
    make(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_a_changed_checkpoint_is_refused(make):
    """The file is named, and what to do; a study never uses it in silence."""
    folder = make()
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match=r"model\.safetensors in the cache is not what was made.*\n.*made again"):
        make()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raise", "ValueError: the Hessian is not positive definite"),
        ("refuse", "this model cannot be copied\nTry another."),
        ("kill", "was killed by signal 9"),
        ("elsewhere", "checkpoint=True, and its prepare returned"),
    ],
)
def test_a_failed_quantization_says_why_and_leaves_nothing(make, how, message, caplog):
    """The engine's last words are in the log; no folder counts as a checkpoint."""
    with pytest.raises(RunError) as caught:
        make(how)
    assert message in str(caught.value)
    assert "the engine speaks" in caplog.text or how == "kill"  # a killed process loses what it had not flushed
    assert not make.cache.entries()
    assert not list((make.cache.root / "checkpoints").glob(".*.????????"))


def test_a_quantization_without_memory_is_told_apart(make):
    """So that the run is stored as out of memory."""
    with pytest.raises(RunError) as caught:
        make("oom")
    assert is_out_of_memory(caught.value)


def test_kill_9_during_quantization_leaves_no_half_checkpoint(tiny_model, tmp_path):
    """The quantizing process ends too, and the next call starts anew."""
    marker = tmp_path / "started"
    script = "; ".join(
        (
            "import sys, checkpoint_makers, llmquant as lq",
            "lq.register(checkpoint_makers.SPEC)",
            "lq.load(*sys.argv[1:], device='cpu')",
        )
    )
    environment = {
        **os.environ,
        "LLMQUANT_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }

    def start(how: str) -> subprocess.Popen:
        call = f"copy(how={how}, marker={marker})"
        return subprocess.Popen([sys.executable, "-c", script, str(tiny_model), call], env=environment)

    program = start("sleep")
    wait_until(marker.exists)
    quantizing = int(marker.read_text())
    program.send_signal(signal.SIGKILL)
    program.wait()
    wait_until(lambda: not Path(f"/proc/{quantizing}").exists() or _is_zombie(quantizing))
    cache = Cache(tmp_path / "cache")
    assert not [entry for entry in cache.entries() if entry.kind == "checkpoints"]

    # The same checkpoint: the way it goes wrong is an option, so the half of it is put where it would be.
    again = start("sleep")
    wait_until(lambda: len(marker.read_text().splitlines()) == 2)
    assert len(list((cache.root / "checkpoints").glob(".*/half.bin"))) == 1, "the dead one's half is swept"
    again.kill()
    again.wait()


def _is_zombie(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
