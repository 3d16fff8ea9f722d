"""Options of the embedders made from Gemma 3, and what their checkpoints give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import ModelError, OptionError, UnsupportedError
from llmquant.models.info import ModelInfo
from llmquant.study.embedding import EmbedderInfo

# The layer that makes the vectors of late interaction, and their width, as colpali-engine's ColGemma3 has them.
PROJECTION = "custom_text_proj"
LATE_WIDTH = 128

# The widths that Cognitive-Lab/NetraEmbed was trained for.
_MATRYOSHKA = (2560, 1536, 768)


@dataclass(frozen=True)
class BiGemma3Options:
    """Gemma 3 with one vector an item, as colpali-engine's BiGemma3.

    Attributes:
        checkpoint: a Gemma 3 with a vision tower, or a PEFT adapter that names one.
        dim: cut vectors to this width; ``None`` keeps all of it. NetraEmbed was trained for 768, 1536 and 2560.
        pooling: which token's state becomes the vector, or their mean. Released checkpoints were trained with ``last``.
        fusion: of an item with a text and an image. ``sum`` and ``mean`` encode each as in training, and at unit
            length give the same vector; ``joint`` is one pass over the image followed by the text, which no released
            checkpoint was trained on.
    """

    checkpoint: str = "google/gemma-3-4b-it"
    dim: int | None = None
    pooling: Literal["last", "cls", "mean"] = "last"
    fusion: Literal["joint", "sum", "mean"] = "sum"

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what the checkpoint gives.

        Raises:
            ModelError: if it is no Gemma 3 with a vision tower, or one for late interaction.
            OptionError: if `dim` is a width that it does not have.
        """
        width = _width(model)
        if _has_projection(model):
            raise ModelError(
                f"{model.source} gives a vector a token: it has a {PROJECTION}",
                hint=f"Open it for late interaction: colgemma3(checkpoint={self.checkpoint}).",
            )
        dims = (width, *(dim for dim in _MATRYOSHKA if dim < width))
        if self.dim is not None and self.dim not in dims:
            raise OptionError(
                f"dim is {self.dim}, and vectors of {model.source} have {width} numbers",
                hint=f"Give one of {', '.join(map(str, dims))}.",
            )
        return EmbedderInfo(width, dims, ("text", "image"), "cosine", self.fusion, self.dim)

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse a pooling that cannot work.

        Raises:
            UnsupportedError: for ``cls``.
        """
        if self.pooling == "cls":
            raise UnsupportedError(
                "pooling=cls takes the first token, which in Gemma 3 attends to nothing but itself: "
                "every item would get the same vector",
                hint="Use last, as released checkpoints do, or mean.",
            )


@dataclass(frozen=True)
class ColGemma3Options:
    """Gemma 3 with a vector a token for late interaction, as colpali-engine's ColGemma3.

    An item with a text and an image is encoded in one pass, the image first.

    Attributes:
        checkpoint: a Gemma 3 with a vision tower and a projection to 128 numbers, or a PEFT adapter that brings one.
    """

    checkpoint: str = "Cognitive-Lab/ColNetraEmbed"

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what the checkpoint gives.

        Raises:
            ModelError: if it is no Gemma 3 with a vision tower, or has no projection.
        """
        _width(model)
        if model.adapter is None and not _has_projection(model):
            raise ModelError(
                f"{model.source} has no {PROJECTION}, the layer that makes the vectors of late interaction",
                hint=f"Open it with one vector an item: bigemma3(checkpoint={self.checkpoint}).",
            )
        return EmbedderInfo(LATE_WIDTH, (LATE_WIDTH,), ("text", "image"), "maxsim")


def _width(model: ModelInfo) -> int:
    """Return the language model's hidden size."""
    kind, width = model.config.get("model_type"), model.text_config.get("hidden_size")
    if kind != "gemma3" or "vision_config" not in model.config:
        what = "a Gemma 3 without a vision tower" if str(kind).startswith("gemma3") else f"of type {kind!r}"
        raise ModelError(
            f"{model.source} is {what}, not a Gemma 3 that sees images",
            hint="Gemma 3 sees from 4B on: google/gemma-3-4b-it. Other models have embedders of their own.",
        )
    if not isinstance(width, int):
        raise ModelError(f"the config.json of {model.source} gives no hidden_size of the language model")
    return width


def _has_projection(model: ModelInfo) -> bool:
    return any(PROJECTION in tensor.name.split(".") for tensor in model.tensors)
