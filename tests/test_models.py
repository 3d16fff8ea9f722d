"""What is known of a model before it is loaded, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edits import edit_json
from llmquant.errors import MissingDependencyError, ModelError
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache")


def _refused(folder, cache, **flags):
    with pytest.raises(ModelError) as caught:
        inspect_model(ModelRequest(str(folder), **flags), cache)
    return str(caught.value)


def test_parameters_are_those_of_the_loaded_model(tiny_model, cache):
    """Counted from the header, tied head included once."""
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_model)
    assert inspect_model(ModelRequest(str(tiny_model)), cache).parameters == module.num_parameters()


def test_a_stored_tied_head_counts_once(folder, cache):
    """Some checkpoints hold the head beside the embedding that it is tied to."""
    from safetensors.numpy import load_file, save_file

    before = inspect_model(ModelRequest(str(folder)), cache).parameters
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    assert inspect_model(ModelRequest(str(folder)), cache).parameters == before


def test_predicted_cache_bytes_are_those_of_the_cache(tiny_model, cache):
    """One token adds exactly what was predicted."""
    import torch
    from transformers import AutoModelForCausalLM

    module = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16)
    with torch.no_grad():
        layers = module(torch.ones(1, 7, dtype=torch.long), use_cache=True).past_key_values.layers
    held = sum(tensor.nbytes for layer in layers for tensor in (layer.keys, layer.values))
    assert inspect_model(ModelRequest(str(tiny_model)), cache).kv_bytes_per_token(2) * 7 == held


def test_the_digest_is_of_the_content_not_the_place(tiny_model, folder, cache):
    """A copy elsewhere is the same model."""
    here, there = (inspect_model(ModelRequest(str(path)), cache) for path in (tiny_model, folder))
    assert here.digest == there.digest


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"])
def test_the_digest_covers_what_changes_results(folder, cache, name):
    """Configuration, tokenizer and chat template count."""
    before = inspect_model(ModelRequest(str(folder)), cache).digest
    (folder / name).write_text((folder / name).read_text() + "\n")
    assert inspect_model(ModelRequest(str(folder)), cache).digest != before


def test_the_digest_leaves_out_what_is_for_people(folder, cache):
    """A model card changes nothing."""
    before = inspect_model(ModelRequest(str(folder)), cache).digest
    (folder / "README.md").write_text("hello")
    (folder / "LICENSE.txt").write_text("free")
    assert inspect_model(ModelRequest(str(folder)), cache).digest == before


def test_large_files_are_hashed_once_until_they_change(tmp_path, monkeypatch):
    """The second look-up of a file that was not just written reads no content; a change in place is seen."""
    import hashlib

    from llmquant.models import folder as checkpoint_files
    from llmquant.models.folder import file_digest

    read = []
    monkeypatch.setattr(checkpoint_files, "_SETTLED_NS", 0)
    monkeypatch.setattr(hashlib, "file_digest", lambda *args, real=hashlib.file_digest: read.append(1) or real(*args))
    path = tmp_path / "large.safetensors"
    path.write_bytes(b"x" * (17 * 2**20))
    first = file_digest(path, tmp_path / "digests")
    assert file_digest(path, tmp_path / "digests") == first
    assert len(read) == 1
    path.write_bytes(b"y" * (17 * 2**20))
    assert file_digest(path, tmp_path / "digests") != first


def test_gguf_is_described_as_its_checkpoint_is(tiny_gguf, tiny_model, cache):
    """Same parameters, layers and cache; what it is shows in the note."""
    gguf, folder = (inspect_model(ModelRequest(str(path)), cache) for path in (tiny_gguf, tiny_model))
    assert gguf.parameters == folder.parameters
    assert len(gguf.linear_layers()) == len(folder.linear_layers())
    assert gguf.kv_bytes_per_token(2) == folder.kv_bytes_per_token(2)
    assert gguf.config["vocab_size"] == folder.config["vocab_size"]
    assert gguf.note.startswith("dequantized from GGUF Q8_0")


def test_inspecting_imports_nothing_heavy(tiny_model, tiny_gguf, tmp_path):
    """A laptop without torch can plan a study."""
    code = (
        "import sys; from pathlib import Path; from llmquant.storage.cache import Cache\n"
        "from llmquant.study.experiment import ModelRequest; from llmquant.models.info import inspect_model\n"
        f"for path in {[str(tiny_model), str(tiny_gguf)]}:\n"
        f"    inspect_model(ModelRequest(path), Cache(Path({str(tmp_path)!r})))\n"
        "print([name for name in ('torch', 'transformers', 'numpy', 'gguf') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_missing_config_is_said(folder, cache):
    """A folder without config.json is no checkpoint."""
    (folder / "config.json").unlink()
    assert "has no config.json" in _refused(folder, cache)


def test_a_sentence_transformers_model_of_an_older_layout_is_told_how_to_become_new(folder, cache):
    """Its transformer is in a folder of its own."""
    (folder / "config.json").unlink()
    (folder / "modules.json").write_text("[]")
    assert "SentenceTransformer(FOLDER).save_pretrained(NEW)" in _refused(folder, cache)


def test_missing_weights_are_said(folder, cache):
    """A configuration alone is no model."""
    (folder / "model.safetensors").unlink()
    assert "has no weights" in _refused(folder, cache)


@pytest.mark.parametrize("keep", [3, 100, 5_000, -1])
def test_truncated_safetensors_are_found(folder, cache, keep):
    """Wherever the file ends early, the header tells."""
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    assert "damaged" in _refused(folder, cache)


def test_a_missing_shard_is_named(folder, cache):
    """An index whose file is not there stops before loading."""
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert "model-00002-of-00002.safetensors" in _refused(folder, cache)


def test_pickled_weights_need_permission(folder, cache):
    """Opening a pickle can run code, so nobody does it unasked; the hint names the switch."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "allow-pickle" in _refused(folder, cache)


