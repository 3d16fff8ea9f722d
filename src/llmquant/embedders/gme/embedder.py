"""GME through transformers' Qwen2-VL: the state of the last token, without the checkpoint's own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from llmquant.embedders.gme.options import GmeOptions
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

# These values come from the model's own code.
_FACTOR = 28
_TOKEN_PIXELS = _FACTOR**2
_MIN_TOKENS, _MAX_TOKENS = 256, 1280
_FIRST_RESIZE = (4 * _TOKEN_PIXELS, 16384 * _TOKEN_PIXELS)
_MAX_LENGTH = 1800
_NO_INSTRUCTION = "You are a helpful assistant."
_IMAGE = "<|image_pad|>"


class Gme(Embedder[GmeOptions]):
    """Opens a GME checkpoint."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenGme:
        """Load the checkpoint without the language model's head."""
        keywords = {**load_kwargs, "device_map": {"": ctx.device}}
        module = load_strict(Qwen2VLModel, path, info.source, keywords, allowed=(HEAD,))
        pixels = {"shortest_edge": _MIN_TOKENS * _TOKEN_PIXELS, "longest_edge": _MAX_TOKENS * _TOKEN_PIXELS}
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            images = Qwen2VLImageProcessorPil.from_pretrained(path, size=pixels)
        except (OSError, ValueError) as error:
            raise ModelError(f"{info.source} has no processor that transformers can load: {error}") from error
        return OpenGme(module, tokenizer, images, self.options.instruction)


class OpenGme:
    """A GME on its device."""

    def __init__(self, module: Any, tokenizer: Any, images: Any, instruction: str) -> None:  # Any: transformers
        self.module, self._tokenizer, self._images, self._instruction = module, tokenizer, images, instruction
        # The tokenizer keeps its truncation as state. The truncation is set once here, and threads only read it.
        self.prepare("a", None, "query")

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Write a conversation turn as in training, with one image token per patch of the image."""
        inputs: dict[str, torch.Tensor] = {}
        content = text or ""
        if image is not None:
            inputs.update(self._pixels(image))
            count = int(inputs["image_grid_thw"].prod()) // self._images.merge_size**2
            content = f"<|vision_start|>{_IMAGE * count}<|vision_end|>{content}"
        instruction = self._instruction if role == "query" else _NO_INSTRUCTION
        turn = (
            f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
            "<|im_start|>assistant\n<|endoftext|>"
        )
        inputs["input_ids"] = self._tokenizer(
            turn, truncation=True, max_length=_MAX_LENGTH, return_tensors="pt"
        ).input_ids
        return Prepared(inputs["input_ids"].shape[1], inputs)

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch, padded on the right, where a causal model does not see the padding."""
        module, ids = self.module, [item.inputs["input_ids"][0] for item in batch]
        images = [item.inputs for item in batch if "pixel_values" in item.inputs]
        lengths = torch.tensor([len(each) for each in ids], device=module.device)
        padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_token_id)
        places = torch.arange(padded.shape[1], device=module.device)
        inputs = {
            "input_ids": padded.to(module.device),
            "attention_mask": (places < lengths[:, None]).long(),
            # One position number per token, also for image tokens: the model's own code does not use Qwen2-VL's
            # three-dimensional positions.
            "position_ids": places.expand(3, len(batch), -1),
        }
        if images:
            for name in ("pixel_values", "image_grid_thw"):
                inputs[name] = torch.cat([each[name] for each in images]).to(module.device)
        with torch.inference_mode():
            states = module(**inputs, use_cache=False).last_hidden_state
        last = states[torch.arange(len(batch), device=module.device), lengths - 1]
        return list(torch.nn.functional.normalize(last.float(), dim=-1).cpu().numpy())

    def _pixels(self, image: Image) -> Mapping[str, torch.Tensor]:
        width, height = image.size
        try:
            # The image is resized twice, as in the model's own code; the first pass roughly keeps the number of pixels.
            height, width = smart_resize(height, width, _FACTOR, *_FIRST_RESIZE)
            found: Mapping[str, torch.Tensor] = self._images([image.resize((width, height))], return_tensors="pt")
        except ValueError as error:
            raise ItemError(
                f"an image of {image.size[0]} x {image.size[1]} pixels cannot be encoded: {error}"
            ) from error
        return found
