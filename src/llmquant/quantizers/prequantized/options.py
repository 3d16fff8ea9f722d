"""Options for a checkpoint quantized outside llmquant: its location, and whether it belongs to the model."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from llmquant.errors import MissingDependencyError, ModelError, OptionError, UnsupportedError
from llmquant.models.causal import FUNCTION_SETTINGS
from llmquant.models.folder import read_json
from llmquant.models.headers import DTYPE_BYTES, TensorInfo
from llmquant.models.info import ModelInfo, auto_gptq_settings, inspect_model
from llmquant.plugins.registry import Chosen, registry
from llmquant.quantizers.bitsandbytes.options import OFFSET_BYTES, fits_packed, packed_state_bytes, packs_on
from llmquant.quantizers.fitting import WHOLE_ROW, check_group_size
from llmquant.quantizers.gptqmodel.options import CPU_GROUPS_4_BIT, Dtype
from llmquant.quantizers.plain_weights import plain_bytes
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Digest, InputFile, ModelRequest

# By method: the packages that load it, and the line that installs them.
_BACKENDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "gptq": (("gptqmodel", "optimum"), 'pip install "llmquant[gptq]"'),
    "awq": (("gptqmodel",), 'pip install "llmquant[gptq]"'),
    "bitsandbytes": (("bitsandbytes",), 'pip install "llmquant[local]"'),
    "compressed-tensors": (("compressed_tensors",), 'pip install "llmquant[compressed-tensors]"'),
}
# Layouts that GPTQModel's kernels support on a CPU, and group sizes that they support on any device.
_CPU_LAYOUTS = {"gptq": ("gptq", "gptq_v2"), "awq": ("gemm",)}
_GROUP_SIZES = {"gptq": (WHOLE_ROW, 16, 32, 64, 128, 256, 512, 1024), "awq": (WHOLE_ROW, 16, 32, 64, 128)}
_WORD_BITS = 32
# Tensors that keep their stored type whatever the type of the others, and among them those that loading only reads.
_STATE = re.compile(r"\.(scales|SCB|weight_format|weight_(scale|zero_point|shape|g_idx))$|\.weight\.")
_DROPPED = re.compile(r"\.weight_format$|\.quant_state\.")
# Numbers of 4 bytes in the table that a layer of GPTQModel keeps to unpack itself, by bits.
_SHIFTS = {2: 16, 3: 36, 4: 8, 8: 4}


@dataclass(frozen=True)
class Checkpoint(InputFile):
    """A quantized checkpoint: a local folder, identified by content, or a Hub repository, identified by commit.

    Attributes:
        digest: ``sha256:<hex>`` of a folder, ``commit:<sha>`` on the Hub.
        name: the folder's name, or the Hub id as the user wrote it.
        path: the folder; ``None`` on the Hub and on a worker.
    """

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Digest the folder at `path` or, where there is none, find the commit behind the Hub id.

        Raises:
            ModelError: if `path` is neither a folder nor a Hub id, or its checkpoint is unusable.
            OptionError: if `path` is a file.
        """
        cache = Cache.default()
        if path.is_file():
            raise OptionError(f"{path} is a file, not a checkpoint's folder")
        if path.is_dir():
            folder = path.resolve()
            return cls(Digest(inspect_model(ModelRequest(str(folder)), cache).digest), folder.name, folder)
        try:
            return cls(Digest(inspect_model(ModelRequest(path.as_posix()), cache).digest), path.as_posix())
        except ModelError as error:
            raise ModelError(
                f"{path} is neither a folder here nor a checkpoint on the Hub: {error.message}", hint=error.hint
            ) from error

    def source(self, inputs: Mapping[Digest, Path]) -> str:
        """Return the location for `inspect_model`: the folder, or the Hub id at the commit.

        Args:
            inputs: paths of folders on a worker, by content digest.
        """
        if self.digest.startswith("commit:"):
            return f"{self.name.partition('@')[0]}@{self.digest.removeprefix('commit:')}"
        return str(self.path or inputs[self.digest])


