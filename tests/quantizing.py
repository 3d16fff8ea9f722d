"""What tests of methods that quantize on loading share: loading under one, and models that are not the plainest."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from llmquant.models.headers import TensorInfo
from llmquant.models.info import ModelInfo, inspect_model
from llmquant.study.experiment import ModelRequest


def load_as(heavy, options, folder: Path, ctx):
    """Check and load the checkpoint in `folder`, as a job would."""
    from llmquant.loading.causal_lm import load_causal_lm

    info = inspect_model(ModelRequest(str(folder)), ctx.cache)
    options.check(info, ctx.device)
    return load_causal_lm(folder, info, heavy(options), options, ctx)


def quantize_once(quantizer, folder: Path, out: Path, ctx):
    """Check and quantize the checkpoint in `folder` into `out`, unless it is there already, and load the result."""
    from llmquant.loading.causal_lm import load_causal_lm

    info = inspect_model(ModelRequest(str(folder)), ctx.cache)
    quantizer.options.check(info, ctx.device)
    if not any(out.iterdir()):
        assert quantizer.prepare(folder, out, ctx) == out
    return load_causal_lm(out, info, quantizer, quantizer.options, ctx)


def stored_as_said(model) -> bool:
    """Tell whether the elements of `AppliedQuantization.dtypes` take the bytes that the weights hold."""
    import torch

    from llmquant.loading.memory import weight_bytes

    held = weight_bytes(model.module)
    said = sum(getattr(torch, dtype).itemsize * elements for dtype, elements in model.applied.dtypes.items())
    return said == held.parameters + held.quantization_state


def told(applied):
    """Leave out the stored elements, which change where a kernel repacks its layer in the first forward pass."""
    return replace(applied, dtypes={})


def logits(module):
    """Read a sentence of 17 tokens."""
    import torch

    with torch.no_grad():
        return module(torch.arange(3, 20)[None]).logits.float()


def write_untied(folder: Path, tokenizer_from: Path, hidden_size: int = 160) -> Path:
    """Write a model with biases, a head of its own and widths of more than one kind."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        initializer_range=0.1,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = Qwen2ForCausalLM(config)
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def force_packing(monkeypatch, *, packs: bool) -> None:
    """Show bitsandbytes, and the prediction, a CPU with or without AVX512-BF16."""
    import bitsandbytes

    from llmquant.quantizers.bitsandbytes import options as bitsandbytes_options

    flags = frozenset({"avx512_bf16"} if packs else ())
    monkeypatch.setattr(bitsandbytes_options, "cpu_flags", lambda: flags)
    for module in (bitsandbytes.functional, bitsandbytes.nn.modules):
        monkeypatch.setattr(module, "has_avx512bf16", lambda: packs)


def made_up(rows: int, columns: int, **config) -> ModelInfo:
    """Describe a model of one linear layer that is nowhere."""
    layer = TensorInfo("model.layers.0.mlp.up_proj.weight", "bfloat16", (rows, columns))
    return ModelInfo("made-up", "sha256:0", (), "folder", None, None, None, config, (layer,), (), 0)


QUANTIZED = made_up(64, 64, quantization_config={"quant_method": "awq", "bits": 4})
GPT2 = made_up(64, 64, model_type="gpt2")
EMPTY = ModelInfo("m", "sha256:0", (), "folder", None, None, None, {}, (TensorInfo("a", "float32", (2, 2)),), (), 0)
