"""GPTQ, AWQ and round-to-nearest through GPTQModel, the maintained successor of auto-gptq and autoawq."""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import AutoTokenizer

from llmquant.errors import RunError, UnsupportedError
from llmquant.loading.strict import check_source
from llmquant.models.folder import folder_digest
from llmquant.plugins.quantizer import AppliedQuantization, Quantizer
from llmquant.quantizers.calibration.texts import calibration_tokens
from llmquant.quantizers.gptqmodel.layers import read_gptqmodel_layers
from llmquant.quantizers.gptqmodel.options import AwqOptions, Dtype, GptqOptions, RoundToNearestOptions
from llmquant.quantizers.gptqmodel.settings import prepare_environment
from llmquant.storage.atomic import make_folder
from llmquant.study.experiment import hex_digest

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

# Architectures whose finished layers GPTQModel 7.6 can store and resume from.
_RESUMABLE = frozenset({"llama", "qwen3_moe"})


_Options = TypeVar("_Options", bound=GptqOptions | AwqOptions | RoundToNearestOptions)


class _PackedByGptqModel(Quantizer[_Options]):
    """The shared part of the three quantizers: how their checkpoint is made, loaded and read back."""

    @abstractmethod
    def _config(self) -> Any:  # Any: a QuantizeConfig
        """Translate the options; GPTQModel is imported here, after `prepare_environment`."""

    def prepare(self, model: Path, out: Path, ctx: Context) -> Path:
        prepare_environment(ctx.device)
        return _quantize(model, out, self._config, self.options, ctx)

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        prepare_environment(ctx.device)
        return {"dtype": loaded_dtype(self.options.dtype, ctx.device)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        return read_gptqmodel_layers(module)


class Gptq(_PackedByGptqModel[GptqOptions]):
    """GPTQ (Frantar et al., arXiv:2210.17323)."""

    def _config(self) -> Any:  # Any: see above
        from gptqmodel import QuantizeConfig

        options = self.options
        return QuantizeConfig(
            method="gptq",
            format=options.format,
            bits=options.bits,
            group_size=options.group_size,
            desc_act=options.desc_act,
            sym=options.sym,
            damp_percent=options.damp_percent,
            act_group_aware=options.act_group_aware,
        )


class Awq(_PackedByGptqModel[AwqOptions]):
    """AWQ (Lin et al., arXiv:2306.00978)."""

    def _config(self) -> Any:  # Any: see above
        from gptqmodel import QuantizeConfig

        sym, group_size = not self.options.zero_point, self.options.group_size
        return QuantizeConfig(method="awq", format="gemm", bits=4, group_size=group_size, sym=sym)


class RoundToNearest(_PackedByGptqModel[RoundToNearestOptions]):
    """Rounds every weight to the nearest value that its group can represent."""

    def _config(self) -> Any:  # Any: see above
        from gptqmodel.quantization.config import RTNConfig

        options = self.options
        return RTNConfig(bits=options.bits, group_size=options.group_size, sym=options.sym)


def loaded_dtype(name: Dtype, device: str) -> torch.dtype:
    """Resolve ``auto``: CUDA kernels compute in float16; a CPU is faster in bfloat16 than in float16."""
    if name == "auto":
        name = "float16" if device == "cuda" else "bfloat16"
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _quantize(
    model: Path,
    out: Path,
    make_config: Callable[[], Any],  # Any: a QuantizeConfig
    options: GptqOptions | AwqOptions | RoundToNearestOptions,
    ctx: Context,
) -> Path:
    """Load, calibrate, quantize and write, in the checkpoint's type, or in bfloat16 for a float32 checkpoint.

    For GPTQ and some architectures GPTQModel stores every finished layer; a killed quantization resumes after the last
    stored layer. GPTQModel 7.6 cannot resume AWQ from the layers it stores.
    """
    tokenizer = AutoTokenizer.from_pretrained(model)
    digest, sequences = None, None
    if not isinstance(options, RoundToNearestOptions):
        tokens = calibration_tokens(options, tokenizer, ctx)  # may fail, and importing GPTQModel takes a minute
        tokens.record(out)
        digest = tokens.digest
        sequences = [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in tokens.ids]

    from gptqmodel import BACKEND, GPTQModel
    from gptqmodel.looper.checkpoint_store import CheckpointConfig, CheckpointError
    from gptqmodel.models.auto import MODEL_MAP
    from transformers import AutoConfig

    kind = AutoConfig.from_pretrained(model).model_type
    if kind not in MODEL_MAP:
        raise UnsupportedError(
            f"GPTQModel does not support the architecture {kind!r}",
            hint="Use bnb_4bit_nf4, which supports any model with linear layers.",
        )
    check_source(model, model.name)  # GPTQModel loads layer by layer, and reports no missing weights
    content = folder_digest(model, [path.name for path in model.iterdir()], ctx.cache.digests)
    asked = hex_digest([content, repr(options), digest])
    unfinished = ctx.cache.root / "unfinished" / asked[:32]
    make_folder(unfinished)
    config = make_config()
    config.offload_to_disk_path = str(unfinished / "offload")
    resumable = isinstance(options, GptqOptions) and kind in _RESUMABLE
    layers = CheckpointConfig(path=unfinished / "layers") if resumable else None
    # By default GPTQModel checks AWQ's result with a kernel that needs CUDA.
    backend = BACKEND.AWQ_TORCH if isinstance(options, AwqOptions) and ctx.device == "cpu" else BACKEND.AUTO
    engine = GPTQModel.load(str(model), config, device=ctx.device)
    count = engine.model.config.get_text_config().num_hidden_layers
    engine.layer_callback = lambda layer_idx, submodule_finalized: ctx.progress(layer_idx + 1, count)
    try:
        engine.quantize(sequences, batch_size=1, backend=backend, checkpoint=layers)
    except CheckpointError as error:
        shutil.rmtree(unfinished)
        raise RunError(
            f"GPTQModel cannot resume from the layers of an earlier attempt: {error}",
            hint="Those layers are deleted. Run the same command again to start from the beginning.",
        ) from error
    engine.save(str(out))
    tokenizer.save_pretrained(out)  # GPTQModel writes a tokenizer with changed padding
    shutil.rmtree(unfinished)
    return out
