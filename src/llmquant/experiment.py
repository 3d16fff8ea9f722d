"""Variants and experiments: pure data, and the digests that name them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NewType

from llmquant.call import Json
from llmquant.errors import OptionError, StoreError

RunId = NewType("RunId", str)
Digest = NewType("Digest", str)
PluginKind = Literal["quantizer", "evaluator", "embedder", "executor"]


def canonical_json(value: Json) -> str:
    """Write a value as JSON that is equal for equal values: sorted keys, no spaces, ASCII.

    Raises:
        ValueError: for a number that is not finite.
        TypeError: for what is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_of(value: Json) -> Digest:
    """Digest a JSON value: ``sha256:`` and 64 hexadecimal digits."""
    return Digest("sha256:" + hashlib.sha256(canonical_json(value).encode()).hexdigest())


@dataclass(frozen=True)
class InputFile:
    """A local file that an option names: known by content, not by path.

    Attributes:
        digest: ``sha256:`` and 64 hexadecimal digits of the content.
        name: the file's name, for people; no part of any identity.
        path: where it is on this machine; ``None`` on a worker, which asks ``Context.inputs[digest]``.
    """

    digest: Digest
    name: str = field(compare=False)
    path: Path | None = field(default=None, compare=False)

    @classmethod
    def read(cls, path: Path) -> InputFile:
        """Digest the file at `path`.

        Raises:
            OptionError: if it is not a readable, non-empty file.
        """
        try:
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            size = path.stat().st_size
        except (OSError, ValueError) as error:  # a ValueError is a name that no file can have
            raise OptionError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
        if size == 0:
            raise OptionError(f"{path} is empty")
        return cls(Digest(f"sha256:{digest}"), path.name, path.absolute())


@dataclass(frozen=True)
class ModelUse:
    """A model inside an experiment.

    Attributes:
        source: as it was asked for, for people; no part of the identity.
        digest: ``commit:<sha>`` of a Hub model, ``sha256:<hex>`` of local files.
        flags: settings that change what is loaded, such as ``trust_remote_code``.
    """

    source: str
    digest: str
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name it for people: of a local path the last part."""
        return Path(self.source).name if self.digest.startswith("sha256:") else self.source

    def identity(self) -> Json:
        """Return what of it enters a run's identity."""
        return {"digest": self.digest, "flags": sorted(self.flags)}

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return it as a JSON object."""
        return {"source": self.source, "digest": self.digest, "flags": list(self.flags)}


@dataclass(frozen=True)
class PluginUse:
    """A plugin inside an experiment, its options complete.

    Attributes:
        plugin: full name, ``distribution/name``.
        version: the spec's version, raised by the author when results change.
        options: every option, defaults included, as JSON; files as ``{"digest": ..., "name": ...}``.
        label: how the variant or evaluator is called in tables: the preset, or the call as it was written.
    """

    plugin: str
    version: str
    options: Mapping[str, Json]
    label: str

    def identity(self) -> Json:
        """Return what of it enters a run's identity: not the label, and of files only the content."""
        return {"plugin": self.plugin, "version": self.version, "options": _by_content(self.options)}

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return it as a JSON object; the constructor takes its fields."""
        return vars(self) | {"options": dict(self.options)}


@dataclass(frozen=True)
class Variant:
    """What one could ship: a model and how its weights are represented."""

    model: ModelUse
    quantizer: PluginUse


@dataclass(frozen=True)
class Documents:
    """Which documents of a task are used.

    Attributes:
        limit: the first so many of each task, as lm-eval counts them; ``None`` is all of them.
    """

    limit: int | None = None


@dataclass(frozen=True)
class Experiment:
    """One variant, one evaluator on one task, its documents and a seed: the unit of reuse and of failure.

    Attributes:
        documents: ``None`` for evaluators that use no documents.
        hardware: the executor's hardware, for evaluators whose numbers depend on it; else ``None``.
        reference: digest of the baseline's file, for evaluators that compare with one; else ``None``.
    """

    variant: Variant
    evaluator: PluginUse
    documents: Documents | None
    seed: int
    hardware: str | None = None
    reference: Digest | None = None

    @property
    def run_id(self) -> RunId:
        """Name the run by what was asked: 20 hexadecimal digits."""
        identity: Json = {
            "model": self.variant.model.identity(),
            "quantizer": self.variant.quantizer.identity(),
            "evaluator": self.evaluator.identity(),
            "documents": None if self.documents is None else {"limit": self.documents.limit},
            "seed": self.seed,
            "hardware": self.hardware,
            "reference": self.reference,
        }
        return RunId(digest_of(identity).removeprefix("sha256:")[:20])

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the experiment as a JSON object that `from_json` reads."""
        return {
            "model": self.variant.model.to_json(),
            "quantizer": self.variant.quantizer.to_json(),
            "evaluator": self.evaluator.to_json(),
            "documents": None if self.documents is None else {"limit": self.documents.limit},
            "seed": self.seed,
            "hardware": self.hardware,
            "reference": self.reference,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Experiment:  # Any: a JSON object
        """Read what `to_json` wrote.

        Raises:
            StoreError: if a field is missing or unknown.
        """
        try:
            model = data["model"]
            used = ModelUse(model["source"], model["digest"], tuple(model["flags"]))
            return cls(
                Variant(used, PluginUse(**data["quantizer"])),
                PluginUse(**data["evaluator"]),
                None if data["documents"] is None else Documents(**data["documents"]),
                data["seed"],
                data["hardware"],
                data["reference"],
            )
        except (KeyError, TypeError) as error:
            raise StoreError(f"an experiment cannot be read: {error!r}") from error


@dataclass(frozen=True)
class ModelRequest:
    """A model as somebody asked for it.

    Attributes:
        source: a Hub id with an optional ``@revision``, a folder (``./`` or absolute), or a ``.gguf`` file.
        trust_remote_code: run Python code that the checkpoint carries.
        allow_pickle: read ``.bin`` checkpoints, which can run code when they are opened.
    """

    source: str
    trust_remote_code: bool = False
    allow_pickle: bool = False

    @property
    def flags(self) -> tuple[str, ...]:
        """Name the settings that are on."""
        return tuple(name for name in ("trust_remote_code", "allow_pickle") if getattr(self, name))


def _by_content(value: Json) -> Json:
    """Leave out what files are called."""
    if isinstance(value, Mapping):
        if set(value) == {"digest", "name"}:
            return {"digest": value["digest"]}
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(item) for item in value]
    return value
