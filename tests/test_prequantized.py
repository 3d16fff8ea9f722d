"""A checkpoint that somebody else quantized is loaded as it is, and only for the model it was made from."""

from __future__ import annotations

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from classic_checkpoints import write_awq, write_gptq
from llmquant.errors import MissingDependencyError, ModelError, OptionError, UnsupportedError
from llmquant.models.info import ModelInfo, inspect_model
from llmquant.plugins.options import build, dump, input_files, label, located, restore
from llmquant.plugins.registry import registry
from llmquant.quantizers.prequantized.options import PrequantizedOptions
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest
from test_hub import COMMIT, ask, hub  # noqa: F401

pytestmark = pytest.mark.usefixtures("own_cache")

CLASSIC = {
    "gptq": {},
    "gptq_symmetric": {"symmetric": True},
    "gptq_ordered": {"act_order": True},
    "gptq_three_bits": {"bits": 3},
    "gptq_eight_bits": {"bits": 8},
    "gptq_groups_of_16": {"group_size": 16},
    "gptq_whole_rows": {"group_size": -1},
    "awq": {"group_size": 32},
    "awq_whole_rows": {"group_size": -1},
}


@pytest.fixture(scope="module")
def write(tiny_model, tmp_path_factory):
    """Return a function that writes a classic checkpoint; its folder and that of its float32 weights."""

    def run(name, **more):
        folder = tmp_path_factory.mktemp("classic") / name
        writer = write_awq if name.startswith("awq") else write_gptq
        return folder, writer(tiny_model, folder, **{**CLASSIC[name], **more})

    return run


@pytest.fixture
def info(tiny_model, tmp_path) -> ModelInfo:
    """Return what is known of the model that the checkpoints are made from."""
    return inspect_model(ModelRequest(str(tiny_model)), Cache(tmp_path / "cache"))


@pytest.fixture
def load(info, context):
    """Return a function that loads a checkpoint as a variant of the tiny model, on what a worker gets."""
    from llmquant.loading.causal_lm import load_causal_lm
    from llmquant.quantizers.prequantized.quantizer import Prequantized

    def run(folder, **options):
        asked = _options(folder, **options)
        ctx = context(inputs=input_files(asked))
        travelled = restore(PrequantizedOptions, dump(asked))
        quantizer = Prequantized(travelled)
        path = quantizer.prepare(Path("unused"), ctx.files / "checkpoint", ctx)
        return load_causal_lm(path, info, quantizer, travelled, ctx)

    return run


def _options(folder, **options) -> PrequantizedOptions:
    return build(PrequantizedOptions, Call("prequantized", (str(folder),), options))


def _logits(module):
    import torch

    with torch.no_grad():
        return module(torch.arange(3, 40)[None]).logits.float()


def _error(found, wanted) -> float:
    return float((found - wanted).norm() / wanted.norm())


def _float(folder, dtype="float32"):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))


@dataclass(frozen=True)
class _Changed:
    """A copy of a checkpoint whose settings were changed."""

    folder: Path

    def settings(self, **changes) -> Path:
        path = self.folder / "config.json"
        config = json.loads(path.read_text())
        config["quantization_config"] = {**config.get("quantization_config", {}), **changes}
        path.write_text(json.dumps(config))
        return self.folder

    def config(self, **changes) -> Path:
        path = self.folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return self.folder


@pytest.fixture
def copy_of(write, tmp_path):
    """Return a function that copies a classic checkpoint to change it."""

    def run(name) -> _Changed:
        return _Changed(Path(shutil.copytree(write(name)[0], tmp_path / "changed")))

    return run


@pytest.mark.parametrize("name", CLASSIC)
def test_a_classic_checkpoint_computes_what_its_weights_stand_for(load, write, name):
    """Its logits are off by what rounding to bfloat16 does to the dequantized weights, and no more."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    folder, dequantized = write(name)
    wanted = _logits(_float(dequantized))
    assert _error(_logits(load(folder).module), wanted) < 2 * _error(_logits(_float(dequantized, "bfloat16")), wanted)


def test_codes_and_zero_points_are_exact(load, write):
    """Where a kernel unpacks to the model's type, float32 leaves only the rounding of products to float16."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    folder, dequantized = write("gptq_three_bits")
    model = load(folder, dtype="float32")
    assert model.applied.compute_dtype == "float32"
    assert _error(_logits(model.module), _logits(_float(dequantized))) < 0.005


@pytest.mark.parametrize("config_in", [("config.json",), ("quantize_config.json",)])
@pytest.mark.parametrize("weights", ["model.safetensors", "gptq_model-{bits}bit-{group_size}g.safetensors"])
def test_every_layout_of_auto_gptq_loads(load, write, config_in, weights):
    """Settings in either file, weights under either name."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    folder, _ = write("gptq", config_in=config_in, weights=weights)
    applied = load(folder).applied
    assert (applied.method, applied.code, applied.block_size) == ("gptq", "int4", 32)
    assert applied.note.startswith("quantized elsewhere; with zero points; kernel ")


@pytest.mark.parametrize("name", CLASSIC)
def test_predicted_bytes_of_packed_weights_are_those_held(load, write, info, name):
    """The prediction from the stored tensors is what the model keeps, once its first forward pass has unpacked it."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    from llmquant.loading.memory import weight_bytes

    folder, _ = write(name)
    module = load(folder).module
    _logits(module)
    assert weight_bytes(module).total == pytest.approx(_options(folder).weight_bytes(info, "cpu"), rel=0.01)


