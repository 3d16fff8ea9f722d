"""Options of GME: Qwen2-VL as an embedder of texts, images, and both at once."""

from __future__ import annotations

from dataclasses import dataclass

from llmquant.errors import ModelError
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_image_files, check_type
from llmquant.study.embedding import EmbedderInfo


@dataclass(frozen=True)
class GmeOptions:
    """General multimodal embedder (Zhang et al., 2024, https://arxiv.org/abs/2412.16855).

    Attributes:
        checkpoint: a GME checkpoint of 2B or 7B parameters, for example
            ``Alibaba-NLP/gme-Qwen2-VL-2B-Instruct``.
        instruction: system message before a query; by default mteb's message for page retrieval. Documents have no
            instruction.
    """

    checkpoint: str = "Alibaba-NLP/gme-Qwen2-VL-2B-Instruct"
    instruction: str = "Find a screenshot that relevant to the user's question."

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the checkpoint's vectors.

        Raises:
            ModelError: if the checkpoint is not a Qwen2-VL.
        """
        kind = str(model.config.get("model_type", ""))
        if kind != "qwen2_vl":
            raise ModelError(f"{model.source} is of type {kind!r}, not 'qwen2_vl'")
        width = int(model.text_config["hidden_size"])
        return EmbedderInfo(width, (width,), ("text", "image"))

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse files that transformers cannot load.

        Raises:
            ModelError: naming what is missing or wrong.
        """
        check_type(model, causal=False)
        check_image_files(model)
