"""Options of models with a text tower and an image tower: CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import ModelError
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_image_files, check_type
from llmquant.study.embedding import EmbedderInfo

# The weight that maps a tower into the shared space; its rows are the width. Configurations may omit defaults.
_WIDTH_BY_TYPE = {
    "clip": "text_projection.weight",
    "siglip": "text_model.head.weight",
    "siglip2": "text_model.head.weight",
}


@dataclass(frozen=True)
class ClipOptions:
    """Text and image towers through transformers.

    Attributes:
        checkpoint: a CLIP, SigLIP or SigLIP 2 checkpoint, for example ``openai/clip-vit-base-patch32``. Texts are cut
            at the length of the text tower: CLIP reads 77 tokens, SigLIP 64 (16 with
            ``google/siglip-so400m-patch14-224``).
        fusion: how the unit vectors of a text and an image are combined; all choices give the same direction.
    """

    checkpoint: str = "openai/clip-vit-large-patch14"
    fusion: Literal["sum", "mean"] = "sum"

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the checkpoint's vectors.

        Raises:
            ModelError: if the checkpoint has another type, or no text tower.
        """
        kind = str(model.config.get("model_type", ""))
        if kind not in _WIDTH_BY_TYPE:
            raise ModelError(
                f"{model.source} is of type {kind!r}, not {' or '.join(_WIDTH_BY_TYPE)}",
                hint="Try sentence_transformers for other models with two towers.",
            )
        name = _WIDTH_BY_TYPE[kind]
        shape = next((tensor.shape for tensor in model.tensors if tensor.name == name), None)
        if shape is None:
            raise ModelError(f"{model.source} lacks {name}: it cannot encode texts")
        return EmbedderInfo(shape[0], (shape[0],), ("text", "image"), "cosine", self.fusion)

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse files that transformers cannot load.

        Raises:
            ModelError: naming what is missing or wrong.
        """
        check_type(model, causal=False)
        check_image_files(model)
