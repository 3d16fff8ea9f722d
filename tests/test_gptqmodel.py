"""GPTQ, AWQ and round-to-nearest through the real engine, on a tiny model."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from edits import edit_json
from llmquant.errors import OptionError, RunError, UnsupportedError
from llmquant.models.info import inspect_model
from llmquant.plugins.context import Context
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, InputFile, ModelRequest

TEXT = "A lighthouse keeper counted the ships that passed before dawn, and wrote each name into a green ledger. "
CALIBRATION = {"calibration": [TEXT * 8, TEXT.upper() * 8], "samples": 8, "sequence_length": 32}
CALLS = {
    "gptq": Call("gptq", (), {"group_size": 32, **CALIBRATION}),
    "gptq desc_act": Call("gptq", (), {"group_size": 32, "desc_act": True, "sym": False, **CALIBRATION}),
    "gptq 3 bit": Call("gptq", (), {"bits": 3, "group_size": 32, **CALIBRATION}),
    "awq": Call("awq", (), {"group_size": 32, **CALIBRATION}),
    "rtn": Call("round_to_nearest", (), {"group_size": 32}),
}


@pytest.fixture(scope="module")
def small_model(tiny_model, tmp_path_factory):
    """Build a Llama whose every layer has 64 outputs or more, as AWQ needs."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("models") / "small-llama"
    config = LlamaConfig.from_pretrained(tiny_model, num_key_value_heads=4)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def quantized(small_model, tmp_path_factory):
    """Quantize once, in this process, and load what came out: (LoadedModel, folder) by name."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    from llmquant.loading.causal_lm import load_causal_lm

    found = {}
    for name, call in CALLS.items():
        folder = tmp_path_factory.mktemp("gptqmodel")
        out = folder / "out"
        out.mkdir()
        ctx = Context("cpu", 0, Documents(), Cache(folder / "cache"), {}, None, folder, lambda done, total: None)
        chosen = registry().choose("quantizer", call)
        info = inspect_model(ModelRequest(str(small_model)), ctx.cache)
        chosen.options.check(info, "cpu")
        heavy = registry().construct(chosen)
        with contextlib.chdir(folder):  # GPTQModel writes logs where it is started
            assert heavy.prepare(small_model, out, ctx) == out
        found[name] = (load_causal_lm(out, info, heavy, chosen.options, ctx), out)
    return found


def _logits(module):
    import torch

    with torch.inference_mode():
        return module(torch.arange(20)[None]).logits.float()


@pytest.mark.parametrize("name", CALLS)
def test_what_was_asked_is_in_the_weights(quantized, name):
    """Bits and group size are read back from the packed tensors; embeddings and head stay."""
    applied = quantized[name][0].applied
    assert applied.block_size == 32
    assert applied.bits == (3.0 if name == "gptq 3 bit" else 4.0)
    assert applied.method == ("awq" if name == "awq" else "gptq")
    assert (applied.layers_quantized, applied.layers_left) == (14, ("lm_head",))
    assert ("desc_act" in applied.note) == (name == "gptq desc_act")


@pytest.mark.parametrize("name", CALLS)
def test_reading_back_does_not_depend_on_a_forward_pass(quantized, name):
    """A kernel that repacks its codes in the first pass holds the same numbers, in other dtypes."""
    subject = quantized[name][0]
    _logits(subject.module)
    chosen = registry().choose("quantizer", CALLS[name])
    after = registry().construct(chosen).applied(subject.module)
    assert replace(after, dtypes={}) == replace(subject.applied, dtypes={})


@pytest.mark.parametrize("name", CALLS)
def test_predicted_bytes_are_the_bytes_held(quantized, name):
    """Within 1 % of what the loaded model holds once it has run."""
    from llmquant.loading.memory import weight_bytes

    subject = quantized[name][0]
    _logits(subject.module)
    predicted = registry().choose("quantizer", CALLS[name]).options.weight_bytes(subject.info, "cpu")
    assert predicted == pytest.approx(weight_bytes(subject.module).total, rel=0.01)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_plain_transformers_loads_the_checkpoint(quantized, name):
    """With the same logits, and the tokenizer as it was."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    subject, folder = quantized[name]
    again = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map={"": "cpu"})
    assert torch.equal(_logits(again), _logits(subject.module))
    assert AutoTokenizer.from_pretrained(folder).pad_token is None


