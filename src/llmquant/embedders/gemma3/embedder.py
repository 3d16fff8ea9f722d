"""Gemma 3 as an embedder of texts and page images, with one vector per item or one vector per token."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch.nn import functional
from transformers import Gemma3ImageProcessorPil, Gemma3Model, Gemma3Processor

from llmquant.embedders.gemma3.options import LATE_WIDTH, PROJECTION, BiGemma3Options, ColGemma3Options
from llmquant.embedders.lora import merge_lora
from llmquant.errors import ItemError, ModelError
from llmquant.loading.strict import HEAD, load_strict
from llmquant.plugins.embedder import Embedder, Prepared

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role

_IN_FILE = re.compile(rf"(?:.*\.)?{PROJECTION}\.(weight|bias)")
# Names of Gemma3Model's modules in adapters, which depend on the class and the version used in training.
_RENAMES = {
    r"^(model\.)?language_model\.(model\.)?": "language_model.",
    r"^(model\.)?vision_tower\.(vision_model\.)?": "vision_tower.",
    r"^model\.": "",
}
_PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids")


class BiGemma3(Embedder[BiGemma3Options]):
    """Opens a Gemma 3 with one vector per item."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenGemma3:
        """Load the checkpoint, in any naming layout of transformers, with or without the language model's head."""
        model = _load(path, info.source, {**load_kwargs, "device_map": {"": ctx.device}}, allowed=(HEAD,))
        return OpenGemma3(model, model, _processor(path, info.source), partial(_pool, pooling=self.options.pooling))

    def merge(self, base: Path, adapter: Path, out: Path) -> None:
        """Write the checkpoint at `base` to `out` with the LoRA adapter at `adapter` added to its weights.

        Raises:
            ModelError: if the adapter is of another kind, or belongs to another model.
        """
        model = _load(base, base.name, {"dtype": "auto"}, allowed=(HEAD,))
        merge_lora(model, base, adapter, out, renames=_RENAMES)


class ColGemma3(Embedder[ColGemma3Options]):
    """Opens a Gemma 3 with one vector per token."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenGemma3:
        """Load the checkpoint; its projection keeps the quantizer's floating-point type."""
        keywords = {**load_kwargs, "device_map": {"": ctx.device}}
        model = _load(path, info.source, keywords, allowed=(HEAD, _IN_FILE.pattern))
        projection = _linear(model, info.source, _projection(path, info.source)).to(model.device, model.dtype)
        both = torch.nn.ModuleDict({"model": model, PROJECTION: projection}).eval()
        return OpenGemma3(both, model, _processor(path, info.source), lambda states, _: projection(states))

    def merge(self, base: Path, adapter: Path, out: Path) -> None:
        """Write the checkpoint at `base` to `out` with the LoRA adapter at `adapter` added to its weights.

        Raises:
            ModelError: if the adapter has another kind or belongs to another model, or if neither the base nor the
                adapter has a projection.
        """
        model = _load(base, base.name, {"dtype": "auto"}, allowed=(HEAD, _IN_FILE.pattern))
        # A base without a projection gets a projection of NaN; only an adapter with the whole projection replaces it.
        nothing = {
            "weight": torch.full((LATE_WIDTH, _width(model)), torch.nan),
            "bias": torch.full((LATE_WIDTH,), torch.nan),
        }
        model.custom_text_proj = _linear(model, base.name, _projection(base, base.name) or nothing).to(model.dtype)
        merge_lora(model, base, adapter, out, renames=_RENAMES)
        if any(parameter.isnan().any() for parameter in model.custom_text_proj.parameters()):
            raise ModelError(
                f"neither {base.name} nor the adapter {adapter.name} holds a whole {PROJECTION}",
                hint="The projection that the adapter was trained with was not saved.",
            )