def test_pickled_weights_are_described_without_running_them(folder, cache):
    """With permission the header is read by PyTorch's loader of tensors alone, as from safetensors."""
    import torch
    from safetensors.torch import load_file

    expected = inspect_model(ModelRequest(str(folder)), cache)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    found = inspect_model(ModelRequest(str(folder), allow_pickle=True), cache)
    assert sorted(found.tensors, key=str) == sorted(expected.tensors, key=str)
    assert found.flags == ("allow_pickle",)


class _Evil:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


def test_code_in_a_pickle_does_not_run(folder, cache, tmp_path, monkeypatch):
    """Even with permission, reading the header runs nothing."""
    import torch

    monkeypatch.chdir(tmp_path)
    (folder / "model.safetensors").unlink()
    torch.save({"a": _Evil()}, folder / "pytorch_model.bin")
    assert "not a readable PyTorch checkpoint" in _refused(folder, cache, allow_pickle=True)
    assert not Path("ran").exists()


def test_a_pickle_needs_torch(folder, cache, monkeypatch):
    """Without torch the message has the line that installs it."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    monkeypatch.setattr("llmquant.models.headers.importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="needs torch") as caught:
        inspect_model(ModelRequest(str(folder), allow_pickle=True), cache)
    assert "pip install" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"abc", b"PK\3\4" + bytes(100), b"\x80\x02}q\x00."])
def test_a_damaged_pickle_is_refused(folder, cache, content):
    """Whatever it begins with."""
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(content)
    assert "not a readable PyTorch checkpoint" in _refused(folder, cache, allow_pickle=True)


def test_an_adapter_is_refused(folder, cache):
    """LoRA weights alone are no model."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter" in _refused(folder, cache)


def test_custom_code_needs_permission(folder, cache):
    """A model that transformers does not know runs only with trust_remote_code."""
    edit_json(folder / "config.json", model_type="strange", auto_map={"AutoModelForCausalLM": "modeling.Strange"})
    assert "trust-remote-code" in _refused(folder, cache)
    assert inspect_model(ModelRequest(str(folder), trust_remote_code=True), cache).flags == ("trust_remote_code",)


def test_custom_code_that_transformers_replaces_is_ignored(folder, cache):
    """Many checkpoints still carry code from before transformers knew them."""
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling.Llama"})
    assert inspect_model(ModelRequest(str(folder)), cache).flags == ()


def test_a_quantized_checkpoint_is_recognized(folder, cache):
    """What it is quantized by is in the note."""
    edit_json(folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    info = inspect_model(ModelRequest(str(folder)), cache)
    assert info.quantized_as == "gptq 4-bit"
    assert "gptq 4-bit" in info.note


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("https://huggingface.co/org/name", "Write the Hub id: org/name"),
        ("https://huggingface.co/org/name/tree/v2/folder?x=1", "Write the Hub id: org/name@v2"),
        ("FOLDER@main", "A folder has no revision: write FOLDER"),
    ],
)
def test_another_way_to_write_a_model_is_answered_with_the_right_one(cache, folder, source, hint):
    """An address of the Hub, and a revision of a folder."""
    assert hint.replace("FOLDER", str(folder)) in _refused(source.replace("FOLDER", str(folder)), cache)


def test_a_path_that_is_not_there_is_said(cache, tmp_path):
    """The message has the absolute path."""
    assert "is not there" in _refused(tmp_path / "nothing", cache)


def test_a_file_that_is_no_model_is_said(cache, tmp_path):
    """Only .gguf files are models."""
    (tmp_path / "model.onnx").write_bytes(b"")
    assert "is a file" in _refused(tmp_path / "model.onnx", cache)
