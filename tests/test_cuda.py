"""On a CUDA device every preset loads, holds what was predicted, says what it computes in, and can be measured."""

from __future__ import annotations

import pytest

from llmquant.builtin import QUANTIZERS
from llmquant.models.info import inspect_model
from llmquant.plugins.registry import registry
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest

torch = pytest.importorskip("torch")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]

PRESETS = [name for spec in QUANTIZERS for name in spec.presets or (spec.name,)]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_loads_as_asked_and_as_large_as_predicted(preset, tiny_model, context):
    """Codes and compute types are read back, bytes are within a percent, and the model speaks."""
    from llmquant.loading.causal_lm import load_causal_lm, sanity_check
    from llmquant.loading.memory import weight_bytes

    ctx = context("cuda")
    info = inspect_model(ModelRequest(str(tiny_model)), ctx.cache)
    chosen = registry().choose("quantizer", Call(preset))
    subject = load_causal_lm(tiny_model, info, registry().construct(chosen), chosen.options, ctx)
    assert sanity_check(subject)
    assert subject.module.device.type == "cuda"
    assert subject.load.peak_bytes >= weight_bytes(subject.module).total
    assert weight_bytes(subject.module).total == pytest.approx(chosen.options.weight_bytes(info, "cuda"), rel=0.01)
    if preset in ("bnb_4bit_nf4", "bnb_4bit_fp4"):
        assert subject.applied.compute_dtype == "bfloat16"


def test_one_command_compares_on_the_gpu(tiny_model, tmp_path, monkeypatch):
    """Memory, latency and throughput complete in a worker that has the GPU, and name it."""
    import llmquant as lq

    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    evaluators = [
        "memory(prompt_tokens=16, decode_tokens=2)",
        "latency(prompt_tokens=[16], decode_tokens=4, warmup=1, repeats=3)",
        "throughput(batches=[1, 4], prompt_tokens=16, new_tokens=4, warmup=1, repeats=3)",
    ]
    found = lq.compare(
        str(tiny_model), ["bnb_8bit", "bnb_4bit_nf4"], evaluators, store=tmp_path / "store", progress=False
    )
    assert not found.failed
    assert {e.hardware for e in found.record.experiments} == {torch.cuda.get_device_name().removeprefix("NVIDIA ")}