@pytest.mark.parametrize(("name", "method"), [("gptq", "gptq"), ("awq", "awq")])
def test_the_layout_is_the_one_that_vllm_documents(quantized, name, method):
    """``quant_method``, bits and group size in config.json; int32 codes and zero points, a scale a group."""
    from safetensors import safe_open

    folder = quantized[name][1]
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["bits"], config["group_size"]) == (method, 4, 32)
    if method == "awq":
        assert (config["zero_point"], config["version"]) == (True, "gemm")
    with safe_open(folder / "model.safetensors", "pt") as file:
        held = {
            part: file.get_tensor(f"model.layers.0.mlp.down_proj.{part}") for part in ("qweight", "qzeros", "scales")
        }
        layer = {part: (tensor.dtype, tuple(tensor.shape)) for part, tensor in held.items()}
    import torch

    codes = (128 // 8, 64) if method == "gptq" else (128, 64 // 8)
    assert layer["qweight"] == (torch.int32, codes)
    assert layer["qzeros"] == (torch.int32, (128 // 32, 64 // 8))
    assert layer["scales"][1] == (128 // 32, 64)


@pytest.mark.parametrize("name", ["gptq", "gptq desc_act", "awq", "rtn"])
def test_four_bits_stay_close_to_the_model(quantized, name, small_model):
    """Closer than three bits, and far closer than another model would be."""
    import torch
    from transformers import AutoModelForCausalLM

    exact = _logits(AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32))

    def distance(key: str) -> float:
        return float((_logits(quantized[key][0].module) - exact).norm() / exact.norm())

    assert distance(name) < distance("gptq 3 bit") < 1


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_the_weights_are_those_of_the_engines_own_example(quantized, small_model, name, tmp_path, context, monkeypatch):
    """Load, quantize, save, as GPTQModel's own pages have it, on the same sequences: equal to the bit."""
    import torch
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    from llmquant.quantizers.calibration.texts import calibration_tokens

    monkeypatch.chdir(tmp_path)  # GPTQModel writes logs where it is started
    options = registry().choose("quantizer", CALLS[name]).options
    sequences = calibration_tokens(options, AutoTokenizer.from_pretrained(small_model), context()).ids
    if name == "gptq":
        config, backend = QuantizeConfig(bits=4, group_size=32, damp_percent=0.1), BACKEND.AUTO
    else:
        config = QuantizeConfig(method="awq", format="gemm", bits=4, group_size=32, sym=False)
        backend = BACKEND.AWQ_TORCH
    model = GPTQModel.load(str(small_model), config, device="cpu")
    model.quantize([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in sequences], backend=backend)
    model.save(str(tmp_path / "by-hand"))
    ours, theirs = (load_file(f / "model.safetensors") for f in (quantized[name][1], tmp_path / "by-hand"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_checkpoint_says_what_it_was_calibrated_on(quantized):
    """Source, sizes, and the digest of the very tokens."""
    folder = quantized["gptq"][1]
    said = json.loads((folder / "calibration.json").read_text())
    assert (said["source"], said["samples"], said["sequence_length"]) == ("2 texts", 8, 32)
    assert said["tokens_digest"].startswith("sha256:")
    assert said["tokens_digest"] == json.loads((quantized["awq"][1] / "calibration.json").read_text())["tokens_digest"]


_KILLED = """
import os, signal, sys
from pathlib import Path
from llmquant.storage.cache import Cache
from llmquant.study.experiment import Documents
from llmquant.plugins.context import Context
from llmquant.quantizers.gptqmodel.quantizer import Gptq
from llmquant.quantizers.gptqmodel.options import GptqOptions
from test_gptqmodel import CALIBRATION

model, out, cache, kill_at = sys.argv[1:]


def progress(done, total):
    print(f"<told {done}>", flush=True)
    if done == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)


options = GptqOptions(group_size=32, **{**CALIBRATION, "calibration": tuple(CALIBRATION["calibration"])})
ctx = Context("cpu", 0, Documents(), Cache(Path(cache)), {}, None, Path(out), progress)
Path(out).mkdir()
Gptq(options).prepare(Path(model), Path(out), ctx)
"""


@pytest.mark.slow
def test_a_killed_quantization_goes_on_after_the_last_whole_layer(quantized, small_model, tmp_path):
    """To the same weights; what it had kept is deleted then."""
    import torch
    from safetensors.torch import load_file

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path)}

    def run(out: str, kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", _KILLED, str(small_model), str(tmp_path / out), str(tmp_path / "cache")]
        return subprocess.run(
            [*command, str(kill_at)], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert run("killed", 2).returncode == -signal.SIGKILL
    again = run("again", 0)
    assert again.returncode == 0, again.stderr
    assert "<told 1>" not in again.stdout
    assert "<told 2>" in again.stdout
    whole, resumed = (load_file(f / "model.safetensors") for f in (quantized["gptq"][1], tmp_path / "again"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not list((tmp_path / "cache").glob("unfinished/*"))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("gptq_4bit_g128", "group size of 128 does not divide 64"),
        ("awq_4bit_g128", "Group sizes that fit: 32, 64"),
        ("awq(group_size=32)", "needs multiples of 64 x 1"),
        ("gptq(group_size=-1)", "supports groups of 32, 64 or 128, not -1"),
        ("gptq(group_size=32, sequence_length=4096)", "reads at most 2048 tokens"),
        ("gptq(group_size=32, calibration=no-such-file.txt)", "there is no file 'no-such-file.txt'"),
    ],
)
def test_what_cannot_work_is_refused_before_loading(call, message, tiny_model, context):
    """Widths, lengths and texts, with what would fit."""
    info = inspect_model(ModelRequest(str(tiny_model)), context().cache)
    options = registry().choose("quantizer", Call.parse(call)).options
    with pytest.raises((UnsupportedError, OptionError)) as caught:
        options.check(info, "cpu")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("gptq(damp_percent=1.5)", "damp_percent must be between 0 and 1"),
        ("gptq(desc_act=true, act_group_aware=true)", "both are on"),
        ("gptq(samples=0)", "samples must be at least 1"),
        ("awq(group_size=256)", "group_size is 256"),
    ],
)
def test_wrong_options_are_refused(call, message):
    """Naming the value."""
    with pytest.raises(OptionError, match=message):
        registry().choose("quantizer", Call.parse(call))


def test_an_architecture_the_engine_does_not_know_is_refused_before_calibration(tiny_model, context, tmp_path):
    """Naming the architecture, and what works."""
    pytest.importorskip("gptqmodel", reason="needs llmquant[gptq]")
    import shutil

    shutil.copytree(tiny_model, tmp_path / "model")
    edit_json(tmp_path / "model" / "config.json", model_type="ctrl")
    heavy = registry().construct(registry().choose("quantizer", CALLS["gptq"]))
    with pytest.raises(UnsupportedError, match="architecture 'ctrl'"):
        heavy.prepare(tmp_path / "model", tmp_path, context())


class TestCalibration:
    """The same text, seed and tokenizer always give the same tokens."""

    @pytest.fixture
    def tokens(self, tiny_model, context):
        """Return a function that draws calibration tokens."""
        from transformers import AutoTokenizer

        from llmquant.quantizers.calibration.texts import calibration_tokens

        tokenizer = AutoTokenizer.from_pretrained(tiny_model)

        def draw(**changes):
            options = registry().choose("quantizer", CALLS["gptq"]).options
            return calibration_tokens(replace(options, **changes), tokenizer, context())

        return draw

    def test_equal_seeds_give_equal_tokens(self, tokens):
        """And others another choice."""
        assert tokens() == tokens()
        text = (" ".join(map(str, range(500))),)
        assert tokens(calibration=text).digest != tokens(calibration=text, calibration_seed=1).digest

    def test_sequences_are_whole(self, tokens):
        """As many and as long as was asked, without padding."""
        found = tokens(samples=5, sequence_length=20)
        assert [len(ids) for ids in found.ids] == [20] * 5

    def test_a_file_and_its_text_give_the_same_tokens(self, tokens, tmp_path):
        """It is the content that counts."""
        (tmp_path / "text.txt").write_text(TEXT * 20)
        (tmp_path / "text.jsonl").write_text(json.dumps({"text": TEXT * 20}) + "\n")
        files = [InputFile.read(tmp_path / name) for name in ("text.txt", "text.jsonl")]
        assert len({tokens(calibration=given).digest for given in (*files, (TEXT * 20,))}) == 1

    def test_too_little_text_says_how_much_there_is(self, tokens):
        """So that one can ask for what fits."""
        with pytest.raises(RunError, match=r"fills \d sequences? of 32 tokens, and 100 are needed\n.*samples=\d"):
            tokens(samples=100, calibration=(TEXT * 3,))
