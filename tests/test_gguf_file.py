"""A .gguf file holds the blocks that were measured, and llama.cpp computes with them what transformers does."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

pytest.importorskip("libggml")

import gguf
import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

import llmquant as lq
from llmquant.cli.app import main
from llmquant.errors import UnsupportedError
from llmquant.loading.causal_lm import materialize
from llmquant.models.info import inspect_model
from llmquant.quantizers.gguf import vocabulary
from llmquant.quantizers.gguf.file import plan_file, write_file
from llmquant.quantizers.gguf.options import FileType, GgufOptions
from llmquant.quantizers.gguf.quantizer import Gguf, _blocks
from llmquant.study.experiment import ModelRequest

LLAMA3 = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3["original_max_position_embeddings"] = 128
FILE_TYPES = get_args(FileType)
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


@pytest.fixture(autouse=True)
def known(monkeypatch, tiny_model):
    """Let the tests' own tokenizer be one that llama.cpp knows: it splits texts as GPT-2's."""
    _know(tiny_model, monkeypatch)


@pytest.fixture(scope="module")
def family(tiny_model, tmp_path_factory):
    """Return a function that builds a model of a family, once: 256 weights per row, an own head, grouped heads."""
    made = {}

    def build(kind, **settings):
        key = (kind, json.dumps(settings))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(kind) / f"tiny-{kind}"
            _build(kind, settings, tiny_model, made[key])
        return made[key]

    return build


def _build(kind, settings, tiny_model, folder):
    from transformers import AutoConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}
    heads["head_dim"] = 128 if kind == "qwen3" else 64  # transformers reads no other width from a qwen3 file
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": None}
    rows = {"vocab_size": len(tokenizer) + 3, "tie_word_embeddings": False}
    config = AutoConfig.for_model(kind, **{**sizes, **heads, **ids, **rows, "initializer_range": 0.1, **settings})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias") or "norm" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")


def _write(folder, out, context, file_type="q4_k_m"):
    ctx, quantizer = context(), Gguf(GgufOptions(file_type))
    info = inspect_model(ModelRequest(str(folder)), ctx.cache)
    quantizer.options.check_export(info)
    return quantizer.export(folder, info, out, ctx), info


def _turned_back(name, rows, heads):
    """Undo the order in which llama.cpp's RoPE wants the rows of queries and keys."""
    count = heads.get(name.split(".")[2] if name.startswith("blk.") else "")
    return rows if count is None else rows.reshape(count, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_the_file_holds_the_weights_that_are_measured(family, context, tmp_path, file_type):
    """Dequantized by the gguf package, every tensor has the bits of the checkpoint that is evaluated."""
    folder, evaluated = family("llama"), tmp_path / "evaluated"
    evaluated.mkdir()
    applied, info = _write(folder, tmp_path / "m.gguf", context, file_type)
    Gguf(GgufOptions(file_type, "float32")).prepare(folder, evaluated, context())
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 9)
    with safe_open(evaluated / "model.safetensors", framework="numpy") as opened:
        for name in opened.keys():  # noqa: SIM118
            tensor = tensors.pop(names.get_name(name, (".weight",)))
            rows = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(_turned_back(tensor.name, rows, {"attn_q": 4, "attn_k": 2}), opened.get_tensor(name))
    assert not tensors
    assert applied.served_bytes == GgufOptions(file_type).served_bytes(info)


@pytest.mark.parametrize("kind", FAMILIES)
def test_transformers_reads_the_file_as_the_same_model(family, context, tmp_path, kind):
    """Opened as a model, the file has the logits of the evaluated weights and the same tokenizer."""
    folder, evaluated, ctx = family(kind), tmp_path / "evaluated", context()
    evaluated.mkdir()
    _write(folder, tmp_path / "m.gguf", context)
    Gguf(GgufOptions("q4_k_m", "float32")).prepare(folder, evaluated, ctx)
    read = materialize(inspect_model(ModelRequest(str(tmp_path / "m.gguf")), ctx.cache), ctx.cache)
    tokens = torch.arange(3, 60)[None]
    with torch.inference_mode():
        found, expected = (AutoModelForCausalLM.from_pretrained(each)(tokens).logits for each in (read, evaluated))
    assert torch.equal(found, expected)
    text = "A text with 1234 digits,\n\n  spaces and <|im_start|>tokens<|im_end|>: déjà vu"
    ids = [AutoTokenizer.from_pretrained(each).encode(text) for each in (read, folder)]
    assert ids[0] == ids[1]


