"""The contract of embedders, before and after loading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from llmquant.errors import PluginError
from llmquant.plugins.context import Context, LoadKwargs
from llmquant.study.embedding import EmbedderInfo, Role
from llmquant.study.job import Device
from llmquant.study.reading import brief

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from PIL.Image import Image

    from llmquant.models.info import ModelInfo


Options = TypeVar("Options")


@dataclass(frozen=True)
class Prepared:
    """An item as the model takes it, on the CPU.

    Attributes:
        tokens: number of tokens, to fill batches evenly.
        inputs: input of ``embed``, in any form.
    """

    tokens: int
    inputs: Any = field(repr=False)  # Any: each embedder's own

    def __post_init__(self) -> None:
        tokens: Any = self.tokens  # Any: a third party's value
        if isinstance(tokens, bool) or not isinstance(tokens, Integral) or int(tokens) < 0:
            raise PluginError(f"Prepared.tokens is {brief(tokens)}", hint="Give a whole number of tokens.")


class OpenEmbedder(Protocol):
    """An embedding model on its device.

    An embedder whose `prepare` keeps results on disk also has a method ``uncached()``: it returns the same embedder
    without them, for measurements of time.

    An embedder that cuts long texts has a method ``too_long(text, role)``: it returns whether a text would be cut.

    An embedder whose prompts depend on the task has a method ``for_task(task, role)``, with mteb's ``TaskMetadata`` and
    ``None`` for the role of items that are neither queries nor documents. It returns the embedder for this task, and a
    text by which cached vectors are distinguished from those of other tasks, empty if they are those of the role alone.
    """

    @property
    def module(self) -> torch.nn.Module:
        """Return the module that holds the weights, for `Quantizer.applied` and for measuring."""
        ...

    def prepare(self, text: str | None, image: Image | None, role: Role) -> Prepared:
        """Apply prompts and preprocessing to one item; called in several threads at once.

        Args:
            text: never empty; ``None`` if the item has only an image.
            image: RGB.
        """
        ...

    def embed(self, batch: Sequence[Prepared], role: Role) -> Sequence[NDArray[np.float32]]:
        """Encode a batch on the device.

        Returns:
            Per item ``(width,)``, or ``(vectors, width)`` with late interaction: unpadded, and of unit length unless
            the similarity is ``dot``.
        """
        ...


class EmbedderOptions(ABC):
    """The light half: options that check themselves; a helper's name begins with ``_``.

    It has a field ``checkpoint: str``, a model as `inspect_model` takes it or ``""`` for none, and may have a field
    ``dim: int | None``, the Matryoshka width that is cut to outside the embedder. Every other option is part of what a
    cached vector is known by.
    """

    @abstractmethod
    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return the properties of the embedder's vectors, from the configuration alone.

        Raises:
            ModelError: if the checkpoint has another architecture.
        """

    def check(self, model: ModelInfo, device: Device) -> None:  # noqa: B027 - optional
        """Refuse an unsupported request before anything is loaded.

        Raises:
            RequestError: if the request is not supported.
        """

    def for_dims(self, dims: Sequence[int]) -> Self | None:
        """Return options of the same embedder whose vectors can be cut to all of a study's widths."""
        return None


class Embedder(ABC, Generic[Options]):
    """Opens an embedding model. Constructed with its options, on the worker."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @abstractmethod
    def open(self, path: Path, info: ModelInfo, load_kwargs: LoadKwargs, ctx: Context) -> OpenEmbedder:
        """Load the checkpoint onto the context's device.

        Args:
            path: the checkpoint's folder; an empty folder if there is no checkpoint.
            load_kwargs: the quantizer's keywords for ``from_pretrained``.

        Raises:
            ModelError: if tensors are missing or unexpected.
        """
