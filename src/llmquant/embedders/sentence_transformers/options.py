"""Options of models that sentence-transformers opens, and the description of their vectors in their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmquant.errors import ModelError, OptionError
from llmquant.models.causal import check_tokens
from llmquant.models.folder import read_json
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_local_files, check_type
from llmquant.study.embedding import EmbedderInfo, Similarity

# Modules with a configuration of their own, and modules that only change what another module returned.
_CONFIGURED = ("Pooling", "Dense", "LayerNorm")
_AFTER_THE_FIRST = (*_CONFIGURED, "Normalize", "Dropout", "WeightedLayerPooling", "WordWeights", "LSTM", "CNN")
_FIRST = ("Transformer", "StaticEmbedding", "WordEmbeddings", "BoW", "CLIPModel", "Router", "Asym")
_MODES = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
# Before version 6 each mode was a switch.
_SWITCHES = ("cls_token", "max_tokens", "mean_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
_KNOWN: Mapping[str, tuple[str, ...]] = {
    "Pooling": (
        *("embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"),
        *(f"pooling_mode_{switch}" for switch in _SWITCHES),
    ),
    "Dense": (
        *("in_features", "out_features", "bias", "activation_function"),
        *("module_input_name", "module_output_name"),
    ),
    "LayerNorm": ("dimension",),
}
_VECTOR = "sentence_embedding"  # what a pooling returns
_SETTINGS = "config_sentence_transformers.json"
_SIMILARITIES: Mapping[str | None, Similarity] = {None: "cosine", "cosine": "cosine", "dot": "dot"}


@dataclass(frozen=True)
class SentenceTransformersOptions:
    """Any sentence-transformers model, and any transformers model with mean pooling.

    Attributes:
        checkpoint: a Hub id or a folder, for example ``sentence-transformers/all-MiniLM-L6-v2``. Texts are cut at the
            model's maximum length.
        dim: number of leading dimensions to which vectors are cut before they are normalized again (Matryoshka), for
            example 256.
        dims: widths for which the model was trained, for example 256; the model's card lists them, and so does
            ``config.json`` in some models.
        query_prompt: text put before a query, for example ``"query: "``; ``None`` is the model's own query prompt, if
            it has one.
        document_prompt: text put before a document's text, for example ``"passage: "``; ``None`` is the model's own
            document prompt, if it has one.
    """

    checkpoint: str
    dim: int | None = None
    dims: tuple[int, ...] = ()
    query_prompt: str | None = None
    document_prompt: str | None = None

    def __post_init__(self) -> None:
        wrong = [number for number in (self.dim, *self.dims) if number is not None and number < 1]
        if wrong:
            raise OptionError(f"vectors cannot be cut to {wrong[0]} dimensions")

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the model's vectors, from its configuration and those of its modules.

        Raises:
            ModelError: if the width of the vectors is unknown, or the model compares vectors by a distance.
            OptionError: if vectors should be cut to more dimensions than they have.
        """
        width = vector_width(model)
        trained = model.config.get("matryoshka_dimensions")
        listed = {*self.dims, *(trained if isinstance(trained, list) else ()), *([self.dim] if self.dim else ())}
        if listed and max(listed) > width:
            raise OptionError(f"vectors of {model.source} have {width} dimensions and cannot be cut to {max(listed)}")
        settings = _module_json(model, _SETTINGS)
        compared = settings.get("similarity_fn_name") if settings is not None else None
        if compared not in _SIMILARITIES:
            raise ModelError(f"{model.source} compares vectors by {compared}", hint="llmquant supports cosine and dot.")
        return EmbedderInfo(
            width,
            tuple(sorted({width, *listed}, reverse=True)),
            ("text", "image") if "vision_config" in model.config else ("text",),
            _SIMILARITIES[compared],
            "sum",
            self.dim,
        )

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse files that sentence-transformers cannot load, or would load as another model.

        Raises:
            ModelError: naming what is missing or wrong.
        """
        if model.adapter is not None:
            raise ModelError(
                f"{model.source} is an adapter, which this embedder cannot open",
                hint="Merge it into its base model first: with peft, merge_and_unload() and save_pretrained().",
            )
        check_type(model, causal=False)
        check_local_files(model)
        if "vision_config" not in model.config:  # a text encoder has one embedding
            check_tokens(model)
        check_modules(model)
        check_settings(model)


def vector_width(model: ModelInfo) -> int:
    """Return the width of the vectors: of the last dense module, else of the pooling, else of the hidden states.

    Raises:
        ModelError: if none of them states a width.
    """
    width: object = None
    for module in _modules(model):
        kind, settings = str(module.get("type", "")).rpartition(".")[2], {}
        if kind in ("Dense", "Pooling"):
            settings = _module_json(model, f"{module.get('path')}/config.json") or {}
        if kind == "Dense":
            width = settings.get("out_features")
        elif kind == "Pooling":
            width = _pooled_width(settings)
    cut = (_module_json(model, _SETTINGS) or {}).get("truncate_dim")
    if isinstance(width, int) and isinstance(cut, int):
        return min(width, cut)
    if width is None:
        width = model.text_config.get("hidden_size") or model.text_config.get("d_model") or model.text_config.get("dim")
    if not isinstance(width, int):
        raise ModelError(f"the files of {model.source} do not state the width of its vectors")
    return width


def _pooled_width(settings: Mapping[str, Any]) -> int | None:  # Any: a JSON object
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    # Several pooling modes are concatenated.
    modes = settings.get("pooling_mode")
    if modes is None:
        count = sum(value is True for name, value in settings.items() if name.startswith("pooling_mode_"))
    else:
        count = 1 if isinstance(modes, str) else len(modes)
    return width * max(count, 1) if isinstance(width, int) else None


def check_modules(model: ModelInfo) -> None:
    """Compare ``modules.json`` with the folders of the modules, and their widths with each other.

    Raises:
        ModelError: naming the module.
    """
    width, pooled = model.text_config.get("hidden_size"), None
    modules = _modules(model)
    for position, module in enumerate(modules):
        kind, path = str(module.get("type", "")).rpartition(".")[2], module.get("path")
        if position == 0 and kind in _AFTER_THE_FIRST:
            raise ModelError(
                f"modules.json of {model.source} begins with {kind}, which cannot read texts",
                hint="Restore its first entry, of type Transformer.",
            )
        if not model.trust_remote_code and not (
            str(module.get("type")).startswith("sentence_transformers.") and kind in (*_FIRST, *_AFTER_THE_FIRST)
        ):
            raise ModelError(
                f"modules.json of {model.source} names a module of the type {module.get('type')}, which "
                "sentence-transformers does not have for dense vectors",
                hint="If you trust the model's own code, use --trust-remote-code.",
            )
        if kind not in _CONFIGURED:
            continue
        settings = _module_json(model, f"{path}/config.json")
        files = [f"{path}/{name}" for name in ("model.safetensors", "pytorch_model.bin")]
        if settings is None or (kind != "Pooling" and not any(map(model.file, files))):
            lacks = f"{path}/config.json" if settings is None else files[0]
            raise ModelError(
                f"modules.json of {model.source} names the module {path} ({kind}), and {lacks} is missing",
                hint="Fetch the whole model again, with its folders.",
            )
        if unknown := _unknown(kind, settings, trusted=model.trust_remote_code):
            raise ModelError(
                f"{path}/config.json of {model.source} has the {unknown}, which sentence-transformers would not apply",
                hint="Use the version of sentence-transformers, or the library, that the model was made with.",
            )
        reads = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
        follows = position == 1 and str(modules[0].get("type")).endswith(".Transformer")
        if kind == "Pooling" and follows and None not in (reads, width) and reads != width:
            raise ModelError(
                f"{path} of {model.source} pools vectors of width {reads}, and the model's have {width}",
                hint="The folder belongs to another model; fetch the whole model again.",
            )
        reads = settings.get("in_features")
        if kind == "Dense" and settings.get("module_input_name", _VECTOR) == _VECTOR and pooled not in (None, reads):
            raise ModelError(
                f"{path} of {model.source} reads vectors of width {reads}, and its pooling returns {pooled}",
                hint="The folder belongs to another model; fetch the whole model again.",
            )
        pooled = _pooled_width(settings) if kind == "Pooling" else None


def _unknown(kind: str, settings: Mapping[str, Any], *, trusted: bool) -> str | None:  # Any: a JSON object
    """Name a setting that sentence-transformers replaces by a default, or refuses after the weights are loaded."""
    modes, activation = settings.get("pooling_mode") or [], str(settings.get("activation_function", "torch."))
    wrong = [f"setting {name!r}" for name in settings if name not in _KNOWN[kind]]
    wrong += [f"pooling mode {mode!r}" for mode in ([modes] if isinstance(modes, str) else modes) if mode not in _MODES]
    if not trusted and not activation.startswith("torch."):
        wrong.append(f"activation function {activation}")
    return next(iter(wrong), None)


def check_settings(model: ModelInfo) -> None:
    """Refuse settings of the whole model that sentence-transformers does not load as they are.

    Raises:
        ModelError: naming the setting.
    """
    settings = _module_json(model, _SETTINGS) or {}
    kind, prompts = settings.get("model_type"), settings.get("prompts") or {}
    if kind not in (None, "SentenceTransformer"):
        raise ModelError(
            f"{model.source} was saved as a {kind}, not as a model that returns one dense vector per text",
            hint="Give the model from which it was trained, or another one.",
        )
    wrong = [name for name, prompt in prompts.items() if not isinstance(prompt, str | None)]
    if wrong:
        raise ModelError(f"{_SETTINGS} of {model.source}: the prompt {wrong[0]!r} is {prompts[wrong[0]]!r}, not a text")
    default = settings.get("default_prompt_name")
    if default not in (None, "query", "document", *prompts):
        raise ModelError(f"{_SETTINGS} of {model.source}: there is no prompt {default!r}, the default prompt's name")


def _modules(model: ModelInfo) -> list[dict[str, Any]]:  # Any: a JSON object
    path = model.file("modules.json")
    if path is None:
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="Fetch the file again.") from error
    if not isinstance(modules, list) or not modules or not all(isinstance(module, dict) for module in modules):
        raise ModelError(f"{path} lists no modules", hint="Fetch the file again.")
    return modules


def _module_json(model: ModelInfo, name: str) -> dict[str, Any] | None:  # Any: a JSON object
    path = model.file(name)
    return None if path is None else read_json(path)
