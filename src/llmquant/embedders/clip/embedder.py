"""CLIP, SigLIP and SigLIP 2 through transformers: a text tower and an image tower that share a vector space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers

from llmquant.embedders.clip.options import ClipOptions
from llmquant.errors import ModelError
from llmquant.loading.strict import load_strict
from llmquant.plugins.embedder import Embedder, Prepared

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role

# The cost of an image is its number of patches, which no input states; the cost of a text is its number of tokens.
_IMAGE_TOKENS = 256


class Clip(Embedder[ClipOptions]):
    """Opens CLIP, SigLIP or SigLIP 2."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenClip:
        """Load both towers."""
        keywords = {**load_kwargs, "device_map": {"": ctx.device}}
        pickle = info.allow_pickle
        module = load_strict(transformers.AutoModel, path, info.source, keywords, allow_pickle=pickle)
        try:
            processor = transformers.AutoProcessor.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ModelError(f"{info.source} has no processor that transformers can load: {error}") from error
        return OpenClip(module, processor)


class OpenClip:
    """Both towers on their device."""

    def __init__(self, module: Any, processor: Any) -> None:  # Any: transformers
        self.module, self._processor = module, processor
        # The tokenizer keeps its padding as state. The padding is set once here, and threads only read it.
        self.prepare("a", None, "query")

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Process a text or an image; texts are padded to the tower's length, as SigLIP was trained."""
        if image is not None:
            return Prepared(_IMAGE_TOKENS, self._processor(images=[image], return_tensors="pt"))
        length = self.module.config.text_config.max_position_embeddings
        inputs = self._processor(
            text=[text], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return Prepared(length, inputs)

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch: all texts together, then all images together."""
        found: dict[int, NDArray[np.float32]] = {}
        for images in (False, True):
            numbers = [i for i, item in enumerate(batch) if ("pixel_values" in item.inputs) is images]
            if numbers:
                vectors = self._forward([batch[i].inputs for i in numbers], images=images)
                found.update(zip(numbers, vectors, strict=True))
        return [found[i] for i in range(len(batch))]

    def _forward(self, inputs: Sequence[Any], *, images: bool) -> NDArray[np.float32]:  # Any: transformers
        module = self.module
        together = {name: torch.cat([each[name] for each in inputs]).to(module.device) for name in inputs[0]}
        if images:
            together["pixel_values"] = together["pixel_values"].to(module.dtype)
        with torch.inference_mode():
            output = (module.get_image_features if images else module.get_text_features)(**together)
        vectors = torch.nn.functional.normalize(output.pooler_output.float(), dim=-1)
        found: NDArray[np.float32] = vectors.cpu().numpy()
        return found
