"""The heavy half: two 4-bit weights per byte, unpacked in every forward pass; outlier columns are scaled first."""

import dataclasses

import torch
from llmquant import ReplacesLinear


class PackedLinear(torch.nn.Module):
    """A linear layer whose weights are ``(codes * scale + offset) * columns``."""

    # llmquant counts these tensors as quantization state, and the others as weights.
    quantization_state = ("scale", "offset", "columns")

    def __init__(self, in_features, out_features, group_size, *, bias, device):
        super().__init__()
        self.in_features, self.out_features, self.group_size = in_features, out_features, group_size
        per_group = (out_features, in_features // group_size, 1)
        self.register_buffer("codes", torch.zeros(out_features, in_features // 2, dtype=torch.uint8, device=device))
        self.register_buffer("scale", torch.zeros(per_group, dtype=torch.bfloat16, device=device))
        self.register_buffer("offset", torch.zeros(per_group, dtype=torch.bfloat16, device=device))
        self.register_buffer("columns", torch.ones(in_features, dtype=torch.bfloat16, device=device))
        self.bias = torch.nn.Parameter(torch.zeros(out_features, device=device)) if bias else None

    @classmethod
    def like(cls, layer, group_size):
        """Return an empty layer of the shape of `layer`."""
        bias, device = layer.bias is not None, layer.weight.device
        return cls(layer.in_features, layer.out_features, group_size, bias=bias, device=device)

    @classmethod
    def quantized(cls, layer, group_size):
        """Scale the columns, then round each weight to one of 16 evenly spaced values of its group."""
        packed = cls.like(layer, group_size)
        packed.columns = column_scales(layer.weight.float()).bfloat16()
        groups = (layer.weight.float() / packed.columns.float()).reshape(packed.out_features, -1, group_size)
        least, greatest = groups.aminmax(dim=-1, keepdim=True)
        packed.scale = ((greatest - least) / 15).clamp(min=1e-8).bfloat16()
        packed.offset = least.bfloat16()
        codes = ((groups - packed.offset.float()) / packed.scale.float()).round().clamp(0, 15).byte()
        codes = codes.reshape(packed.out_features, -1)
        packed.codes = codes[:, ::2] | codes[:, 1::2] << 4
        packed.bias = layer.bias
        return packed

    def weight(self):
        """Unpack the weights, ``(out_features, in_features)``."""
        codes = torch.stack([self.codes & 15, self.codes >> 4], dim=-1)
        groups = codes.reshape(self.out_features, -1, self.group_size).to(self.scale.dtype)
        return (groups * self.scale + self.offset).reshape(self.out_features, self.in_features) * self.columns

    def forward(self, inputs):
        """Multiply with the unpacked weights."""
        return torch.nn.functional.linear(inputs, self.weight().to(inputs.dtype), self.bias)


def column_scales(weight, steps=4):
    """Return one scale per column of a ``(rows, columns)`` matrix, by Sinkhorn's iteration.

    Rows and columns are divided by their standard deviation in turn, until both are even: then an outlier widens the
    steps of few weights. The scales of rows are left out, because every group has a scale already.
    """
    columns = torch.ones(weight.shape[1], device=weight.device)
    for _ in range(steps):
        rows = (weight / columns).std(1, keepdim=True).clamp(min=1e-8)
        columns *= (weight / rows / columns).std(0).clamp(min=1e-8)
    return columns / columns.log().mean().exp()


class Sinq(ReplacesLinear):
    """Replaces every linear layer except the head."""

    def replace(self, layer):
        """Return the packed layer."""
        return PackedLinear.quantized(layer, self.options.group_size)

    def applied(self, module):
        """Add what only the layers know to what llmquant counted: a byte holds two codes."""
        (group_size,) = {layer.group_size for layer in self.replaced(module)}
        found = super().applied(module)
        return dataclasses.replace(found, method="sinq", code="uint4", block_size=group_size)
