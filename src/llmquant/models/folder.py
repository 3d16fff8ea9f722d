"""A checkpoint folder: the files that are loaded, their content, and its digest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from llmquant.errors import ModelError
from llmquant.models.headers import TensorInfo, read_header, refuse_pointer
from llmquant.storage.atomic import make_folder, write_text
from llmquant.study.experiment import digest_of
from llmquant.study.folders import list_files

INDEX = ".index.json"
_SAFETENSORS, _PICKLE = "model.safetensors", "pytorch_model.bin"
# What auto-gptq calls its one file, as in gptq_model-4bit-128g.safetensors; transformers does not find it.
_AUTO_GPTQ = re.compile(r"gptq_model-\d+bit-(-1|\d+)g\.safetensors")
_SUFFIXES = frozenset({".json", ".model", ".txt", ".jinja", ".py", ".tiktoken", ".spm"})
_FOR_PEOPLE = ("readme", "license", "notice", "requirements")
# Files above this size are hashed once and remembered; below, looking up is no faster than hashing.
_REMEMBERED_BYTES = 16 * 2**20
# A file that was changed this shortly before it was read may be changed again without its times showing it.
_SETTLED_NS = 2 * 10**9


@dataclass(frozen=True)
class Checkpoint:
    """The content of a local folder or a Hub repository.

    Attributes:
        config: ``config.json``.
        weight_files: names of the files that are loaded.
        disk_bytes: their size.
    """

    config: Mapping[str, Any]  # Any: a JSON object
    tensors: tuple[TensorInfo, ...]
    weight_files: tuple[str, ...]
    disk_bytes: int


def read_checkpoint(folder: Path, source: str, *, allow_pickle: bool) -> Checkpoint:
    """Read the configuration and the headers of a local folder.

    Args:
        source: the user's name for the model, for messages.

    Raises:
        ModelError: if a file is missing, damaged or unsafe to open.
    """
    names = [entry.name for entry in folder.iterdir() if entry.is_file()]
    if "config.json" not in names:
        raise _no_config(folder, names, source)

    def read(name: str) -> dict[str, Any]:  # Any: a JSON object
        return read_json(folder / name)

    files = choose_weights(names, read, source, allow_pickle=allow_pickle)
    return Checkpoint(
        config=read("config.json"),
        tensors=joined({name: read_header(folder / name) for name in files}, read, source),
        weight_files=files,
        disk_bytes=sum((folder / name).stat().st_size for name in files),
    )


def choose_weights(
    names: Collection[str],
    read_index: Callable[[str], Mapping[str, Any]],  # Any: a JSON object
    source: str,
    *,
    allow_pickle: bool,
) -> tuple[str, ...]:
    """Choose the weight files as ``from_pretrained`` does: one file before shards, safetensors before pickle.

    Failing these, the file of auto-gptq, which only the ``prequantized`` quantizer can load.

    Args:
        names: the files at the top of the checkpoint.
        read_index: reads one of them as JSON.

    Raises:
        ModelError: if there are none, a shard is missing, or they are pickles and that is not allowed.
    """
    for stem in (_SAFETENSORS, _PICKLE) if allow_pickle else (_SAFETENSORS,):
        if stem not in names and stem + INDEX not in names:
            continue
        if "adapter_config.json" in names:
            raise ModelError(
                f"{source} holds a model and an adapter: transformers would put the adapter on the base model that its "
                "adapter_config.json names",
                hint="If it is merged into the weights, move adapter_config.json and adapter_model.safetensors away; "
                "else merge it first (merge_and_unload).",
            )
        index = read_index(stem + INDEX) if stem + INDEX in names else {}
        if stem not in names:
            return _shards(names, index, stem + INDEX, source)
        weight_map = index.get("weight_map")
        shards = {str(name) for name in weight_map.values()} if isinstance(weight_map, Mapping) else set()
        if second := shards & {*names} - {stem}:
            raise ModelError(
                f"{source} holds two sets of weights: {stem}, and {len(second)} files that {stem}{INDEX} names",
                hint="Keep the one that belongs to its config.json in the folder, and move the other away.",
            )
        return (stem,)
    auto_gptq = tuple(name for name in names if _AUTO_GPTQ.fullmatch(name))
    if len(auto_gptq) == 1:
        return auto_gptq
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    others = sorted(name for name in names if name.endswith((".safetensors", ".gguf")))
    if "adapter_config.json" in names:
        message, hint = "holds an adapter, not a model", "Merge it into its base model first (merge_and_unload)."
    elif pickles and not allow_pickle:
        message = f"has no safetensors, only pickled weights ({pickles[0]}), which can run code when they are opened"
        hint = "If you trust where they come from, allow them: --allow-pickle, or allow_pickle=True."
    elif others or pickles:
        message = f"has no {_SAFETENSORS} nor {_SAFETENSORS}{INDEX}; found {', '.join((others or pickles)[:3])}"
        hint = "Give the path of the .gguf file itself." if any(n.endswith(".gguf") for n in others) else ""
    else:
        message = f"has no weights: neither {_SAFETENSORS} nor {_SAFETENSORS}{INDEX} is there"
        hint = "Was the download interrupted?"
    raise ModelError(f"{source} {message}", hint=hint)


def _shards(names: Collection[str], index: Mapping[str, Any], index_name: str, source: str) -> tuple[str, ...]:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, Mapping) or not weight_map:
        raise ModelError(f"{source}: {index_name} has no weight_map", hint="Fetch the file again.")
    shards = sorted({str(name) for name in weight_map.values()})
    missing = [name for name in shards if name not in names]
    if missing:
        raise ModelError(
            f"{source}: {index_name} names {len(missing)} of {len(shards)} files that are not there: {missing[0]}",
            hint="The download was interrupted; fetch the missing files.",
        )
    return tuple(shards)


def joined(
    headers: Mapping[str, tuple[TensorInfo, ...]],
    read_index: Callable[[str], Mapping[str, Any]],  # Any: a JSON object
    source: str,
) -> tuple[TensorInfo, ...]:
    """Combine the tensors of all files, and compare them with the index if there is one.

    Args:
        headers: what each file that `choose_weights` chose holds.
        read_index: reads a file of the checkpoint as JSON.

    Raises:
        ModelError: if a file lacks what the index says it holds, or a tensor is there twice, also with and without
            the prefix that transformers takes away.
    """
    places: dict[str, list[str]] = {}
    for file, tensors in headers.items():
        for tensor in tensors:
            places.setdefault(tensor.name, []).append(file)
    hint = "Files of two checkpoints were mixed; fetch them again into an empty folder."
    twice = next((name for name, files in places.items() if len(files) > 1), None)
    if twice is not None:
        raise ModelError(f"{source}: {' and '.join(places[twice])} both hold {twice!r}", hint=hint)
    for name in places:
        prefix, _, rest = name.partition(".")
        if rest in places and prefix != "mtp":  # layers that predict further tokens have the names of the others
            raise ModelError(f"{source} holds both {name!r} and {rest!r}, which are one weight of the model", hint=hint)
    stem = _SAFETENSORS if next(iter(headers)).endswith(".safetensors") else _PICKLE
    if stem not in headers and not any(_AUTO_GPTQ.fullmatch(file) for file in headers):
        for name, file in read_index(stem + INDEX)["weight_map"].items():
            if file not in places.get(name, ()):
                raise ModelError(
                    f"{source}: {stem}{INDEX} says that {file} holds {name!r}, and it does not",
                    hint="The index belongs to another checkpoint, or the file was replaced; fetch both again.",
                )
    return tuple(tensor for tensors in headers.values() for tensor in tensors)


def _no_config(folder: Path, names: Collection[str], source: str) -> ModelError:
    ggufs = sorted(name for name in names if name.endswith(".gguf"))
    if "adapter_config.json" in names:
        base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
        return ModelError(
            f"{source} holds an adapter for {base!r}, not a model",
            hint="Merge it into its base model first: with peft, merge_and_unload() and save_pretrained().",
        )
    hint = "A checkpoint folder is what save_pretrained writes."
    if ggufs:
        hint = f"Give the file itself: {folder / ggufs[0]}"
    elif "modules.json" in names:
        hint = (
            "Save a sentence-transformers model of an older layout again: "
            "SentenceTransformer(FOLDER).save_pretrained(NEW). One without a transformer (StaticEmbedding) cannot be "
            "quantized."
        )
    found = f"; found {', '.join(sorted(names)[:5])}" if names else " and no other file"
    return ModelError(f"{source} has no config.json{found}", hint=hint)


def read_json(path: Path) -> dict[str, Any]:  # Any: a JSON object
    """Read a JSON object.

    Raises:
        ModelError: if the file is not one.
    """
    try:
        text = path.read_text(encoding="utf-8")
        refuse_pointer(path, text.encode())
        data = json.loads(text)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", hint="Fetch the file again.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} holds no JSON object")
    return data


def folder_digest(folder: Path, weight_files: Collection[str], remembered: Path) -> str:
    """Digest every file that can change what the model computes: weights, configuration, tokenizer, code.

    Args:
        remembered: where digests of large files are kept, so that they are not read again.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    files = list_files(folder, ("additional_chat_templates", "[0-9]_*"))
    names = [
        name
        for name, path in files.items()
        if name in weight_files
        or "/" in name  # sentence-transformers' modules have weights of their own
        or (path.suffix in _SUFFIXES and not name.lower().startswith(_FOR_PEOPLE))
    ]
    return digest_of({name: file_digest(files[name], remembered) for name in names})


