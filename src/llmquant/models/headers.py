"""Read names, types and shapes of tensors from weight files, without loading or running anything."""

from __future__ import annotations

import importlib.util
import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmquant.errors import MissingDependencyError, ModelError

# As safetensors abbreviates them; the values are the names that PyTorch uses.
_SAFETENSORS_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
# Bytes of a number by this name of its type.
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1}
DTYPE_BYTES |= {"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}
# The limit of the safetensors library itself; a larger number is not a header.
_LARGEST_HEADER = 100 * 2**20
_PIECE = 16 * 2**20


@dataclass(frozen=True)
class TensorInfo:
    """One stored tensor.

    Attributes:
        name: the tensor's name in the file.
        dtype: PyTorch's name for it (``bfloat16``), or a GGUF block type (``Q4_1``).
        shape: outermost dimension first; of a linear layer ``(out_features, in_features)``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Count the numbers in it."""
        return math.prod(self.shape)


def read_header(path: Path) -> tuple[TensorInfo, ...]:
    """Read which tensors a ``.safetensors`` or ``.bin`` file holds."""
    if path.suffix == ".safetensors":
        return read_safetensors_header(path)
    with path.open("rb") as stream:
        return read_pickle_header(stream, str(path))


def read_safetensors_header(path: Path) -> tuple[TensorInfo, ...]:
    """Read one ``.safetensors`` file's header, and check that the file holds what it promises.

    Raises:
        ModelError: if the header is damaged or the file is shorter or longer than its tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        refuse_pointer(path, start)
        length = int.from_bytes(start, "little")
        if size < 8 or length > min(size - 8, _LARGEST_HEADER):
            raise _damaged(path, f"its header should have {length:,} bytes and the file has {size:,}")
        raw = stream.read(length)
    try:
        header: dict[str, Any] = json.loads(raw)  # Any: a JSON object
        header.pop("__metadata__", None)
        tensors = tuple(tensor_from_safetensors(name, h["dtype"], h["shape"]) for name, h in header.items())
        end = max((int(entry["data_offsets"][1]) for entry in header.values()), default=0)
        wrong = [
            tensor.name
            for tensor, entry in zip(tensors, header.values(), strict=True)
            if (width := DTYPE_BYTES.get(tensor.dtype)) is not None
            and entry["data_offsets"][1] - entry["data_offsets"][0] != width * tensor.elements
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _damaged(path, f"its header cannot be read ({error!r})") from error
    if wrong:
        raise _damaged(path, f"{wrong[0]!r} does not have the bytes that its shape needs")
    if size != 8 + length + end:
        raise _damaged(path, f"its tensors end at byte {8 + length + end:,} and the file has {size:,}")
    return tensors


def refuse_pointer(path: Path, start: bytes) -> None:
    """Refuse what Git writes in place of a large file.

    Args:
        start: the first bytes of the file, 8 or more.

    Raises:
        ModelError: if they are those of a pointer of Git LFS.
    """
    if start.startswith(b"version "):
        raise ModelError(f"{path} is a pointer of Git LFS, not the file itself", hint="Run: git lfs pull")


def stored_bytes(path: Path, name: str) -> Iterator[bytes]:
    """Yield one tensor's bytes in pieces, from a ``.safetensors`` file whose header `read_safetensors_header` accepts.

    Nothing comes from a file that does not hold the tensor.
    """
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        begin, end = json.loads(stream.read(length)).get(name, {}).get("data_offsets", (0, 0))
        stream.seek(8 + length + begin)
        for start in range(begin, end, _PIECE):
            yield stream.read(min(_PIECE, end - start))


def tensor_from_safetensors(name: str, dtype: str, shape: list[int]) -> TensorInfo:
    """Describe a tensor of a safetensors header, whose types are abbreviated."""
    return TensorInfo(name, _SAFETENSORS_TYPES.get(dtype, dtype.lower()), tuple(int(n) for n in shape))


def read_pickle_header(stream: BinaryIO, name: str) -> tuple[TensorInfo, ...]:
    """Read which tensors a ``.bin`` file of PyTorch holds, with PyTorch's loader that runs none of the file's code.

    Args:
        stream: seekable; only the index and the pickle are read, not the tensors.
        name: the file's name, for messages.

    Raises:
        ModelError: if it is damaged, or holds anything else than tensors.
        MissingDependencyError: without torch.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingDependencyError(f"{name} is a pickle and needs torch", hint='Run: pip install "llmquant[local]"')
    import torch

    try:
        state = torch.load(stream, map_location="meta", weights_only=True)
        tensors = [(key, value) for key, value in state.items() if isinstance(value, torch.Tensor)]
    except (pickle.PickleError, RuntimeError, EOFError, LookupError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{name} is not a readable PyTorch checkpoint: it is damaged, or holds more than tensors",
            hint="Convert it to safetensors.",
        ) from error
    return tuple(TensorInfo(key, str(value.dtype).removeprefix("torch."), tuple(value.shape)) for key, value in tensors)


def _damaged(path: Path, what: str) -> ModelError:
    return ModelError(f"{path} is damaged: {what}", hint="The download or copy was cut short; fetch the file again.")
