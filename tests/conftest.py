"""What every test may ask for: a tiny real checkpoint, and a context to run plugins in."""

from __future__ import annotations

import gc
import os
import shutil
import sys
from collections.abc import Callable, Generator, Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from llmquant.machine import hardware
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import LoadedModel
from llmquant.storage.cache import Cache
from llmquant.study.experiment import Digest, Documents
from llmquant.study.job import Device

# The same examples every time, and no deadline for one: machines that also run models are too uneven.
settings.register_profile("llmquant", deadline=None, derandomize=True)
# New ones, many more: `--hypothesis-profile=explore`.
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile("llmquant")

_NO_PACKED_4BIT = "LLMQUANT_TEST_NO_PACKED_4BIT"


def pytest_configure() -> None:
    """Switch bitsandbytes' packed 4-bit kernel off where that is asked for, here and in the workers of tests.

    Workers search for modules where this process does, and Python itself imports a ``sitecustomize`` that it finds.
    """
    if os.environ.get(_NO_PACKED_4BIT) != "1":
        return
    flags = hardware.cpu_flags()
    if "avx512_bf16" not in flags:
        pytest.exit(f"{_NO_PACKED_4BIT}: this CPU has no AVX512-BF16, there is nothing to switch off", returncode=0)
    hardware.cpu_flags = lambda: flags - {"avx512_bf16"}  # before the options of quantizers import it
    sys.path.insert(0, str(Path(__file__).parent / "no_packed_4bit"))
    sys.modules.pop("sitecustomize", None)
    import sitecustomize  # noqa: F401 - importing it does it


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave what is imported out of the collection of garbage, half a second each time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a Llama checkpoint of 2 layers with a tokenizer of its own; equal bytes every time."""
    import torch

    from llmquant.testing import tiny_causal_lm

    torch.set_num_threads(1)
    made = tiny_causal_lm(tmp_path_factory.mktemp("models") / "tiny-llama")
    gc.freeze()  # it has imported the rest
    return made


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Copy the tiny model to where a test may damage it."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def subject(tiny_model: Path, context: Callable[..., Context]) -> LoadedModel:
    """Load the tiny model in float32."""
    import torch

    from subjects import load_subject

    torch.set_num_threads(1)
    return load_subject(tiny_model, context().cache)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is cached in the test's own folder."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def task_index(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what is cached in a folder that tests share, because listing lm-eval's tasks takes seconds."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path_factory.getbasetemp() / "task-index"))


@pytest.fixture(scope="session")
def tiny_gguf(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the tiny model as GGUF, its linear layers as Q8_0."""
    import json

    import gguf
    from safetensors.numpy import load_file

    config = json.loads((tiny_model / "config.json").read_text())
    bpe = json.loads((tiny_model / "tokenizer.json").read_text())["model"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(sorted(bpe["vocab"], key=bpe["vocab"].get))
    writer.add_token_types([1] * len(bpe["vocab"]))
    writer.add_token_merges([" ".join(merge) for merge in bpe["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_chat_template((tiny_model / "chat_template.jinja").read_text())
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = load_file(tiny_model / "model.safetensors")
    for name in tensors:
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if part in name:  # llama.cpp rotates neighbouring dimensions, transformers the two halves
                halves = tensors[name].reshape(config[heads], 2, -1, tensors[name].shape[1])
                tensors[name] = halves.swapaxes(1, 2).reshape(tensors[name].shape)
        kind = gguf.GGMLQuantizationType.Q8_0 if "proj" in name else gguf.GGMLQuantizationType.F32
        data = gguf.quantize(tensors[name], kind)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture
def without_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """List no functions before and after an evaluator: that takes most of a small one's time, and has its own tests."""
    from llmquant.running import guard, guarded_process

    for module in (guard, guarded_process):
        monkeypatch.setattr(module, "functions", dict)
        monkeypatch.setattr(module, "put_back", lambda before, *, keep=False: [])


@pytest.fixture
def context(tmp_path: Path) -> Callable[..., Context]:
    """Return a factory of contexts whose cache and files lie in the test's own folder."""

    def make(
        device: Device = "cpu",
        *,
        seed: int = 0,
        limit: int | None = None,
        inputs: Mapping[Digest, Path] | None = None,
        reference: Path | None = None,
        files: Path | None = None,
    ) -> Context:
        folder = files or tmp_path / "files"
        folder.mkdir(parents=True, exist_ok=True)
        return Context(
            device=device,
            seed=seed,
            documents=Documents(limit),
            cache=Cache(tmp_path / "cache"),
            inputs=inputs or {},
            reference=reference,
            files=folder,
            progress=lambda done, total: None,
        )

    return make


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scheduler look as fast as can be."""
    monkeypatch.setattr("llmquant.running.scheduler._POLL_S", 0.0)
