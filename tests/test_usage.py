"""The lines that use a variant work when they are copied."""

from __future__ import annotations

from pathlib import Path

from llmquant.plugins.registry import registry
from llmquant.results.usage import _lines
from llmquant.study.call import Call
from llmquant.study.experiment import ModelUse, Variant


def lines(source: str, preset: str, digest: str = "sha256:0", flags: tuple[str, ...] = ()) -> tuple[str, ...]:
    return _lines(Variant(ModelUse(source, digest, flags), registry().choose("quantizer", Call(preset)).use))


def test_a_file_that_llama_cpp_could_not_load_is_not_recommended(tiny_model: Path):
    """Its pre-tokenizer is unknown there, so the model is loaded in Python."""
    assert lines(str(tiny_model), "gguf_q8_0") == (f'lq.load("{tiny_model}", "gguf_q8_0").module',)


def test_a_model_that_is_not_here_is_not_checked():
    """A report may be read on another machine than the model's."""
    written = lines("./m", "gguf_q8_0")
    assert written == ("llmquant quantize ./m -q gguf_q8_0 -o m-gguf_q8_0.gguf", "llama-server -m m-gguf_q8_0.gguf")


def test_a_revision_and_permissions_are_repeated():
    """Without them the lines would use another commit, or be refused."""
    flags = ("trust_remote_code",)
    assert lines("org/m@v2", "bf16_baseline", "commit:0", flags) == (
        'AutoModelForCausalLM.from_pretrained("org/m", revision="v2", dtype="bfloat16", trust_remote_code=True, '
        'device_map="auto")',
        "vllm serve org/m --revision v2 --dtype bfloat16 --trust-remote-code",
    )
    assert lines("org/m@v2", "bnb_4bit_nf4", "commit:0", flags) == (
        "llmquant quantize org/m@v2 -q bnb_4bit_nf4 -o m-bnb_4bit_nf4 --trust-remote-code",
        'AutoModelForCausalLM.from_pretrained("m-bnb_4bit_nf4", trust_remote_code=True, device_map="auto")',
        "vllm serve m-bnb_4bit_nf4 --trust-remote-code  # pip install vllm-bnb-plugin",
    )
    assert lines("org/m", "hqq_4bit_g64", "commit:0", flags) == (
        'lq.load(lq.ModelRequest("org/m", trust_remote_code=True), "hqq_4bit_g64").module',
    )
