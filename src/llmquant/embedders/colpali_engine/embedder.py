"""Document retrievers through colpali-engine's model and processor classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import colpali_engine.models
import numpy as np
import torch
from colpali_engine.models import ColPali

from llmquant.embedders.colpali_engine.options import Architecture, ColpaliEngineOptions, architecture_of
from llmquant.embedders.lora import merge_lora
from llmquant.errors import ModelError
from llmquant.loading.strict import HEAD, load_strict
from llmquant.models.folder import read_json
from llmquant.plugins.embedder import Embedder, Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role

_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")


class ColpaliEngine(Embedder[ColpaliEngineOptions]):
    """Opens any architecture of `ARCHITECTURES`."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenColpaliEngine:
        """Load the checkpoint with the library's classes."""
        options = self.options
        architecture = architecture_of(info.config, options.architecture, info.source)
        keywords = {**load_kwargs, "device_map": {"": ctx.device}}
        module = _load(architecture, path, info.source, keywords)
        visual = {} if options.max_visual_tokens is None else {"max_num_visual_tokens": options.max_visual_tokens}
        try:
            processor = getattr(colpali_engine.models, architecture.processor).from_pretrained(path, **visual)
        except (OSError, ValueError) as error:
            raise ModelError(f"{info.source} has no processor that colpali-engine can load: {error}") from error
        prefix = architecture.query_prefix if options.query_prefix is None else options.query_prefix
        return OpenColpaliEngine(module, processor, prefix)

    def merge(self, base: Path, adapter: Path, out: Path) -> None:
        """Write the checkpoint at `base` to `out` with the LoRA adapter at `adapter` added to its weights.

        Raises:
            ModelError: if the adapter is of another kind, or belongs to another model.
        """
        config = read_json(base / "config.json")
        architecture = architecture_of(config, self.options.architecture, base.name)
        module = _load(architecture, base, base.name, {"dtype": "auto"})
        renames = getattr(type(module), "_checkpoint_conversion_mapping", {})
        merge_lora(module, base, adapter, out, renames=renames)


def _load(architecture: Architecture, path: Path, source: str, keywords: Mapping[str, Any]) -> Any:
    # Any: transformers. The Qwen classes have no head, but older checkpoints do.
    module = load_strict(getattr(colpali_engine.models, architecture.model), path, source, keywords, allowed=(HEAD,))
    if isinstance(module, ColPali):
        # Released checkpoints have no head, so the class leaves its head without values. No vector depends on the head.
        module.model.lm_head = torch.nn.Identity()
    return module


class OpenColpaliEngine:
    """One of the library's models on its device.

    Args:
        processor: the library's processor.
        query_prefix: text put before a query.
    """

    def __init__(self, module: Any, processor: Any, query_prefix: str) -> None:  # Any: colpali-engine's
        self.module, self._processor, self._query_prefix = module, processor, query_prefix
        # The tokenizer keeps its padding as state. The padding is set once here, and threads only read it.
        processor.process_texts(["a"])

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Process one item as the library processes pages, queries and texts.

        An item with a page and a text gets the vectors of its page followed by those of its text, as in mteb.
        """
        processor, inputs = self._processor, []
        if image is not None:
            page = processor.process_images([image])
            page.pop("labels", None)  # with labels PaliGemma computes a loss over its whole vocabulary
            inputs.append(page)
        if text is not None and role == "query":
            suffix = processor.query_augmentation_token * 10  # as the library's `process_queries`
            inputs.append(processor.process_texts([self._query_prefix + text + suffix]))
        elif text is not None:
            inputs.append(processor.process_texts([text]))
        return Prepared(sum(part["input_ids"].shape[1] for part in inputs), inputs)

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch: all pages together, then all texts together."""
        parts = [(i, part) for i, item in enumerate(batch) for part in item.inputs]
        parts.sort(key=lambda part: "pixel_values" not in part[1])  # stable: an item's page stays before its text
        found: dict[int, list[NDArray[np.float32]]] = {}
        for _, group in groupby(parts, key=lambda part: "pixel_values" in part[1]):
            numbers, inputs = zip(*group, strict=True)
            for number, vectors in zip(numbers, self._forward(inputs), strict=True):
                found.setdefault(number, []).append(vectors)
        return [arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for _, arrays in sorted(found.items())]

    def _forward(self, inputs: Sequence[Any]) -> list[NDArray[np.float32]]:  # Any: a BatchFeature of transformers
        tokenizer = self._processor.tokenizer
        together = collate(inputs, left=tokenizer.padding_side == "left", pad_token=tokenizer.pad_token_id)
        if isinstance(self.module, ColPali):
            # All tokens see each other, as in training. By default transformers 5.23 does so only in batches without
            # padding: with padding the mask is causal, and a query's vectors depend on the other queries of its batch.
            together.setdefault("token_type_ids", torch.zeros_like(together["input_ids"]))
        with torch.inference_mode():
            vectors = self.module(**{name: value.to(self.module.device) for name, value in together.items()})
        vectors = vectors.float().cpu()
        if vectors.ndim == 2:
            return list(vectors.numpy())
        mask = together["attention_mask"].bool()
        return [row[kept].numpy() for row, kept in zip(vectors, mask, strict=True)]


def collate(inputs: Sequence[Any], *, left: bool, pad_token: int) -> dict[str, torch.Tensor]:  # Any: a BatchFeature
    """Combine the library's processor outputs for single items into its output for the whole batch.

    Args:
        inputs: tensors by name, the first axis of length 1. Token tensors are padded on the tokenizer's side; image
            tensors (tiles of a page, patches of a page) are padded at the end, with zeros, which the models skip.
        left: whether the tokenizer pads on the left.
        pad_token: id of the padding token.
    """
    together = {}
    for name in inputs[0]:
        values = [each[name] for each in inputs]
        length = max(value.shape[1] for value in values)
        padded = []
        for value in values:
            shape = (1, length - value.shape[1], *value.shape[2:])
            filler = value.new_full(shape, pad_token if name == "input_ids" else 0)
            padded.append(torch.cat([filler, value] if left and name in _PER_TOKEN else [value, filler], dim=1))
        together[name] = torch.cat(padded)
    return together
