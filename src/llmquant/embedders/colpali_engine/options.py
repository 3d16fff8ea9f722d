"""Options of the document retrievers that colpali-engine implements, and what each of its architectures is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from llmquant.errors import ModelError, OptionError
from llmquant.models.info import ModelInfo
from llmquant.study.embedding import EmbedderInfo


@dataclass(frozen=True)
class Architecture:
    """One pair of classes in ``colpali_engine.models``.

    Attributes:
        model_type: in ``config.json``.
        width: of its vectors; ``None``: as wide as the language model, one vector an item.
        query_prefix: what its released checkpoints were trained with: colpali-engine leaves it to the caller, and mteb
            gives it.
        model: the class of the model; checkpoints name it in ``architectures``.
        processor: the class of its processor.
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
        checkpoint: a merged checkpoint, or a PEFT adapter that names its base.
        architecture: ``auto`` reads it from ``config.json``; any other must be what is found there.
        query_prefix: put before a query; ``None`` is what the released checkpoints were trained with. Ten augmentation
            tokens follow every query, as in the library.
        max_visual_tokens: of a page, for the Qwen models; ``None`` is what the checkpoint's processor says.
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
            raise OptionError(f"max_visual_tokens is {self.max_visual_tokens}", hint="Give 4 or more; 768 is usual.")
        if self.architecture != "auto" and self.architecture not in _BY_PIXELS:
            raise OptionError(f"{self.architecture} has no max_visual_tokens", hint="Its pages have a fixed size.")

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what the checkpoint gives.

        Raises:
            ModelError: if it has another architecture.
        """
        found = architecture_of(model.config, self.architecture, model.source)
        if found.width is None:
            width = int(model.text_config["hidden_size"])
            return EmbedderInfo(width, (width,), ("text", "image"), "cosine", "sum")
        return EmbedderInfo(found.width, (found.width,), ("text", "image"), "maxsim")


def architecture_of(config: Mapping[str, Any], asked: str, source: str) -> Architecture:  # Any: a JSON object
    """Find the architecture that a ``config.json`` describes.

    Args:
        asked: a key of `ARCHITECTURES` that it must be, or ``auto``.
        source: how the user calls the checkpoint, for messages.

    Raises:
        ModelError: if it is of none of them, or not of the one that was asked for.
    """
    kind = str(config.get("model_type", ""))
    named = set(config.get("architectures") or ())
    same = [name for name, each in ARCHITECTURES.items() if each.model_type == kind]
    # Only where two share a type must the class say which; a base checkpoint may name the model it was made from.
    found = [name for name in same if ARCHITECTURES[name].model in named] or same[:1]
    if not found:
        raise ModelError(
            f"{source} is of type {kind!r}, which is none of colpali-engine's",
            hint=f"Its types are {', '.join(sorted({each.model_type for each in ARCHITECTURES.values()}))}.",
        )
    if asked not in ("auto", found[0]):
        raise ModelError(f"{source} is a {found[0]}, not a {asked}", hint=f"Ask for {found[0]}.")
    return ARCHITECTURES[found[0]]
