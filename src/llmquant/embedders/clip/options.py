"""Options of models with a text tower and an image tower: CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import ModelError
from llmquant.models.info import ModelInfo
from llmquant.study.embedding import EmbedderInfo

# What maps a tower into the space that both share; its rows are the width. Configurations may leave defaults out.
_WIDTH_BY_TYPE = {
    "clip": "text_projection.weight",
    "siglip": "text_model.head.weight",
    "siglip2": "text_model.head.weight",
}


@dataclass(frozen=True)
class ClipOptions:
    """Text and image towers through transformers.

    Attributes:
        checkpoint: of CLIP, SigLIP or SigLIP 2. Texts are cut where its text tower ends: CLIP reads 77 tokens, SigLIP
            64 (16 with ``google/siglip-so400m-patch14-224``).
        fusion: how the unit vectors of a text and an image become that of both; they have the same direction.
    """

    checkpoint: str = "openai/clip-vit-large-patch14"
    fusion: Literal["sum", "mean"] = "sum"

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what the checkpoint gives.

        Raises:
            ModelError: if it is of another type, or has no text tower.
        """
        kind = str(model.config.get("model_type", ""))
        if kind not in _WIDTH_BY_TYPE:
            raise ModelError(
                f"{model.source} is of type {kind!r}, not {' or '.join(_WIDTH_BY_TYPE)}",
                hint="Other models with two towers may be opened by sentence_transformers.",
            )
        name = _WIDTH_BY_TYPE[kind]
        shape = next((tensor.shape for tensor in model.tensors if tensor.name == name), None)
        if shape is None:
            raise ModelError(f"{model.source} lacks {name}: it cannot encode texts")
        return EmbedderInfo(shape[0], (shape[0],), ("text", "image"), "cosine", self.fusion)