@dataclass(frozen=True)
class PrequantizedOptions:
    """A checkpoint of the model that is quantized already, by GPTQ, AWQ, bitsandbytes, compressed-tensors or a plugin.

    Attributes:
        checkpoint: a folder, or a Hub id with an optional ``@revision``, for example ``org/model-GPTQ@main``.
        dtype: type of everything that is not quantized. ``auto`` is float16 on CUDA and bfloat16 on a CPU.
    """

    checkpoint: Checkpoint
    dtype: Dtype = "auto"

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse a checkpoint that is not quantized, belongs to another model, or cannot be loaded on the device.

        Raises:
            UnsupportedError: naming the reason.
            MissingDependencyError: if the packages that load the checkpoint are missing.
        """
        found = self._info()
        settings = quantization_settings(found)
        name = self.checkpoint.name
        if not settings:
            raise UnsupportedError(f"{name} is not quantized", hint="Use it as a separate model.")
        _check_same(model, found, name)
        method = str(settings.get("quant_method"))
        chosen = plugin_of(settings)
        if chosen is not None:
            missing_package = registry().missing(chosen.plugin)
            if missing_package is not None:
                raise missing_package
            chosen.ask("check", model, device)
            return
        if method not in _BACKENDS:
            raise UnsupportedError(
                f"{name} is quantized by {method!r}",
                hint=f"Supported methods: {', '.join(_BACKENDS)}, and those of plugins that write checkpoints.",
            )
        packages, line = _BACKENDS[method]
        missing = [package for package in packages if importlib.util.find_spec(package) is None]
        if missing:
            raise MissingDependencyError(
                f"{name} is quantized by {method}, which needs {' and '.join(missing)}", hint=f"Run: {line}"
            )
        if method in _GROUP_SIZES:
            _check_packed(found, settings, name, device)

    def row_independent(self) -> bool:
        """Return whether a batch's rows are independent: not in LLM.int8, and not if all inputs share a scale."""
        settings = quantization_settings(self._info())
        groups = [group for group in (settings.get("config_groups") or {}).values() if isinstance(group, Mapping)]
        inputs = [group.get("input_activations") or {} for group in groups]
        shared = any(found.get("dynamic") is True and found.get("strategy") == "tensor" for found in inputs)
        chosen = plugin_of(settings)
        return not (settings.get("load_in_8bit") or shared) and (chosen is None or chosen.row_independent)

    def weight_bytes(self, model: ModelInfo, device: str) -> int:
        """Predict the bytes of the weights after the first forward pass, in which some backends unpack layers."""
        found = self._info()
        settings = quantization_settings(found)
        method = settings.get("quant_method")
        width = 4 if self.dtype == "float32" else 2
        state = [tensor for tensor in found.weights if _STATE.search(tensor.name)]
        kept = sum(t.elements * DTYPE_BYTES.get(t.dtype, 2) for t in state if not _DROPPED.search(t.name))
        if method == "compressed-tensors":  # its layers are dequantized
            return kept + plain_bytes(model, width)
        settled = 0
        if method in _GROUP_SIZES:
            settled = _unpacked_bytes(found, settings, device)
        elif settings.get("load_in_4bit"):
            settled = _settled_4bit_bytes(model, found, settings, device, width)
        return kept + plain_bytes(found, width, quantized=state) + settled

    def served_bytes(self, model: ModelInfo) -> int | None:
        """Add up the checkpoint's tensors where its layers are dequantized here; ``None`` for other methods."""
        found = self._info()
        if quantization_settings(found).get("quant_method") != "compressed-tensors":
            return None
        return sum(tensor.elements * DTYPE_BYTES.get(tensor.dtype, 2) for tensor in found.weights)

    def _info(self) -> ModelInfo:
        return _inspect_once(self.checkpoint.source({}), self.checkpoint.digest)


def quantization_settings(info: ModelInfo) -> Mapping[str, Any]:  # Any: a JSON object
    """Return a checkpoint's quantization settings from ``config.json``, or else from auto-gptq's own file.

    Returns:
        The settings, with their ``quant_method``; nothing for a checkpoint that is not quantized.
    """
    beside = None if info.quantization_config else auto_gptq_settings(info)
    return info.quantization_config if beside is None else {"quant_method": "gptq", **read_json(beside)}


def plugin_of(settings: Mapping[str, Any]) -> Chosen | None:  # Any: a JSON object
    """Return the plugin that writes checkpoints with these settings, and its options; ``None`` if none does."""
    method = str(settings.get("quant_method"))
    if not registry().offers("quantizer", method):
        return None
    plugin, _ = registry().find("quantizer", method)
    if plugin.package == "llmquant" or not plugin.spec.checkpoint:
        return None
    names = {option.name for option in fields(registry().options_class(plugin))}
    given = {name: value for name, value in settings.items() if name in names}
    return registry().choose("quantizer", Call(plugin.full_name, (), given))


@functools.cache
def _inspect_once(source: str, digest: Digest) -> ModelInfo:
    """Read a checkpoint's headers once per plan, because a Hub checkpoint takes several requests."""
    return inspect_model(ModelRequest(source), Cache.default())


