"""The baseline's file: the tokens it read, its final hidden states, and how its head makes logits of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from llmquant.errors import RunError
from llmquant.evaluators.fidelity.head import Head, project_with, read_weight, tensor_digest
from llmquant.evaluators.perplexity.reading import Floats, TextWindows


@dataclass(frozen=True)
class Floor:
    """The baseline's divergence from itself in another dtype.

    Attributes:
        windows: numbers of the windows in which it was measured.
        sums: nats in each of these windows.
        dtype: the other dtype.
    """

    windows: npt.NDArray[np.int64]
    sums: Floats
    dtype: str


@dataclass(frozen=True)
class HeadWeight:
    """The weight of the baseline's head.

    Attributes:
        weight: ``(vocabulary, width)``.
        name: its name in the baseline's checkpoint; ``None`` if it is not stored there, so that the file carries it.
    """

    weight: Tensor
    bias: Tensor | None
    name: str | None


class Reference:
    """The baseline's file, opened for reading; hidden states are read as they are needed."""

    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")  # Any: safetensors has no types
        self._about: dict[str, Any] = json.loads(self._file.metadata()["about"])  # Any: a JSON object

    def states(self, begin: int, end: int) -> Tensor:
        """Return the ``(end - begin, width)`` hidden states that predict the scored tokens `begin` to `end`."""
        found: Tensor = self._file.get_slice("states")[begin:end]
        return found

    def floor(self) -> Floor | None:
        """Return the noise floor; ``None`` if it was not measured."""
        if "floor" not in self._file.keys():  # noqa: SIM118 - safe_open is not a mapping
            return None
        sums, windows = (self._file.get_tensor(name).numpy() for name in ("floor", "floor windows"))
        return Floor(windows, sums, self._about["floor_dtype"])

    def check(self, text: TextWindows) -> None:
        """Refuse a file for other tokens or windows.

        Raises:
            RunError: if there is a difference.
        """
        for name, mine in _read(text).items():
            theirs = self._file.get_tensor(name)
            if not torch.equal(theirs, mine):
                raise RunError(
                    f"fidelity: the baseline's {name} differ from the variant's ({len(theirs)} and {len(mine)}): it "
                    "read another text, or the same text with another tokenizer or other windows",
                    hint="Use the baseline's text, window and tokenizer.",
                )

    def head(self, checkpoint: Path, device: torch.device) -> Head:
        """Return the baseline's head, whose weight is in this file or in the baseline's checkpoint.

        Raises:
            RunError: if the checkpoint holds another weight.
        """
        about = self._about
        if about["name"] is None:
            weight: Tensor | None = self._file.get_tensor("weight")
        else:
            weight = read_weight(checkpoint, about["name"], getattr(torch, about["dtype"]))
        if weight is None or tensor_digest(weight) != about["digest"]:
            raise RunError(
                f"fidelity: {about['name'] or 'the head'} in {checkpoint} is not the baseline's head",
                hint="The baseline and the variant must be made from the same checkpoint.",
            )
        bias = self._file.get_tensor("bias").to(device) if about["bias"] else None
        return Head(project_with(weight.to(device), bias), weight.shape[0], device, about["scale"], about["cap"])


def write_reference(
    path: Path, text: TextWindows, states: Tensor, weight: HeadWeight, head: Head, floor: Floor | None
) -> None:
    """Write the baseline's file.

    Args:
        states: ``(tokens, width)``, from which the scored tokens are predicted, in their order.
        floor: ``None`` if it was not measured.
    """
    tensors = {"states": states, **_read(text)}
    if weight.name is None:
        tensors["weight"] = weight.weight.cpu().contiguous().clone()
    if weight.bias is not None:
        tensors["bias"] = weight.bias.cpu()
    if floor is not None:
        tensors |= {"floor": torch.from_numpy(floor.sums), "floor windows": torch.from_numpy(floor.windows)}
    about = {
        "name": weight.name,
        "digest": tensor_digest(weight.weight),
        "dtype": str(weight.weight.dtype).removeprefix("torch."),
        "bias": weight.bias is not None,
        "scale": head.scale,
        "cap": head.cap,
        "floor_dtype": None if floor is None else floor.dtype,
    }
    save_file(tensors, path, {"about": json.dumps(about)})


def _read(text: TextWindows) -> dict[str, Tensor]:
    """Return the token ids that are read, after a BOS or its like (or -1), and the windows' bounds."""
    windows = [(w.begin, w.first, w.end) for w in text.windows]
    ids = [*(text.encoded.lead or [-1]), *text.encoded.ids[: text.windows[-1].end]]
    return {"token ids": torch.tensor(ids, dtype=torch.int32), "windows": torch.tensor(windows, dtype=torch.int32)}
