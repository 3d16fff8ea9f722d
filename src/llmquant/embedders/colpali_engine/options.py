"""Options of the document retrievers that colpali-engine implements, and the table of its architectures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmquant.errors import ModelError, OptionError
from llmquant.models.info import ModelInfo
from llmquant.models.loadable import check_image_files
from llmquant.study.embedding import EmbedderInfo


@dataclass(frozen=True)
class Architecture:
    """One pair of classes in ``colpali_engine.models``.

    Attributes:
        model_type: ``model_type`` in ``config.json``.
        width: width of the vectors; ``None`` means one vector per item, as wide as the language model.
        query_prefix: query prefix that the released checkpoints were trained with; colpali-engine leaves the prefix to
            the caller, and mteb sets it.
        model: class of the model; checkpoints name the class in ``architectures``.
        processor: class of the processor.
    """

    model_type: str
    width: int | None
    query_prefix: str
    model: str
    processor: str


ARCHITECTURES: Mapping[str, Architecture] = {
    "colpali": Architecture("paligemma", 128, "Query: ", "ColPali", "ColPaliProcessor"),
    "colqwen2": Architecture("qwen2_vl", 128, "Query: ", "ColQwen2", "ColQwen2Processor"),
    "colqwen2.5": Architecture("qwen2_5_vl", 128, "Query: ", "ColQwen2_5", "ColQwen2_5_Processor"),
    "colqwen3": Architecture("qwen3_vl", 320, "", "ColQwen3", "ColQwen3Processor"),
    "colsmol": Architecture("idefics3", 128, "Query: ", "ColIdefics3", "ColIdefics3Processor"),
    "modernvbert": Architecture("modernvbert", 128, "", "ColModernVBert", "ColModernVBertProcessor"),
    "bimodernvbert": Architecture("modernvbert", None, "", "BiModernVBert", "BiModernVBertProcessor"),
}
_BY_PIXELS = ("colqwen2", "colqwen2.5", "colqwen3")


@dataclass(frozen=True)
class ColpaliEngineOptions:
    """A late-interaction retriever of page images, or its single-vector sibling.

    Attributes:
        checkpoint: a merged checkpoint, or a PEFT adapter that names its base, for example ``vidore/colqwen2-v1.0``.
        architecture: the model's architecture, for example ``colqwen2``; ``auto`` reads it from ``config.json``, and
            any other value must match ``config.json``.
        query_prefix: text put before a query; ``None`` is the prefix that the released checkpoints were trained with.
            Ten augmentation tokens follow every query, as in the library.
        max_visual_tokens: maximum visual tokens per page, for the Qwen models, for example 768; ``None`` is the limit
            of the checkpoint's processor.
    """

    checkpoint: str
    architecture: Literal[
        "auto", "colpali", "colqwen2", "colqwen2.5", "colqwen3", "colsmol", "modernvbert", "bimodernvbert"
    ] = "auto"
    query_prefix: str | None = None
    max_visual_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_visual_tokens is None:
            return
        if self.max_visual_tokens < 4:
            raise OptionError(f"max_visual_tokens is {self.max_visual_tokens}", hint="Use 4 or more; 768 is usual.")
        if self.architecture != "auto" and self.architecture not in _BY_PIXELS:
            raise OptionError(f"{self.architecture} has no max_visual_tokens", hint="Its pages have a fixed size.")

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Describe the checkpoint's vectors.

        Raises:
            ModelError: if the checkpoint has another architecture.
        """
        found = architecture_of(model.config, self.architecture, model.source)
        if found.width is None:
            width = int(model.text_config["hidden_size"])
            return EmbedderInfo(width, (width,), ("text", "image"), "cosine", "sum")
        return EmbedderInfo(found.width, (found.width,), ("text", "image"), "maxsim")

    def check(self, model: ModelInfo, device: str) -> None:
        """Refuse files that colpali-engine cannot load.

        Raises:
            ModelError: naming what is missing or damaged.
        """
        check_image_files(model)


def architecture_of(config: Mapping[str, Any], asked: str, source: str) -> Architecture:  # Any: a JSON object
    """Find the architecture that a ``config.json`` describes.

    Args:
        asked: the requested key of `ARCHITECTURES`, or ``auto``.
        source: the user's name for the checkpoint, for messages.

    Raises:
        ModelError: if the architecture is unknown, or is not the requested one.
    """
    kind = str(config.get("model_type", ""))
    named = set(config.get("architectures") or ())
    same = [name for name, each in ARCHITECTURES.items() if each.model_type == kind]
    # The class decides only between architectures of one type; a base checkpoint may name the model it was made from.
    found = [name for name in same if ARCHITECTURES[name].model in named] or same[:1]
    if not found:
        raise ModelError(
            f"{source} is of type {kind!r}, which colpali-engine does not support",
            hint=f"Supported types: {', '.join(sorted({each.model_type for each in ARCHITECTURES.values()}))}.",
        )
    if asked not in ("auto", found[0]):
        raise ModelError(f"{source} is a {found[0]}, not a {asked}", hint=f"Use architecture={found[0]}.")
    return ARCHITECTURES[found[0]]
