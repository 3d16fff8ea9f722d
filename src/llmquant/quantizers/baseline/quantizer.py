"""The baselines: weights loaded in one floating-point type."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.baseline.options import BaselineOptions
from llmquant.quantizers.reading import elements_by_dtype, linear_names

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs


class Baseline(Quantizer[BaselineOptions]):
    """Loads weights as they are, converted to one type."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        return {"dtype": getattr(torch, self.options.dtype)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Read back the type of most parameters; types that the model sets for other parameters are in the note."""
        counts = elements_by_dtype(module)
        code = max(counts, key=lambda name: counts[name])
        others = [f"{counts[name]:,} parameters are {name}" for name in sorted(counts) if name != code]
        return AppliedQuantization(
            method="none",
            code=code,
            bits=8.0 * getattr(torch, code).itemsize,
            compute_dtype=code,
            dtypes=counts,
            layers_quantized=0,
            layers_left=linear_names(module),
            note="; ".join(others),
        )