@pytest.mark.parametrize("asked", [{"load_in_4bit": True, "bnb_4bit_use_double_quant": True}, {"load_in_8bit": True}])
def test_what_bitsandbytes_saved_loads(load, info, tiny_model, tmp_path, asked):
    """It computes what was saved, reads back, and holds what was predicted."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    from llmquant.loading.memory import weight_bytes

    saved = AutoModelForCausalLM.from_pretrained(
        tiny_model, quantization_config=BitsAndBytesConfig(**asked), dtype=torch.bfloat16, device_map={"": "cpu"}
    )
    saved.save_pretrained(tmp_path / "saved")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "saved")
    wanted = _logits(saved)
    options = _options(tmp_path / "saved")
    options.check(info, "cpu")
    model = load(tmp_path / "saved")
    assert weight_bytes(model.module).total == pytest.approx(options.weight_bytes(info, "cpu"), rel=0.01)
    assert (model.applied.method, model.applied.bits) == ("bitsandbytes", 4.0 if "load_in_4bit" in asked else 8.0)
    assert _error(_logits(model.module), wanted) < 0.01


@pytest.mark.parametrize("scheme", ["w4a16", "w8a8", "fp8"])
def test_what_compressed_tensors_saved_loads(load, info, tiny_model, context, tmp_path, scheme):
    """It reads back, and holds what was predicted once the first forward pass has dequantized it."""
    pytest.importorskip("compressed_tensors")
    from llmquant.loading.memory import weight_bytes
    from llmquant.quantizers.compressed_tensors.options import CompressedTensorsOptions
    from llmquant.quantizers.compressed_tensors.quantizer import CompressedTensors

    (tmp_path / "saved").mkdir()
    CompressedTensors(CompressedTensorsOptions(scheme, 32)).prepare(tiny_model, tmp_path / "saved", context())
    options = _options(tmp_path / "saved")
    options.check(info, "cpu")
    model = load(tmp_path / "saved")
    assert model.applied.code == {"w4a16": "int4", "w8a8": "int8", "fp8": "float8_e4m3fn"}[scheme]
    assert "no calibration" not in model.applied.note
    _logits(model.module)
    assert weight_bytes(model.module).total == pytest.approx(options.weight_bytes(info, "cpu"), rel=0.01)


def test_a_checkpoint_is_known_by_its_content(write, tmp_path):
    """Two copies of a folder are one variant; another quantization is another."""
    folder, _ = write("gptq")
    shutil.copytree(folder, tmp_path / "copy")
    first, copy = _options(folder), _options(tmp_path / "copy")
    assert dump(first)["checkpoint"]["digest"] == dump(copy)["checkpoint"]["digest"]
    assert first != _options(write("gptq_symmetric")[0])


def test_a_table_names_the_folder_and_not_its_path(write):
    """Paths of one machine are no part of a label."""
    folder, _ = write("gptq")
    call = Call("prequantized", (str(folder),))
    assert label(call, build(PrequantizedOptions, call)) == "prequantized(gptq)"


def test_a_checkpoint_that_changed_is_not_evaluated(load, copy_of, info, context):
    """What runs is what was planned."""
    from llmquant.quantizers.prequantized.quantizer import Prequantized

    changed = copy_of("gptq")
    options = _options(changed.folder)
    changed.config(note="new")
    ctx = context(inputs=input_files(options))
    with pytest.raises(ModelError, match="changed since the study was planned"):
        Prequantized(options).prepare(Path("unused"), ctx.files, ctx)


def test_a_checkpoint_on_the_hub_is_known_by_its_commit(hub, ask, write):  # noqa: F811
    """Its settings are found there too, and the worker fetches that commit."""
    hub.repos["org/tiny"], _ = write("gptq", config_in=("quantize_config.json",))
    said = ask(
        hub,
        "org/tiny",
        then="from llmquant.quantizers.prequantized.options import Checkpoint, quantization_settings\n"
        "    found = Checkpoint.read(Path('org/tiny@main'))\n"
        "    print(found.digest, found.name, found.path, found.source({}))\n"
        "    print(quantization_settings(info)['quant_method'], info.weight_files)",
    ).splitlines()
    assert said[1:] == [
        f"commit:{COMMIT} org/tiny@main None org/tiny@{COMMIT}",
        "gptq ('gptq_model-4bit-32g.safetensors',)",
    ]


def test_what_is_neither_a_folder_nor_on_the_hub_is_said(hub, ask):  # noqa: F811
    """Who misspelt a path learns that it was looked for on the Hub as well."""
    then = "from llmquant.quantizers.prequantized.options import Checkpoint; Checkpoint.read(Path('./org/missing'))"
    assert "org/missing is neither a folder here nor a checkpoint on the Hub" in ask(hub, "org/tiny", then=then)


def test_a_file_is_no_checkpoint(tmp_path):
    """A GGUF file, for one, is given as a model."""
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(OptionError, match=r"model\.gguf is a file"):
        _options(tmp_path / "model.gguf")


@pytest.mark.parametrize("name", CLASSIC)
def test_a_checkpoint_of_the_model_is_accepted(write, info, name):
    """On a CPU too."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    _options(write(name)[0]).check(info, "cpu")


