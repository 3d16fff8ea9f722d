"""What a quantizer or an evaluator gets to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import RunError
from llmquant.study.experiment import Digest, Documents, InputFile
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.storage.cache import Cache


@dataclass(frozen=True)
class Context:
    """All that a quantizer or an evaluator gets from us.

    Attributes:
        device: where the model is: ``cpu``, ``cuda`` or ``mps``.
        seed: for every random choice.
        documents: which documents to use.
        cache: for what can be made again.
        inputs: local files that options name, by content.
        reference: the baseline's file; ``None``: this is the baseline, leave one in `files`.
        files: a folder; what is written here is kept with the run.
        progress: call with (done, total) as the work goes on.
    """

    device: Device
    seed: int
    documents: Documents
    cache: Cache
    inputs: Mapping[Digest, Path]
    reference: Path | None
    files: Path
    progress: Callable[[int, int], None]

    def local(self, file: InputFile) -> Path:
        """Return where a file that an option names is on this machine.

        Raises:
            RunError: if it was not brought here.
        """
        path = self.inputs.get(file.digest) or file.path
        if path is None:
            raise RunError(f"{file.name} was not brought to this worker", hint=f"Its content is {file.digest}.")
        return path
