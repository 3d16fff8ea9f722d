"""Whether a model has a chat template, from its small files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmquant.errors import UnsupportedError
from llmquant.models.folder import read_json

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

_TEMPLATES = ("chat_template.jinja", "chat_template.json")


def require_chat_template(model: ModelInfo) -> None:
    """Refuse a chat for a model without a chat template; what cannot be read here is left to the worker.

    Raises:
        UnsupportedError: if no file has a template.
    """
    offline = model.kind == "hub" and bool(model.note)  # the Hub was not asked
    if model.kind not in ("folder", "hub") or offline or any(model.file(name) for name in _TEMPLATES):
        return
    settings = model.file("tokenizer_config.json")
    if settings is None or not read_json(settings).get("chat_template"):
        raise UnsupportedError(
            f"{model.source} has no chat template", hint="Omit apply_chat_template, or use a chat model."
        )