def test_plain_weights_are_refused(info, tiny_model):
    """They are a model, not a quantization of one."""
    with pytest.raises(UnsupportedError, match="is not quantized\nUse it as a separate model"):
        _options(tiny_model).check(info, "cpu")


def test_another_models_checkpoint_is_refused(copy_of, info):
    """Every field that differs is named, with both values."""
    folder = copy_of("gptq").config(num_hidden_layers=3, vocab_size=700)
    found = f"num_hidden_layers is 3, not 2; vocab_size is 700, not {info.config['vocab_size']}"
    with pytest.raises(UnsupportedError, match=found):
        _options(folder).check(info, "cpu")


def test_an_unknown_method_is_refused(copy_of, info):
    """What cannot be read back is not measured."""
    folder = copy_of("gptq").settings(quant_method="aqlm")
    with pytest.raises(UnsupportedError, match="is quantized by 'aqlm'"):
        _options(folder).check(info, "cpu")


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_a_missing_backend_comes_with_its_install_line(write, info, monkeypatch, name):
    """Before anything is loaded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(MissingDependencyError, match=r'gptqmodel[^\n]*\nRun: pip install "llmquant\[gptq\]"'):
        _options(write(name)[0]).check(info, "cpu")


def test_widths_that_the_groups_do_not_divide_are_refused(copy_of, info):
    """Such a checkpoint loads and dies in the first forward pass."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    folder = copy_of("gptq").settings(group_size=128)
    with pytest.raises(UnsupportedError, match="a group size of 128 does not divide 64"):
        _options(folder).check(info, "cpu")


def test_group_sizes_without_a_kernel_are_refused(copy_of, info):
    """GPTQModel knows a few."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    folder = copy_of("awq").settings(group_size=8)
    with pytest.raises(UnsupportedError, match="groups of 8"):
        _options(folder).check(info, "cpu")


def test_a_layout_for_gpus_is_refused_on_a_cpu(copy_of, info):
    """Marlin's has no other kernels."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    options = _options(copy_of("gptq").settings(checkpoint_format="marlin"))
    with pytest.raises(UnsupportedError, match="'marlin', for which there is no kernel on cpu"):
        options.check(info, "cpu")
    options.check(info, "cuda")


def test_a_quantized_model_is_pointed_to_prequantized(info):
    """Who gives it as a model learns how to compare it."""
    from dataclasses import replace

    from llmquant.quantizers.baseline.options import BaselineOptions

    quantized = replace(info, config={**info.config, "quantization_config": {"quant_method": "gptq", "bits": 4}})
    with pytest.raises(UnsupportedError, match=r'and this one as -q "prequantized\('):
        BaselineOptions().check(quantized, "cpu")


def test_the_models_tokenizer_reads_for_the_checkpoint(load, tiny_model, tmp_path):
    """What the checkpoint's own does otherwise is in the note, and its way to attend is not taken over."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    saved = AutoModelForCausalLM.from_pretrained(
        tiny_model,
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
        dtype=torch.bfloat16,
        device_map={"": "cpu"},
    )
    saved.save_pretrained(tmp_path / "saved")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model, eos_token="<|endoftext|>")
    tokenizer.save_pretrained(tmp_path / "saved")
    config = tmp_path / "saved" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "attn_implementation": "eager"}))
    loaded = load(tmp_path / "saved")
    assert loaded.tokenizer.eos_token == "<|im_end|>"
    assert "its tokenizer's eos_token is '<|endoftext|>', not '<|im_end|>'; the model's" in loaded.applied.note
    assert loaded.module.config._attn_implementation == "sdpa"


def test_a_checkpoint_with_other_positions_is_refused(copy_of, info):
    """They decide how long a prompt may be: before anything is loaded."""
    with pytest.raises(UnsupportedError, match="max_position_embeddings is 512, not 2048"):
        _options(copy_of("gptq").config(max_position_embeddings=512)).check(info, "cpu")


def test_a_worker_knows_whether_the_rows_of_a_local_checkpoint_are_independent(tiny_model, tmp_path):
    """The options of a job have no paths; with those of the worker they read the checkpoint as the plan did."""
    folder = tmp_path / "gptq"
    write_gptq(tiny_model, folder)
    planned = registry().choose("quantizer", Call.parse(f"prequantized({folder})"))
    there = registry().restore("quantizer", planned.use)
    options = located(there.options, input_files(planned.options))
    assert dataclasses.replace(there, options=options).row_independent
