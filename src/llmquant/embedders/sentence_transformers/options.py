"""Options of models that sentence-transformers opens, and the description of their vectors in their files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llmquant.errors import ModelError, OptionError
from llmquant.models.folder import read_json
from llmquant.models.info import ModelInfo
from llmquant.study.embedding import EmbedderInfo, Similarity

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
        settings = _module_json(model, "config_sentence_transformers.json")
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
    if width is None:
        width = model.text_config.get("hidden_size") or model.text_config.get("d_model") or model.text_config.get("dim")
    if not isinstance(width, int):
        raise ModelError(f"the files of {model.source} do not state the width of its vectors")
    return width


def _pooled_width(settings: Mapping[str, Any]) -> int | None:  # Any: a JSON object
    width = settings.get("embedding_dimension", settings.get("word_embedding_dimension"))
    # Several pooling modes are concatenated. Before version 6 each mode was a switch, next to other settings.
    modes = settings.get("pooling_mode")
    if modes is None:
        count = sum(value is True for name, value in settings.items() if name.startswith("pooling_mode_"))
    else:
        count = 1 if isinstance(modes, str) else len(modes)
    return width * max(count, 1) if isinstance(width, int) else None


def _modules(model: ModelInfo) -> list[dict[str, Any]]:  # Any: a JSON object
    path = model.file("modules.json")
    if path is None:
        return []
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="Fetch the file again.") from error
    return [module for module in modules if isinstance(module, dict)]


def _module_json(model: ModelInfo, name: str) -> dict[str, Any] | None:  # Any: a JSON object
    path = model.file(name)
    return None if path is None else read_json(path)
