"""Round-to-nearest: each group of weights is rounded to evenly spaced values between its least and greatest."""

import dataclasses
import math

from llmquant import ReplacesLinear


class Rtn(ReplacesLinear):
    def replace(self, layer):
        """Round the weights; they stay bfloat16, so this measures quality and not memory."""
        layer.weight.copy_(round_to_nearest(layer.weight, self.options.bits, self.options.group_size))
        return layer

    def applied(self, module):
        """Count the distinct values in each group: at most 2^bits of them."""
        size = self.options.group_size
        bits = math.ceil(math.log2(max(_most_values(layer.weight, size) for layer in self.replaced(module))))
        return dataclasses.replace(super().applied(module), code=f"uint{bits}", bits=float(bits), block_size=size)


def round_to_nearest(weight, bits, group_size):
    """Round a ``(rows, columns)`` matrix; ``group_size`` neighbours in a row share a scale and an offset."""
    groups = weight.float().reshape(-1, group_size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).clamp(min=1e-12)
    return (((groups - low) / scale).round() * scale + low).reshape(weight.shape).to(weight.dtype)


def _most_values(weight, group_size):
    ordered = weight.detach().reshape(-1, group_size).sort(1).values
    return 1 + int((ordered.diff(dim=1) != 0).sum(1).max())
