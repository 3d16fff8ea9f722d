"""Models that mteb opens with its own code."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import mteb
import numpy as np
import torch
from mteb._create_dataloaders import _custom_collate_fn
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.types import PromptType
from torch.utils.data import DataLoader

from llmquant.embedders.mteb_model.options import MtebModelOptions
from llmquant.errors import ModelError, UnsupportedError
from llmquant.plugins.embedder import Embedder, Prepared
from llmquant.retrieval.vectors import scale_to_unit

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs
    from llmquant.study.embedding import Role

_IMAGE_TOKENS = 1024
_LETTERS_PER_TOKEN = 4
_SIDES = {"query": PromptType.query, "document": PromptType.document}
# mteb's code asks for the task of every item; this placeholder stands for all data that are no task of mteb.
_TASK = TaskMetadata(
    name="llmquant",
    description="Texts and images of no task in particular.",
    dataset={"path": "none/none", "revision": "1"},
    type="Retrieval",
    category="t2t",
    eval_langs=["und-Zyyy"],
    main_score="ndcg_at_10",
)


class MtebModelEmbedder(Embedder[MtebModelOptions]):
    """Opens a model with mteb's code."""

    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenMtebModel:
        """Load the model; the dtype is the only quantizer keyword that is used.

        Raises:
            UnsupportedError: for a quantizer, and for models that are not torch modules.
            ModelError: if the model cannot be loaded.
        """
        unknown = set(load_kwargs) - {"dtype"}
        if unknown:
            raise UnsupportedError(
                f"{info.source} is opened by mteb's code, which does not support {min(unknown)}",
                hint="Use bf16_baseline, fp16_baseline or fp32_baseline, or another embedder for this model.",
            )
        meta = mteb.get_model_meta(self.options.name or info.repo)
        try:
            # Use the files that were checked and fetched, at their commit of that time.
            model = meta.model_copy(update={"name": str(path), "revision": None}).load_model(device=ctx.device)
        except Exception as error:  # the models' own code may raise anything
            raise ModelError(f"mteb cannot load {info.source}: {type(error).__name__}: {error}") from error
        modules = [value for value in vars(model).values() if isinstance(value, torch.nn.Module)]
        if not modules:
            raise UnsupportedError(f"{info.source}: mteb's {type(model).__name__} holds no torch module to measure")
        module = modules[0].eval()
        if "dtype" in load_kwargs:
            module.to(load_kwargs["dtype"])
        return OpenMtebModel(model, module, normalized=self.options.info(info).similarity == "cosine")


class OpenMtebModel:
    """One of mteb's models on its device."""

    def __init__(self, model: Any, module: torch.nn.Module, *, normalized: bool) -> None:  # Any: mteb's encoder
        self._model, self.module, self._normalized = model, module, normalized
        self._task, self._sides = _TASK, dict(_SIDES)

    def for_task(self, task: TaskMetadata, role: Role | None) -> tuple[OpenMtebModel, str]:
        """Let mteb's code choose the prompts of a task; without a role, vectors keep their lengths."""
        other = copy.copy(self)
        other._task = task
        if role is None:
            other._sides, other._normalized = dict.fromkeys(_SIDES), False
        return other, f"{role} {task.type} {task.name}"

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Return the item unchanged, because mteb's code processes whole batches."""
        return Prepared(
            _IMAGE_TOKENS if image is not None else 1 + len(text or "") // _LETTERS_PER_TOKEN, (text, image)
        )

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch as queries or documents, of a retrieval task without a name unless `for_task` named one."""
        found: dict[int, NDArray[np.float32]] = {}
        for column, kind in enumerate(("text", "image")):
            numbers = [n for n, item in enumerate(batch) if item.inputs[column] is not None]
            if numbers:
                vectors = self._encode(kind, [batch[n].inputs[column] for n in numbers], role)
                found.update(zip(numbers, vectors, strict=True))
        return [found[n] for n in range(len(batch))]

    def _encode(self, kind: str, items: Sequence[Any], role: Role) -> NDArray[np.float32]:  # Any: texts or images
        feature = datasets.Image() if kind == "image" else datasets.Value("string")
        data = datasets.Dataset.from_dict({kind: list(items)}, features=datasets.Features({kind: feature}))
        loader = DataLoader(data, batch_size=len(items), collate_fn=_custom_collate_fn)
        category = "t2t" if kind == "text" else "i2i"
        metadata = self._task.model_copy(update={"category": category, "modalities": [kind]})
        encoded = self._model.encode(
            loader,
            task_metadata=metadata,
            hf_split="test",
            hf_subset="default",
            prompt_type=self._sides[role],
            batch_size=len(items),
            show_progress_bar=False,
        )
        vectors: NDArray[np.float32] = torch.as_tensor(encoded).float().cpu().numpy()
        if self._normalized:
            scale_to_unit(vectors)
        return vectors
