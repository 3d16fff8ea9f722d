"""Options of models that mteb opens by its own code, and what mteb says of their vectors."""

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
    """Any model of one vector an item that mteb has code for.

    mteb's code chooses prompts by task; here a query and a document are encoded as those of a retrieval task without a
    name. Of quantizers only the baselines apply: mteb's loaders take no others.

    Attributes:
        checkpoint: a Hub id or a folder.
        name: what mteb calls the model whose code opens the folder; by default the Hub id.
        dim: cut vectors to so many leading numbers and bring them to unit length again (Matryoshka).
    """

    checkpoint: str
    name: str = ""
    dim: int | None = None

    def info(self, model: ModelInfo) -> EmbedderInfo:
        """Return what mteb says of the model.

        Raises:
            UnknownNameError: if mteb has no code for it.
            OptionError: if it cannot be cut to `dim`.
            UnsupportedError: if it compares vectors by a distance, or encodes neither texts nor images.
            MissingDependencyError: if mteb is installed and cannot be imported.
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
                hint="Only texts and images, by cosine and dot, are known here.",
            )
        if self.dim is not None and self.dim not in found.dims:
            widths = ", ".join(map(str, found.dims))
            raise OptionError(f"{name} cannot be cut to {self.dim} numbers", hint=f"mteb says: {widths}.")
        return EmbedderInfo(found.dims[0], found.dims, modalities, _SIMILARITIES[found.similarity], "sum", self.dim)


__all__ = ["MtebModelOptions"]
