"""The context of a quantizer or evaluator: device, seed, cache, files."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from llmquant.errors import RunError
from llmquant.study.experiment import Digest, Documents, InputFile
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.storage.cache import Cache

LoadKwargs: TypeAlias = Mapping[str, Any]
"""Keywords for ``from_pretrained``, such as ``dtype`` and ``quantization_config``."""


@dataclass(frozen=True)
class Context:
    """The context that llmquant passes to a quantizer or evaluator.

    Attributes:
        device: device of the model: ``cpu``, ``cuda`` or ``mps``.
        seed: seed of every random choice.
        documents: the documents to use.
        cache: cache for data that can be made again.
        inputs: paths of local files named in options, by content digest.
        reference: the baseline's file; ``None`` on the baseline, which leaves this file in `files`.
        files: a folder; its files are kept with the run.
        progress: function to call with (done, total) during the work.
    """

    device: Device
    seed: int
    documents: Documents
    cache: Cache = field(repr=False)
    inputs: Mapping[Digest, Path]
    reference: Path | None
    files: Path
    progress: Callable[[int, int], None] = field(repr=False)

    def local(self, file: InputFile) -> Path:
        """Return the path on this machine of a file named in an option.

        Raises:
            RunError: if the file is missing on this worker.
        """
        path = self.inputs.get(file.digest) or file.path
        if path is None:
            raise RunError(f"{file.name} was not brought to this worker", hint=f"Its content is {file.digest}.")
        return path