def file_digest(path: Path, remembered: Path) -> str:
    """Digest a file's content; a large one only if its path, size, times, inode or disk are new.

    The time of the last change of the inode is among them, which no copy, ``touch`` or ``rsync`` can set.

    Returns:
        ``sha256:`` and 64 hexadecimal digits.
    """
    path = path.resolve()
    with path.open("rb") as stream:  # opened first: a network disk then asks for the file as it is now
        state = _state(stream)
        record = remembered / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
        if state["size"] > _REMEMBERED_BYTES:
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # whatever is wrong with it, hash again
                known = json.loads(record.read_text(encoding="utf-8"))
                if known["state"] == state:
                    return str(known["digest"])
        started = time.time_ns()
        digest = f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
        settled = max(state["changed_ns"], state["modified_ns"]) <= started - _SETTLED_NS and _state(stream) == state
    if settled and state["size"] > _REMEMBERED_BYTES:
        with contextlib.suppress(OSError):  # a cache that cannot be written costs time, not correctness
            make_folder(remembered)
            write_text(record, json.dumps({"path": str(path), "state": state, "digest": digest}))
    return digest


def _state(stream: BinaryIO) -> dict[str, int]:
    """Return all that tells a file from another one, or from itself before a change, without reading it."""
    found = os.fstat(stream.fileno())
    return {
        "size": found.st_size,
        "modified_ns": found.st_mtime_ns,
        "changed_ns": found.st_ctime_ns,
        "inode": found.st_ino,
        "device": found.st_dev,
    }