def test_metadata_describe_the_model_and_its_tokenizer(family, context, tmp_path):
    """Keys are those that llama.cpp reads."""
    folder = family("llama", rope_parameters={"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0})
    _write(folder, tmp_path / "m.gguf", context)
    fields = {name: field.contents() for name, field in gguf.GGUFReader(tmp_path / "m.gguf").fields.items()}
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = {
        "general.architecture": "llama",
        "general.name": "tiny-llama",
        "general.license": "apache-2.0",
        "general.file_type": gguf.LlamaFileType.MOSTLY_Q4_K_M,
        "general.quantization_version": 2,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.block_count": 9,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.key_length": 64,
        "llama.rope.freq_base": 5e4,
        "llama.rope.scaling.type": "linear",
        "llama.rope.scaling.factor": 2.0,
        "llama.vocab_size": len(tokenizer) + 3,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    assert {key: fields[key] for key in expected} == expected
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    kinds = gguf.TokenType
    types = fields["tokenizer.ggml.token_type"]
    assert types[:4] == [kinds.CONTROL] * 3 + [kinds.NORMAL]
    assert types[-3:] == [kinds.UNUSED] * 3
    assert fields["tokenizer.ggml.tokens"][:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_tied_embeddings_are_one_tensor(tiny_model, context, tmp_path):
    """llama.cpp takes the embeddings as head where the file has no output tensor."""
    _write(tiny_model, tmp_path / "m.gguf", context, "q8_0")
    names = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert "token_embd.weight" in names
    assert "output.weight" not in names


def test_quantize_writes_the_file_and_says_how_large_it_is(tiny_model, tmp_path, monkeypatch, capsys):
    """A name that ends in .gguf is the file; another one is a folder with the file and a model card."""
    file, folder = tmp_path / "tiny.gguf", tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["llmquant", "quantize", str(tiny_model), "-q", "gguf_q8_0", "-o", str(file)])
    with pytest.raises(SystemExit, match="0"):
        main()
    out = capsys.readouterr().out.replace("\n", " ")
    assert f"{file}: 14 layers as q8_0, 8 bits per weight without scales; not quantized: none" in out
    assert "0.1 MiB written" in out
    lq.quantize(tiny_model, "gguf_q8_0", folder, device="cpu")
    assert {path.name for path in folder.iterdir()} == {"tiny-llama-q8_0.gguf", "README.md"}
    assert "llama-server -m tiny-llama-q8_0.gguf" in (folder / "README.md").read_text()
    assert (folder / "tiny-llama-q8_0.gguf").read_bytes() == file.read_bytes()


def test_a_file_that_was_not_finished_has_no_name(tiny_model, tmp_path, monkeypatch):
    """An error in the middle leaves neither the file nor a part of it."""

    def fail(self, tensor):
        raise OSError("no space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensor_data", fail)
    with pytest.raises(OSError, match="no space"):
        lq.quantize(tiny_model, "gguf_q8_0", tmp_path / "m.gguf", device="cpu")
    assert [path.name for path in tmp_path.iterdir() if "m.gguf" in path.name] == []


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("llama", {"model_type": "gemma"}, "model type is 'gemma'; supported are llama, mistral, qwen2, qwen3"),
        ("llama", {"hidden_act": "gelu"}, "activation is 'gelu'"),
        ("llama", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}}, "'yarn'"),
        ("qwen2", {"rope_parameters": LLAMA3}, "'llama3'"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ("mistral", {"sliding_window": 128}, "attention sees 128 tokens back"),
        ("qwen2", {"model_type": "qwen3"}, r"no place for model\.layers\.0\.self_attn\.[qkv]_proj\.bias"),
        ("llama", {"vocab_size": 100}, "the embeddings have 100 rows"),
    ],
)
def test_what_llama_cpp_would_compute_differently_is_refused(family, context, tmp_path, kind, changes, message):
    """The reason is found in the configuration, before there are weights to load."""
    _refused(_changed(family(kind), tmp_path, "config.json", changes), family(kind), context, message)


def _template(token, index):
    """Return a post-processor that begins every text with a token."""
    first, second = ({"Sequence": {"id": each, "type_id": 0}} for each in "AB")
    special = {token: {"id": token, "ids": [index], "tokens": [token]}}
    single = [{"SpecialToken": {"id": token, "type_id": 0}}, first]
    return {"type": "TemplateProcessing", "single": single, "pair": [*single, second], "special_tokens": special}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}, "byte-level BPE .found WordLevel"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "pre-tokenizer is none of those known from llama.cpp .hash"),
        ({"post_processor": _template("<|endoftext|>", 0)}, "with other tokens than bos and eos"),
    ],
)
def test_a_tokenizer_that_llama_cpp_lacks_is_refused(family, context, tmp_path, monkeypatch, changes, message):
    """The reason names what was found."""
    folder = _changed(family("llama"), tmp_path, "tokenizer.json", changes)
    if "post_processor" in changes:
        _know(folder, monkeypatch)
    _refused(folder, family("llama"), context, message, early="post_processor" not in changes)


def test_a_token_before_every_text_is_in_the_metadata(family, tmp_path, monkeypatch):
    """llama.cpp adds bos where the tokenizer does."""
    folder = _changed(family("llama"), tmp_path, "tokenizer.json", {"post_processor": _template("<|im_start|>", 1)})
    _know(folder, monkeypatch)
    read = vocabulary.read_vocabulary(AutoTokenizer.from_pretrained(folder), 1000)
    assert read.adds == {"bos": True, "eos": False}