def _check_same(model: ModelInfo, found: ModelInfo, name: str) -> None:
    ours, theirs = model.text_config, found.text_config
    differ = [
        f"{key} is {theirs[key]}, not {ours[key]}"
        for key in FUNCTION_SETTINGS
        if ours.get(key) is not None and theirs.get(key) is not None and ours[key] != theirs[key]
    ]
    if differ:
        raise UnsupportedError(
            f"{name} was not made from {model.source}: {'; '.join(differ)}",
            hint="Use the model that the checkpoint was made from.",
        )


def _check_packed(found: ModelInfo, settings: Mapping[str, Any], name: str, device: str) -> None:  # Any: a JSON object
    """Refuse checkpoints that GPTQModel would not load, or that would fail in the first forward pass."""
    method = settings["quant_method"]
    said = (settings.get(key) for key in ("checkpoint_format", "format", "version"))
    layout = next((str(value).lower() for value in said if value), _CPU_LAYOUTS[method][0])
    if device not in ("cpu", "cuda") or (device == "cpu" and layout not in _CPU_LAYOUTS[method]):
        raise UnsupportedError(
            f"{name} holds {method} in the layout {layout!r}, for which there is no kernel on {device}",
            hint=f"On a CPU: {', '.join(_CPU_LAYOUTS[method])}.",
        )
    group_size = settings.get("group_size", 128)
    if group_size not in _GROUP_SIZES[method]:
        raise UnsupportedError(
            f"{name} has groups of {group_size}, for which GPTQModel has no {method} kernel",
            hint=f"Supported group sizes: {', '.join(map(str, _GROUP_SIZES[method]))}.",
        )
    check_group_size(found, _packed_layers(found, settings), group_size)


def _packed_layers(found: ModelInfo, settings: Mapping[str, Any]) -> list[TensorInfo]:  # Any: a JSON object
    """Return the packed layers with the shapes of their weights: GPTQ packs along the inputs, AWQ along the outputs."""
    per_word = _WORD_BITS / settings.get("bits", 4)
    return [
        replace(t, shape=(t.shape[1], int(t.shape[0] * per_word)))
        if settings["quant_method"] == "gptq"
        else replace(t, shape=(int(t.shape[1] * per_word), t.shape[0]))
        for t in found.weights
        if t.name.endswith(".qweight")
    ]


def _settled_4bit_bytes(
    model: ModelInfo,
    found: ModelInfo,
    settings: Mapping[str, Any],  # Any: a JSON object
    device: str,
    width: int,
) -> int:
    """Predict the bytes that bitsandbytes' 4-bit layers add to the stored ones in the first forward pass.

    Args:
        width: bytes per unquantized number.
    """
    shapes = {layer.name: layer.shape for layer in model.linear_layers()}
    elements = {tensor.name: tensor.elements for tensor in found.weights}
    nested = bool(settings.get("bnb_4bit_use_double_quant"))
    widened = 2 if width == 2 and settings.get("bnb_4bit_compute_dtype", "float32") == "float32" else 0
    more = 0
    for scales in (tensor for tensor in found.weights if tensor.name.endswith(".weight.absmax")):
        name = scales.name.removesuffix(".absmax")
        fits = name in shapes and fits_packed(shapes[name])
        if packs_on(device) and fits:
            stored = [t for t in found.weights if t.name.startswith(f"{name}.") and not _DROPPED.search(t.name)]
            more += packed_state_bytes(scales.elements, nested=nested)
            more -= sum(tensor.elements * DTYPE_BYTES.get(tensor.dtype, 2) for tensor in stored)
        elif nested:
            more += OFFSET_BYTES
        if fits or not packs_on(device):  # other layers compute in bfloat16
            more += widened * elements.get(name.removesuffix("weight") + "bias", 0)
    return more


def _unpacked_bytes(found: ModelInfo, settings: Mapping[str, Any], device: str) -> int:  # Any: a JSON object
    """Predict the bytes that GPTQModel's layers add to the stored ones in the first forward pass."""
    gptq, bits = settings["quant_method"] == "gptq", settings.get("bits", 4)
    layers = _packed_layers(found, settings)
    tables = 4 * _SHIFTS.get(bits, 0) * len(layers) if gptq else 0
    index = 4 * sum(layer.shape[1] for layer in layers) if gptq else 0
    groups = sum(tensor.elements for tensor in found.weights if tensor.name.endswith(".scales"))
    if device != "cpu" or bits == 3:
        return tables
    if bits == 4 and settings.get("group_size", 128) in CPU_GROUPS_4_BIT:
        # Scales and offsets in bfloat16, apart and side by side, for scales and packed zero points; a second index.
        return tables + groups * 11 // 2 + index
    # The index in int64 and the zero points unpacked.
    return tables + 2 * index + groups * (2 if bits == 8 else 1) if gptq else 0
