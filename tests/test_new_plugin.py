"""A new plugin package: each kind is complete and light, and a wrong name or folder is refused."""

from __future__ import annotations

import importlib
import tomllib
from pathlib import Path

import pytest

import llmquant as lq
from llmquant.cli.new_plugin import write_plugin
from llmquant.errors import LlmquantError, OptionError, UnsupportedError
from llmquant.plugins.discovery import Plugin
from llmquant.plugins.registry import registry
from llmquant.study.call import Call

KINDS = [("quantizer", False), ("quantizer", True), ("evaluator", False), ("embedder", False), ("executor", False)]


@pytest.mark.parametrize(("kind", "saved"), KINDS)
def test_each_kind_is_a_whole_package(kind, saved, tmp_path, monkeypatch):
    """Every file compiles, nothing of the template is left, the entry point gives a spec whose presets build."""
    own = f"own_{kind}_{saved}".lower()  # a module of its own per test
    write_plugin(own.replace("_", "-"), kind, tmp_path, writes_checkpoint=saved)
    (folder,) = tmp_path.iterdir()
    files = [file for file in folder.rglob("*") if file.is_file()]
    names = {str(file.relative_to(folder)) for file in files}
    assert {
        ".github/workflows/test.yml",
        "README.md",
        f"src/llmquant_{own}/{kind}.py",
        f"tests/test_{own}.py",
    } <= names
    for file in files:
        text = file.read_text()
        assert not any(word in text for word in ("newplugin", "NewPlugin", "SUMMARY", "COMMANDS")), file
        if file.suffix == ".py":
            compile(text, file, "exec")
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    monkeypatch.syspath_prepend(folder / "src")
    (module,) = project["entry-points"]["llmquant"].values()
    (spec,) = importlib.import_module(module).llmquant_register()
    assert (spec.kind, spec.name, spec.checkpoint) == (kind, own, saved)
    with monkeypatch.context() as patch:
        patch.setattr(registry(), "plugins", [*registry().plugins, Plugin(spec, project["name"], "0.1.0")])
        for name in spec.presets or ([] if kind == "embedder" else [spec.name]):
            registry().choose(kind, Call.parse(name))


@pytest.mark.parametrize("name", ["Mine", "class", "4bit", "my method", "../mine", "my--own", "", "llmquant-"])
def test_a_name_that_is_no_package_name_is_refused(name, tmp_path):
    """Nothing is written."""
    with pytest.raises(OptionError, match="cannot be the name of a Python package"):
        write_plugin(name, "quantizer", tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [("bnb-4bit", "installed quantizer, from llmquant"), ("memory", "installed evaluator"), ("local", "executor")],
)
def test_the_name_of_an_installed_plugin_is_refused(name, message, tmp_path):
    """Of any kind: two plugins of one name could not be told apart in a command."""
    with pytest.raises(LlmquantError, match=message):
        write_plugin(name, "quantizer", tmp_path)


def test_a_folder_that_exists_is_kept(tmp_path):
    """Even an empty one."""
    Path(tmp_path / "llmquant-mine").mkdir()
    with pytest.raises(LlmquantError, match="exists already"):
        write_plugin("mine", "quantizer", tmp_path)


def test_only_a_quantizer_writes_checkpoints(tmp_path):
    """The option would have no effect."""
    with pytest.raises(UnsupportedError, match="an evaluator writes no checkpoints"):
        write_plugin("mine", "evaluator", tmp_path, writes_checkpoint=True)


def test_packed_weights_are_saved_and_loaded_again(tiny_model, tmp_path, monkeypatch):
    """A checkpoint of a plugin's own format is a variant, in the memory that was predicted, with equal logits."""
    import torch

    from llmquant.loading.memory import weight_bytes

    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry(), "plugins", list(registry().plugins))
    write_plugin("kept", "quantizer", tmp_path, writes_checkpoint=True)
    monkeypatch.syspath_prepend(tmp_path / "llmquant-kept" / "src")
    lq.register(*importlib.import_module("llmquant_kept.plugin").llmquant_register())
    written = lq.quantize(tiny_model, "kept_g32", tmp_path / "out", device="cpu")
    made = lq.load(tiny_model, "kept_g32", device="cpu")
    call = f"prequantized({tmp_path / 'out'})"
    again = lq.load(tiny_model, call, device="cpu")
    ids = torch.arange(20)[None]
    assert torch.equal(again.module(ids).logits, made.module(ids).logits)
    assert (again.applied.method, again.applied.bits, again.applied.block_size) == ("kept", written.bits, 32)
    predicted = registry().choose("quantizer", lq.Call.parse(call)).options.weight_bytes(made.info, "cpu")
    assert predicted == weight_bytes(again.module).total == weight_bytes(made.module).total
