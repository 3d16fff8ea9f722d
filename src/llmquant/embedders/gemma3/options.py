"""Options of the embedders made from Gemma 3, and descriptions of their checkpoints' vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llmquant.errors import ModelError, OptionError, UnsupportedError
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_image_files, check_type
from llmquant.study.embedding import EmbedderInfo

# The layer that produces the late-interaction vectors, and their width, as in colpali-engine's ColGemma3.
PROJECTION = "custom_text_proj"
LATE_WIDTH = 128

# The widths that Cognitive-Lab/NetraEmbed was trained for.
_MATRYOSHKA = (2560, 1536, 768)


@dataclass(frozen=True)
class BiGemma3Options:
    """Gemma 3 with one vector per item, like colpali-engine's BiGemma3.

    Attributes:
        checkpoint: a Gemma 3 with a vision tower, or a PEFT adapter whose base is one, for example
            ``Cognitive-Lab/NetraEmbed``.
        dim: width to which vectors are cut, for example 768; ``None`` keeps the full width. NetraEmbed was trained for
            768, 1536 and 2560.
        pooling: the token whose state becomes the vector, or the mean of all states. Released checkpoints were trained
            with ``last``.
        fusion: how an item with a text and an image is encoded. ``sum`` and ``mean`` encode text and image separately,
            as in training, and give the same vector at unit length; ``joint`` is one pass over the image followed by
            the text, on which no released checkpoint was trained.
    """

    checkpoint: str = "google/gemma-3-4b-it"
    dim: int | None = None
    pooling: Literal["last", "cls", "mean"] = "last"
    fusion: Literal["joint", "sum", "mean"] = "sum"

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the checkpoint's vectors.

        Raises:
            ModelError: if the checkpoint is not a Gemma 3 with a vision tower, or is one for late interaction.
            OptionError: if the checkpoint does not support the width `dim`.
        """
        width = _width(model)
        if _has_projection(model):
            raise ModelError(
                f"{model.source} returns one vector per token: it has a {PROJECTION}",
                hint=f"Open it for late interaction: colgemma3(checkpoint={self.checkpoint}).",
            )
        dims = (width, *(dim for dim in _MATRYOSHKA if dim < width))
        if self.dim is not None and self.dim not in dims:
            raise OptionError(
                f"dim is {self.dim}, but vectors of {model.source} have {width} dimensions",
                hint=f"Use one of {', '.join(map(str, dims))}.",
            )
        return EmbedderInfo(width, dims, ("text", "image"), "cosine", self.fusion, self.dim)

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse a pooling without meaning for Gemma 3, and files that transformers cannot load.

        Raises:
            UnsupportedError: for ``cls``.
            ModelError: naming what is missing or wrong.
        """
        if self.pooling == "cls":
            raise UnsupportedError(
                "pooling=cls uses the first token, which in Gemma 3 attends only to itself: "
                "every item would get the same vector",
                hint="Use last, as released checkpoints do, or mean.",
            )
        check_type(model, causal=False)
        check_image_files(model)


@dataclass(frozen=True)
class ColGemma3Options:
    """Gemma 3 with one vector per token for late interaction, like colpali-engine's ColGemma3.

    An item with a text and an image is encoded in one pass, the image first.

    Attributes:
        checkpoint: a Gemma 3 with a vision tower and a projection to 128 dimensions, or a PEFT adapter with such a
            projection, for example ``Cognitive-Lab/ColNetraEmbed``.
    """

    checkpoint: str = "Cognitive-Lab/ColNetraEmbed"

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the checkpoint's vectors.

        Raises:
            ModelError: if the checkpoint is not a Gemma 3 with a vision tower, or has no projection.
        """
        _width(model)
        if model.adapter is None and not _has_projection(model):
            raise ModelError(
                f"{model.source} has no {PROJECTION}, the layer that produces the late-interaction vectors",
                hint=f"Open it with one vector per item: bigemma3(checkpoint={self.checkpoint}).",
            )
        return EmbedderInfo(LATE_WIDTH, (LATE_WIDTH,), ("text", "image"), "maxsim")

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse files that transformers cannot load.

        Raises:
            ModelError: naming what is missing or wrong.
        """
        check_type(model, causal=False)
        check_image_files(model)


def _width(model: ModelInfo) -> int:
    """Return the language model's hidden size."""
    kind, width = model.config.get("model_type"), model.text_config.get("hidden_size")
    if kind != "gemma3" or "vision_config" not in model.config:
        what = "a Gemma 3 without a vision tower" if str(kind).startswith("gemma3") else f"of type {kind!r}"
        raise ModelError(
            f"{model.source} is {what}, not a Gemma 3 that sees images",
            hint="Use Gemma 3 4B or larger, such as google/gemma-3-4b-it. Other models have their own embedders.",
        )
    if not isinstance(width, int):
        raise ModelError(f"the config.json of {model.source} has no hidden_size for the language model")
    return width


def _has_projection(model: ModelInfo) -> bool:
    return any(PROJECTION in tensor.name.split(".") for tensor in model.tensors)
