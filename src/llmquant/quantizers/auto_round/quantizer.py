"""AutoRound: weights rounded so that the output of each block of the model changes as little as possible."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from llmquant.errors import NotHonouredError
from llmquant.loading.memory import stored_elements
from llmquant.loading.strict import load_causal
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.auto_round.options import AutoRoundOptions
from llmquant.quantizers.calibration.texts import calibration_tokens
from llmquant.quantizers.gptqmodel.quantizer import loaded_dtype
from llmquant.quantizers.reading import dtype_name, linear_names, only

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs


class AutoRound(Quantizer[AutoRoundOptions]):
    """Intel's AutoRound, in its own checkpoint format."""

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        """Tune the rounding block by block and write the checkpoint to `out`.

        On a CPU without bfloat16 auto-round stores weights that are not quantized in float32.
        """
        options = self.options
        tokenizer = AutoTokenizer.from_pretrained(model)
        tokens = calibration_tokens(options, tokenizer, ctx)
        _quiet()
        import auto_round

        engine = auto_round.AutoRound(
            load_causal(model, model.name, {"dtype": "auto"}, allow_pickle=True),
            tokenizer,
            scheme=auto_round.QuantizationScheme(bits=options.bits, group_size=options.group_size),
            alg_configs=auto_round.SignRoundConfig(iters=options.iters),
            dataset=[torch.tensor([ids]) for ids in tokens.ids],
            nsamples=options.samples,
            seqlen=options.sequence_length,
            seed=ctx.seed,
            device_map=ctx.device,
            enable_torch_compile=False,
        )
        engine.quantize()
        # quantize_and_save would add a separate folder below `out`.
        engine.save_quantized(str(out), format="auto_round", inplace=True)
        tokens.record(out)
        return out

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        _quiet()
        return {"dtype": loaded_dtype(self.options.dtype, ctx.device)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        layers = [child for child in module.modules() if hasattr(child, "qweight") and hasattr(child, "scales")]
        if not layers:
            raise NotHonouredError("no layer holds packed weights")
        bits = only((32 * layer.qweight.numel() // _weights(layer) for layer in layers), "bits")
        group_size = only((_weights(layer) // layer.scales.numel() for layer in layers), "group size")
        kernel = only((f"{type(layer).__module__}.{type(layer).__name__}" for layer in layers), "kernel")
        return AppliedQuantization(
            method="auto-round",
            code=f"int{bits}",
            bits=float(bits),
            block_size=group_size,
            compute_dtype=only((dtype_name(p.dtype) for p in module.parameters()), "type of other weights"),
            dtypes=stored_elements(module),
            layers_quantized=len(layers),
            layers_left=linear_names(module),
            note=f"kernel {kernel}",
        )


def _weights(layer: Any) -> int:  # Any: a packed layer of auto-round or GPTQModel, whose width attributes differ
    if hasattr(layer, "infeatures"):
        return int(layer.infeatures * layer.outfeatures)
    return int(layer.in_features * layer.out_features)


def _quiet() -> None:
    """Hide auto-round's banners and advice; auto-round reads the level on import. The user's own setting stays."""
    os.environ.setdefault("AR_LOG_LEVEL", "ERROR")