def test_a_tokenizer_without_bos_is_written_without_it(family, tmp_path):
    """Qwen's have none."""
    folder = _changed(family("qwen2"), tmp_path, "tokenizer_config.json", {"bos_token": None})
    read = vocabulary.read_vocabulary(AutoTokenizer.from_pretrained(folder), 1000)
    assert "bos" not in read.special
    assert read.adds == {"bos": False, "eos": False}


def _know(folder, monkeypatch):
    ids = AutoTokenizer.from_pretrained(folder).encode(vocabulary._PROBE)
    monkeypatch.setitem(vocabulary.PRE_TOKENIZERS, vocabulary.hash_of(ids), "gpt-2")


def test_code_of_the_models_own_is_refused(family, context, tmp_path):
    """llama.cpp does not run it."""
    folder, ctx = family("llama"), context()
    info = inspect_model(ModelRequest(str(folder), trust_remote_code=True), ctx.cache)
    info.config["auto_map"] = {"AutoModelForCausalLM": "modeling.Own"}
    with pytest.raises(UnsupportedError, match="it runs its own code"):
        Gguf(GgufOptions()).check_export(folder, info)


def _changed(folder, tmp_path, name, changes):
    """Copy a model without its weights, with other settings."""
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*.safetensors"))
    (copy / name).write_text(json.dumps({**json.loads((copy / name).read_text()), **changes}))
    return copy


def _refused(folder: Path, original: Path, context, message, *, early=True):
    """Check the quantizer, and its options, which read the files without transformers."""
    ctx = context()
    info = replace(inspect_model(ModelRequest(str(original)), ctx.cache), location=folder)
    info.config.update(json.loads((folder / "config.json").read_text()))
    with pytest.raises(UnsupportedError, match=message):
        Gguf(GgufOptions()).check_export(folder, info)
    if early:
        with pytest.raises(UnsupportedError, match=message):
            GgufOptions().check_export(info)


@pytest.fixture(scope="module")
def llama_cpp():
    """Return a binding of llama.cpp."""
    binding = pytest.importorskip(
        "cyllama.llama.llama_cpp", reason="no binding of llama.cpp is installed: pip install cyllama"
    )
    binding.disable_logging()
    binding.llama_backend_init()
    binding.ggml_backend_load_all()
    return binding


def _plain(folder, out, context):
    """Write a file without quantization."""
    plan = plan_file(folder, inspect_model(ModelRequest(str(folder)), context().cache))
    assert list(write_file(plan, out, "f16", {}, _blocks))[-1] == len(plan.names)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "mlp_bias": True}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
        ("mistral", {"tie_word_embeddings": True}),
        ("qwen2", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}),
        ("qwen3", {}),
    ],
)
def test_llama_cpp_computes_what_transformers_does(llama_cpp, family, context, tmp_path, kind, settings):
    """Without quantization, its tokens are equal and its probabilities differ by rounding alone."""
    folder = family(kind, **settings)
    _plain(folder, tmp_path / "m.gguf", context)
    tokenizer = AutoTokenizer.from_pretrained(folder)

    class Model(llama_cpp.LlamaModel):
        n_vocab = len(tokenizer) + 3  # read by the binding's get_logits_ith, and missing in its class

    model = Model(path_model=str(tmp_path / "m.gguf"), params=llama_cpp.LlamaModelParams(), verbose=False)
    text = "<|im_start|>The weather in 1234 mountains changes,\n\n  quickly: déjà vu!<|im_end|>" * 4
    ids = tokenizer.encode(text)
    assert list(model.get_vocab().tokenize(text, True, True)) == ids
    settings = llama_cpp.LlamaContextParams()
    settings.type_k = settings.type_v = 0  # float32
    opened = llama_cpp.LlamaContext(model=model, params=settings, verbose=False)
    batch = llama_cpp.LlamaBatch(n_tokens=len(ids), embd=0, n_seq_max=1)
    batch.set_batch(ids, 0, True)
    opened.decode(batch)
    found = torch.tensor([opened.get_logits_ith(index) for index in range(len(ids))]).log_softmax(-1)
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor([ids])).logits[0].log_softmax(-1)
    divergence = (expected.exp() * (expected - found)).sum(-1)
    assert len(ids) > 100
    assert divergence.max() < 1e-4


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_llama_quantize_writes_the_same_blocks(llama_cpp, family, context, tmp_path, file_type):
    """Names, types and bytes of all tensors are those of llama.cpp's own program."""
    folder, paths = family("llama"), [tmp_path / f"{name}.gguf" for name in ("plain", "theirs", "ours")]
    _plain(folder, paths[0], context)
    settings = llama_cpp.LlamaModelQuantizeParams()
    settings.ftype = int(gguf.LlamaFileType[f"MOSTLY_{file_type.upper()}"])
    llama_cpp.model_quantize(str(paths[0]), str(paths[1]), settings)
    _write(folder, paths[2], context, file_type)
    theirs, ours = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in paths[1:])
    assert theirs.keys() == ours.keys()
    assert {name: t.tensor_type for name, t in theirs.items()} == {name: t.tensor_type for name, t in ours.items()}
    assert all(np.array_equal(tensor.data, ours[name].data) for name, tensor in theirs.items())
