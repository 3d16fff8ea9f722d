"""Round-to-nearest: each group of weights is rounded to evenly spaced values between its least and greatest."""

import math

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmquant import AppliedQuantization


class Rtn:
    def __init__(self, options):
        self.options = options

    def prepare(self, model, out, ctx):
        """Write a checkpoint of rounded weights; they stay bfloat16, so this measures quality and not memory."""
        module = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
        for layer in _linears(module):
            layer.weight.data = round_to_nearest(layer.weight.data, self.options.bits, self.options.group_size)
        module.save_pretrained(out)
        AutoTokenizer.from_pretrained(model).save_pretrained(out)
        return out

    def load_kwargs(self, model, ctx):
        return {"dtype": torch.bfloat16}

    def applied(self, module):
        """Count the distinct values in each group: at most 2^bits of them."""
        linears = _linears(module)
        bits = math.ceil(math.log2(max(_most_values(layer.weight, self.options.group_size) for layer in linears)))
        return AppliedQuantization(
            method="rtn",
            code=f"uint{bits}",
            bits=float(bits),
            block_size=self.options.group_size,
            double_quantization=False,
            compute_dtype="bfloat16",
            dtypes={"bfloat16": sum(p.numel() for p in module.parameters())},
            layers_quantized=len(linears),
            note="simulated: the weights are stored as bfloat16",
        )


def round_to_nearest(weight, bits, group_size):
    """Round a ``(rows, columns)`` matrix; ``group_size`` neighbours in a row share a scale and an offset."""
    groups = weight.float().reshape(-1, group_size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((groups - low) / scale).round() * scale + low).reshape(weight.shape).to(weight.dtype)


def _linears(module):
    head = module.get_output_embeddings()
    return [layer for layer in module.modules() if isinstance(layer, torch.nn.Linear) and layer is not head]


def _most_values(weight, group_size):
    ordered = weight.detach().reshape(-1, group_size).sort(1).values
    return 1 + int((ordered.diff(dim=1) != 0).sum(1).max())