class OpenGemma3:
    """A Gemma 3 on its device.

    Args:
        module: the module with all weights.
        model: computes states from tokens and pixels.
        vectors: computes vectors ``(items, width)`` or ``(items, tokens, width)``, of any length, from states
            ``(items, tokens, hidden)`` and the mask ``(items, tokens)`` of tokens that are not padding.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        model: Any,  # Any: transformers
        processor: Any,  # Any: transformers
        vectors: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    ) -> None:
        self.module, self._model, self._processor, self._vectors = module, model, processor, vectors
        text, vision = model.config.text_config, model.config.vision_config
        # The vision tower reads every patch, which costs as much as this number of tokens in the language model.
        patches = (vision.image_size // vision.patch_size) ** 2
        layer = vision.hidden_size**2 * vision.num_hidden_layers / (text.hidden_size**2 * text.num_hidden_layers)
        self._image_work, self._longest = round(patches * layer), int(text.max_position_embeddings)

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Write an item as a turn of a conversation, as in training: ``Query: ...`` for texts in either role.

        Raises:
            ItemError: if the text contains image placeholder tokens, or is too long for the model.
        """
        processor = self._processor
        for token in (processor.boi_token, processor.tokenizer.image_token):
            if text is not None and token in text:
                raise ItemError(f"the text contains {token}, which Gemma 3 reads as an image")
        content = [] if image is None else [{"type": "image"}]
        content.append({"type": "text", "text": "Describe this image" if text is None else f"Query: {text}"})
        turn = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=False
        )
        # The template writes a <bos> and the tokenizer adds another one. colpali-engine trained with both.
        inputs = processor(text=[turn], images=None if image is None else [image], return_tensors="pt")
        tokens = inputs["input_ids"].shape[1]
        if tokens > self._longest:
            raise ItemError(f"the text has {tokens} tokens, but the model reads at most {self._longest}")
        return Prepared(tokens + (0 if image is None else self._image_work), dict(inputs))

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch."""
        inputs = _collate([item.inputs for item in batch])
        mask = inputs["attention_mask"].bool()
        # Positions count from an item's first token. By default the model counts padding too, and then the rounding of
        # rotary angles in bfloat16 makes a vector depend on its neighbours in the batch: by 0.004, not 0.002.
        inputs["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
        inputs = {name: value.to(self._model.device) for name, value in inputs.items()}
        with torch.inference_mode():
            states = self._model(**inputs, use_cache=False).last_hidden_state
            found = self._vectors(states, inputs["attention_mask"].bool())
            found = functional.normalize(found.float(), dim=-1).cpu()
        if found.ndim == 2:
            return list(found.numpy())
        return [rows[kept].numpy() for rows, kept in zip(found, mask, strict=True)]


def _load(path: Path, source: str, keywords: Mapping[str, Any], *, allowed: Sequence[str]) -> Any:
    # Any: transformers. Use the class itself, not a subclass: transformers looks up a checkpoint's renames by the
    # class's name, and leaves layers with unknown names random.
    return load_strict(Gemma3Model, path, source, keywords, allowed=allowed)


def _processor(path: Path, source: str) -> Any:  # Any: transformers
    try:
        processor = Gemma3Processor.from_pretrained(path)
        # With torchvision installed transformers would resize with it, and vectors would depend on the installation.
        processor.image_processor = Gemma3ImageProcessorPil.from_pretrained(path)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{source} has no Gemma 3 processor that transformers can load: {error}") from error
    tokenizer = processor.tokenizer
    tokenizer.chat_template = tokenizer.chat_template or processor.chat_template
    if not tokenizer.chat_template:
        raise ModelError(f"{source} has no chat template", hint="Copy chat_template.jinja from google/gemma-3-4b-it.")
    tokenizer("a")  # The tokenizer keeps its padding as state: this call sets it once, and threads only read it.
    return processor


def _projection(path: Path, source: str) -> dict[str, torch.Tensor]:
    """Read the projection's tensors; empty if the projection is missing."""
    found = {}
    try:
        for file in sorted(path.glob("model*.safetensors")):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                    if match := _IN_FILE.fullmatch(name):
                        found[match[1]] = tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{source} cannot be read: {error}") from error
    return found


def _linear(model: Any, source: str, tensors: Mapping[str, torch.Tensor]) -> torch.nn.Linear:  # Any: transformers
    """Build the projection.

    Raises:
        ModelError: if a tensor is missing or has a shape that does not fit this model.
    """
    expected = {"weight": (LATE_WIDTH, _width(model)), "bias": (LATE_WIDTH,)}
    for name, shape in expected.items():
        if name not in tensors:
            raise ModelError(f"{source} lacks {PROJECTION}.{name}, which produces the late-interaction vectors")
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{source}: {PROJECTION}.{name} has shape {tuple(tensors[name].shape)}, not {shape}")
    projection = torch.nn.Linear(_width(model), LATE_WIDTH, device="meta")
    projection.load_state_dict(dict(tensors), assign=True)
    return projection


def _width(model: Any) -> int:  # Any: transformers
    return int(model.config.text_config.hidden_size)


def _collate(items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Combine items into a batch: tokens padded on the left, images (all of one size) in the order of their items."""
    longest = max(item["input_ids"].shape[1] for item in items)
    together = {
        name: torch.cat([functional.pad(item[name], (longest - item[name].shape[1], 0)) for item in items])
        for name in _PER_TOKEN
    }
    images = [item["pixel_values"] for item in items if "pixel_values" in item]
    return {**together, "pixel_values": torch.cat(images)} if images else together


def _pool(states: torch.Tensor, mask: torch.Tensor, *, pooling: str) -> torch.Tensor:
    if pooling == "last":
        return states[:, -1]
    if pooling == "cls":
        return states[torch.arange(len(states), device=states.device), mask.int().argmax(1)]
    return states.float().masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1, keepdim=True)
