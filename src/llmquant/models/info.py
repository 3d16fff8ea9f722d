"""Requested models, and their description before anything is loaded."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmquant.errors import ModelError
from llmquant.models.folder import file_digest, folder_digest, read_checkpoint
from llmquant.models.gguf import read_gguf_header
from llmquant.models.headers import TensorInfo
from llmquant.models.hub import find_file, read_hub
from llmquant.study.counting import counted
from llmquant.study.embedding import EmbedderInfo
from llmquant.study.experiment import ModelRequest, ModelUse, PluginUse, path_of
from llmquant.study.folders import near

if TYPE_CHECKING:
    from llmquant.storage.cache import Cache

# Stored by old checkpoints or by GGUF, and no weights: masks and rotary frequencies, which models make anew.
_NOT_WEIGHTS = re.compile(r"(rotary_emb\.inv_freq|\.attn\.masked_bias|^rope_freqs\.weight)$")
_HEAD = re.compile(r"(^|\.)lm_head\.weight$|^(embed_out|output)\.weight$")
# Families whose head is tied where their configuration does not say: the defaults of transformers 5.23.
_TIED = """
bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small bloom camembert cohere
cohere2 cohere2_moe cohere_compass_text cpmant ctrl data2vec-text electra ernie ernie4_5 ernie4_5_moe falcon
falcon_mamba gemma gemma2 gemma3 gemma3_text gemma3n gemma3n_text gemma4 gemma4_assistant gemma4_text
gemma4_unified gemma4_unified_assistant gemma4_unified_text got_ocr2 gpt-sw3 gpt2 gpt_bigcode gpt_neo
gpt_neox_japanese granite_swa jetmoe lara_mini lfm2 lfm2_moe lfm3 mamba marian mbart megatron-bert
minicpm3 modernbert-decoder moss_transcribe_diarize mpt mvp openai-gpt opt pegasus plbart prophetnet recurrent_gemma
roberta roberta-prelayernorm roc_bert roformer smollm3 starcoder2 trocr vaultgemma whisper xglm xlm xlm-roberta
xlm-roberta-xl xlnet xmod youtu zamba zamba2 zaya
"""
_ADDRESS = re.compile(r"https?://[^/]+/([^/?#]+(?:/(?!tree/|blob/)[^/?#]+)?)(?:/(?:tree|blob)/([^/?#]+))?")
_BLOCK = re.compile(r"\.\d+\.")
# Not nn.Linear inside a block, by the last part of the layer's name (the last two of GGUF) ...
_NOT_LINEAR = re.compile(r"(norm|embed|conv|(^|_)ln_|^(gate|router|ffn_gate_inp)$)")
# ... and the experts of a mixture, which transformers fuses into one tensor for all experts.
_EXPERTS = re.compile(r"\.(experts\.\d+\.|ffn_\w+_exps\.)")
_AUTO_GPTQ_CONFIG = "quantize_config.json"
_ROPE_BY_LENGTH = ("dynamic", "longrope", "su")  # "su" is what longrope was called first
# Types whose recurrent layers ignore the attention mask, so that padding before a prompt is read as part of it.
_READS_PADDING = ("recurrent_gemma", "rwkv", "xlstm")
FLOATS = frozenset({"float64", "float32", "float16", "bfloat16"})
# Of positions, steps and masks, besides weights.
_COUNTS = frozenset({"int64", "bool"})
# Their linear layers are transformers' Conv1D, whose checkpoints hold weights as (in_features, out_features).
CONV1D_MODELS = frozenset({"gpt2", "openai-gpt"})


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter for a checkpoint.

    Attributes:
        digest: ``commit:<sha>`` on the Hub, ``sha256:<hex>`` of a local folder.
        location: the local folder; ``None`` on the Hub.
        repo: Hub id, or ``None`` for a local folder.
        commit: commit on the Hub, or ``None`` for a local folder.
    """

    digest: str
    location: Path | None
    repo: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """A model before it is loaded.

    Attributes:
        source: the model's name in the request.
        digest: ``commit:<sha>`` of a Hub model, ``sha256:<hex>`` of local files by content.
        flags: settings that change what is loaded.
        kind: where the model is; ``none`` for an embedder without a checkpoint.
        location: the local folder or ``.gguf`` file; ``None`` for a Hub model.
        repo: Hub id, or ``None`` for local files.
        commit: commit of a Hub model, or ``None`` for local files.
        config: ``config.json``, or for a GGUF file the same names from its metadata.
        tensors: stored tensors, before any fusing by loading.
        weight_files: names of the files with the tensors.
        disk_bytes: size of these files.
        note: note for readers of the results; may be empty.
        embedder: the plugin that opens the model; ``None`` for a causal language model.
        embeds: description of an embedder's vectors.
        encoder_digest: digest that identifies an embedder's vectors besides the quantizer: its checkpoint and the
            options that change its vectors.
        adapter: the PEFT adapter for an embedder's checkpoint.
    """

    source: str
    digest: str
    flags: tuple[str, ...]
    kind: Literal["hub", "folder", "gguf", "none"]
    location: Path | None = None
    repo: str | None = None
    commit: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, repr=False)  # Any: a JSON object
    tensors: tuple[TensorInfo, ...] = field(default=(), repr=False)
    weight_files: tuple[str, ...] = field(default=(), repr=False)
    disk_bytes: int = 0
    note: str = ""
    embedder: PluginUse | None = None
    embeds: EmbedderInfo | None = None
    encoder_digest: str = ""
    adapter: Adapter | None = None

    def use(self) -> ModelUse:
        """Return the model's part of an experiment."""
        return ModelUse(self.source, self.digest, self.flags, self.embedder)

    def file(self, name: str) -> Path | None:
        """Return a small file of the checkpoint, from the Hub if necessary; ``None`` if it is missing."""
        if self.repo and self.commit:
            return find_file(self.repo, self.commit, name)
        path = self.location / name if self.location is not None else None
        return path if path is not None and path.is_file() else None

    @property
    def trust_remote_code(self) -> bool:
        """Return whether the checkpoint's own code may run."""
        return "trust_remote_code" in self.flags

    @property
    def allow_pickle(self) -> bool:
        """Return whether weights may be read from pickles, which can run code."""
        return "allow_pickle" in self.flags

    @property
    def text_config(self) -> Mapping[str, Any]:  # Any: a JSON object
        """Return the language model's part of the configuration; the whole configuration without a vision part."""
        text = self.config.get("text_config")
        return text if isinstance(text, Mapping) else self.config

    @property
    def row_independent(self) -> bool:
        """Return whether rows of a batch are independent: padding and some rotary embeddings follow the longest."""
        rope = self.text_config.get("rope_parameters") or self.text_config.get("rope_scaling") or {}
        kinds = [rope, *(part for part in rope.values() if isinstance(part, Mapping))]  # or by the kind of layer
        by_length = any((kind.get("rope_type") or kind.get("type")) in _ROPE_BY_LENGTH for kind in kinds)
        return not by_length and not self.reads_padding

    @property
    def reads_padding(self) -> bool:
        """Return whether padding before a prompt changes its results, although it is masked."""
        return self.text_config.get("model_type") in _READS_PADDING

    @property
    def quantization_config(self) -> Mapping[str, Any]:  # Any: a JSON object
        """Return the quantization's settings in the configuration; empty if there are none."""
        found = self.config.get("quantization_config") or self.text_config.get("quantization_config")
        return found if isinstance(found, Mapping) else {}

    @property
    def quantized_as(self) -> str | None:
        """Name the method the checkpoint is quantized by already; ``None`` for floating-point weights."""
        found = self.quantization_config
        if not found:
            return "gptq" if self.codes else None  # auto-gptq's settings are in a file beside: see `_noted`
        bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
        return str(found.get("quant_method", "unknown")) + (f" {bits}-bit" if bits else "")

    @property
    def tied(self) -> bool:
        """Return whether the head is the embedding, as the configuration says or its family does by default."""
        default = self.config.get("model_type") in _TIED.split()
        said = self.config.get("tie_word_embeddings", default)
        return bool(self.text_config.get("tie_word_embeddings", said))

    @property
    def weights(self) -> tuple[TensorInfo, ...]:
        """Return the tensors that are loaded: a tied head once and of an embedder not at all, no stored masks."""
        names = {tensor.name for tensor in self.tensors}
        tied = self.embeds is not None or self.tied
        return tuple(
            tensor
            for tensor in self.tensors
            if not _NOT_WEIGHTS.search(tensor.name)
            and not (tied and _HEAD.search(tensor.name) and len(names) > 1)
            and not (tensor.name.endswith((".attn.bias", ".attention.bias")) and len(tensor.shape) == 4)
        )

    @property
    def codes(self) -> tuple[TensorInfo, ...]:
        """Return the tensors whose numbers mean nothing without a quantization's settings: integers, float8, float4."""
        return tuple(
            tensor
            for tensor in self.weights
            if self.kind != "gguf"
            and tensor.dtype not in FLOATS
            and (tensor.dtype not in _COUNTS or tensor.name.endswith("weight"))
            and tensor.shape[:2] != (1, 1)  # masks that old checkpoints hold
        )

    @property
    def parameters(self) -> int:
        """Count the parameters; of a checkpoint that is quantized already, the stored numbers."""
        return sum(tensor.elements for tensor in self.weights)

    def linear_layers(self) -> tuple[TensorInfo, ...]:
        """Return the weights that quantizers replace while loading: 2-D, of ``nn.Linear`` layers inside the blocks.

        Embeddings, the head, norms, convolutions, routers and the experts of a mixture are not among them: transformers
        holds the experts of all mixtures in fused tensors, which bitsandbytes leaves alone.

        Returns:
            Each with the shape ``(out_features, in_features)``, however it is stored.
        """
        turned = self.kind != "gguf" and self.text_config.get("model_type") in CONV1D_MODELS
        return tuple(
            replace(tensor, shape=tensor.shape[::-1]) if turned else tensor
            for tensor in self.weights
            if tensor.name.endswith(".weight")
            and len(tensor.shape) == 2
            and _BLOCK.search(tensor.name)
            and not _EXPERTS.search(tensor.name)
            and not _NOT_LINEAR.search(tensor.name.removesuffix(".weight").rpartition(".")[2])
        )

    def kv_bytes_per_token(self, dtype_bytes: int) -> int:
        """Predict what one token adds to the key-value cache, in bytes; 0 for a model without attention.

        ``2 x layers x key-value heads x head dimension x dtype_bytes``; layers of ``layer_types`` that are not
        attention keep none, and latent attention caches its keys and values expanded, as transformers does.
        """
        config = self.text_config
        heads = _number(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
        hidden = _number(config, "hidden_size", "n_embd", "d_model", "dim")
        kinds = config.get("layer_types")
        if isinstance(kinds, list):
            layers = sum("attention" in kind and not kind.startswith("linear") for kind in kinds)
        else:
            layers = _number(config, "num_hidden_layers", "n_layer", "num_layers", "n_layers")
        if not heads or not layers:
            return 0
        if "qk_rope_head_dim" in config:
            width = _number(config, "qk_rope_head_dim") + _number(config, "qk_nope_head_dim")
            return layers * heads * (width + _number(config, "v_head_dim")) * dtype_bytes
        groups = 1 if config.get("multi_query") else _number(config, "num_key_value_heads", "num_kv_heads") or heads
        return 2 * layers * groups * (_number(config, "head_dim") or hidden // heads) * dtype_bytes


def inspect_model(request: ModelRequest, cache: Cache) -> ModelInfo:
    """Find a model and read its description, without reading weights or running its code.

    ``./folder``, an absolute path and ``~`` are local; ``*.gguf`` is a file; all else is a Hub id with an optional
    ``@revision``. Digests of large local files are kept in `cache`.

    Raises:
        ModelError: if the model is missing, gated, damaged, an adapter, or needs a permission that is missing.
    """
    source = request.source.strip()
    if not source:
        raise ModelError("no model was named", hint="Use a Hub id, ./folder or a .gguf file.")
    if address := _ADDRESS.match(source):
        repo, revision = address[1], address[2]
        raise ModelError(
            f"{source} is an address", hint=f"Write the Hub id: {repo}{f'@{revision}' if revision else ''}"
        )
    if not is_path(source):
        return _inspect_hub(source, request)
    path = path_of(source).absolute()
    if not path.exists():
        before, mark, _ = source.rpartition("@")
        revision = f"A folder has no revision: write {before}" if mark and path_of(before).exists() else ""
        raise ModelError(f"{source} is not there (looked for {path})", hint=revision or near(path))
    try:
        if path.is_dir():
            return _inspect_folder(path, request, cache)
        if path.suffix == ".gguf":
            return _inspect_gguf(path, request, cache)
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error.strerror or error}") from error
    raise ModelError(f"{source} is a file", hint="Use the checkpoint's folder, or a .gguf file.")


def _inspect_folder(folder: Path, request: ModelRequest, cache: Cache) -> ModelInfo:
    found = read_checkpoint(folder, request.source, allow_pickle=request.allow_pickle)
    _refuse_code(found.config, request)
    digest = folder_digest(folder, found.weight_files, cache.digests)
    return _noted(ModelInfo(request.source, digest, request.flags, "folder", folder, **vars(found)))


def _inspect_gguf(path: Path, request: ModelRequest, cache: Cache) -> ModelInfo:
    header = read_gguf_header(path)
    quantized = header.block_type not in FLOATS
    return ModelInfo(
        source=request.source,
        digest=file_digest(path, cache.digests),
        flags=request.flags,
        kind="gguf",
        location=path,
        config=header.config(),
        tensors=header.tensors,
        weight_files=(path.name,),
        disk_bytes=path.stat().st_size,
        note=(
            f"dequantized from GGUF {header.block_type}; losses shown here come on top of that first quantization"
            if quantized
            else "converted from GGUF"
        ),
    )


def _inspect_hub(source: str, request: ModelRequest) -> ModelInfo:
    repo, _, revision = source.partition("@")
    try:
        found = read_hub(repo, revision or None, allow_pickle=request.allow_pickle)
    except ModelError as error:
        if Path(source).is_dir():
            raise ModelError(error.message, hint=f"A folder of this name is here: write ./{source}") from error
        raise
    _refuse_code(found.config, request)
    return _noted(ModelInfo(request.source, f"commit:{found.commit}", request.flags, "hub", repo=repo, **vars(found)))


def _noted(info: ModelInfo) -> ModelInfo:
    """Note that a checkpoint is quantized, and refuse codes without settings: they would be taken for weights."""
    if info.codes and not info.quantization_config and auto_gptq_settings(info) is None:
        first = info.codes[0]
        raise ModelError(
            f"{info.source} stores {counted(len(info.codes), 'tensor')} as {first.dtype}, first {first.name!r}, and "
            "its config.json has no quantization_config that explains them",
            hint="Restore the config.json that was saved with these weights, or use the unquantized checkpoint.",
        )
    said = f"already quantized: {info.quantized_as}" if info.quantized_as else ""
    return replace(info, note="; ".join(part for part in (info.note, said) if part))


def auto_gptq_settings(info: ModelInfo) -> Path | None:
    """Return the file with auto-gptq's settings, which is beside a ``config.json`` without them."""
    return info.file(_AUTO_GPTQ_CONFIG)


def is_path(source: str) -> bool:
    """Return whether a source is a path, and not a Hub id such as ``name`` or ``org/name``."""
    return (
        source in (".", "..")
        or source.startswith(("./", "../", "/", "~"))
        or source.endswith(("/", ".gguf"))
        or source.partition("@")[0].count("/") > 1
    )


def _refuse_code(config: Mapping[str, Any], request: ModelRequest) -> None:  # Any: a JSON object
    """Refuse a model that works only with its own Python code, unless that is allowed."""
    if request.trust_remote_code or not config.get("auto_map"):
        return
    kind = str(config.get("model_type", ""))
    spec = importlib.util.find_spec("transformers")  # finds the package without importing it
    for root in (spec.submodule_search_locations or ()) if spec else ():
        if kind and (Path(root) / "models" / kind.replace("-", "_")).is_dir():
            return
    raise ModelError(
        f"{request.source} brings its own Python code (model type {kind!r})",
        hint="If you trust where it comes from, allow it: --trust-remote-code, or trust_remote_code=True.",
    )


def _number(config: Mapping[str, Any], *names: str) -> int:  # Any: a JSON object
    """Return the first of these that is a number; 0 if none is."""
    for name in names:
        value = config.get(name)
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return 0
