"""What is saved is what was measured."""

import llmquant as lq
import torch
from llmquant.loading.memory import weight_bytes
from llmquant.testing import tiny_causal_lm
from transformers import AutoModelForCausalLM

from llmquant_newplugin.checkpoint import NewPluginConfig


def test_transformers_loads_what_was_saved(tmp_path, monkeypatch):
    """The numbers of the model that is quantized while it is loaded, in the same memory."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    model, config = tiny_causal_lm(tmp_path / "model"), NewPluginConfig(group_size=16)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16, quantization_config=config)
    lq.quantize(model, "newplugin(group_size=16)", tmp_path / "out", device="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.bfloat16)
    ids = torch.arange(20)[None]
    assert torch.equal(again(ids).logits, loaded(ids).logits)
    assert weight_bytes(again) == weight_bytes(loaded)
