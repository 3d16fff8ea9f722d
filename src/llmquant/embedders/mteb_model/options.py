"""Options of models that mteb opens with its own code, and mteb's description of their vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.errors import OptionError, UnknownNameError, UnsupportedError, nearest
from llmquant.study.embedding import EmbedderInfo, Modality, Similarity

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

_SIMILARITIES: dict[str, Similarity] = {"cosine": "cosine", "dot": "dot"}
_MODALITIES: tuple[Modality, ...] = ("text", "image")


@dataclass(frozen=True)
class MtebModelOptions:
    """Any model with one vector per item that mteb's code can open.

    mteb's code chooses prompts by task; outside a task, llmquant encodes queries and documents as those of a retrieval
    task without a name. Only the baseline quantizers apply, because mteb's loaders support no others.

    Attributes:
        checkpoint: a Hub id or a folder, for example ``intfloat/multilingual-e5-small``.
        name: mteb's name of the model whose code opens the folder; by default the Hub id.
        dim: number of leading dimensions to which vectors are cut before they are normalized again (Matryoshka), for
            example 256.
    """

    checkpoint: str
    name: str = ""
    dim: int | None = None

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return mteb's description of the model.

        Raises:
            UnknownNameError: if mteb has no code for the model.
            OptionError: if its vectors cannot be cut to `dim`.
            UnsupportedError: if the model compares vectors by a distance, or encodes neither texts nor images.
            MissingDependencyError: if mteb is installed but cannot be imported.
        """
        from llmquant.catalogs.mteb import known_mteb
        from llmquant.storage.cache import Cache

        known = known_mteb(Cache.default()).models
        name = self.name or model.repo or ""
        if name not in known:
            raise UnknownNameError(f"mteb has no model {name or self.checkpoint!r}", hint=nearest(name, known))
        found = known[name]
        modalities = tuple(modality for modality in _MODALITIES if modality in found.modalities)
        if found.similarity not in _SIMILARITIES or not modalities:
            raise UnsupportedError(
                f"{name} encodes {' and '.join(found.modalities)} and compares by {found.similarity}",
                hint="llmquant supports texts and images, compared by cosine or dot.",
            )
        if self.dim is not None and self.dim not in found.dims:
            widths = ", ".join(map(str, found.dims))
            raise OptionError(f"{name} cannot be cut to {self.dim} dimensions", hint=f"mteb lists {widths}.")
        return EmbedderInfo(found.dims[0], found.dims, modalities, _SIMILARITIES[found.similarity], "sum", self.dim)
