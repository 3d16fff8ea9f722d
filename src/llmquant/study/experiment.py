"""Variants and experiments: pure data, and the digests that name them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NewType

from llmquant.errors import OptionError
from llmquant.study.call import Json
from llmquant.study.folders import file_sha256, list_files
from llmquant.study.reading import Count, Positive, nested, read_as, stored, table

RunId = NewType("RunId", str)
Digest = NewType("Digest", str)
PluginKind = Literal["quantizer", "evaluator", "embedder", "executor"]
Codec = Literal["float32", "float16", "int8", "int4", "binary"]


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


def visible(text: str) -> str:
    r"""Return a text that can be stored and printed: a lone surrogate, which UTF-8 cannot hold, becomes ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode()


def path_of(text: str | Path) -> Path:
    """Return the path that was written, with ``~`` as the home folder; of a user who is not here, as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # so that it is told as a file that is not there
        return Path(text)


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
            digest = file_sha256(path)
            size = path.stat().st_size
        except (OSError, ValueError) as error:  # a ValueError is a name that no file can have
            raise OptionError(f"cannot read {path}: {getattr(error, 'strerror', error)}") from error
        if size == 0:
            raise OptionError(f"{path} is empty")
        return cls(Digest(f"sha256:{digest}"), _name(path), path.absolute())


@dataclass(frozen=True)
class InputFolder(InputFile):
    """A local folder that an option names: known by the names and contents of its files, not by its path."""

    @classmethod
    def read(cls, path: Path) -> InputFolder:
        """Digest the files in the folder at `path`, as `list_files` lists them.

        Raises:
            OptionError: if it is no folder, has no files, or something in it cannot be read.
        """
        if not path.is_dir():
            raise OptionError(f"{path} is no folder" if path.exists() else f"{path} is not there")
        try:
            digests: dict[str, Json] = {name: file_sha256(file) for name, file in list_files(path).items()}
        except OSError as error:
            raise OptionError(f"cannot read {error.filename or path}: {error.strerror}") from error
        if not digests:
            raise OptionError(f"{path} has no files")
        return cls(digest_of(digests), _name(path), path.absolute())


@dataclass(frozen=True)
class ModelUse:
    """A model inside an experiment.

    Attributes:
        source: as it was asked for, for people; no part of the identity.
        digest: ``commit:<sha>`` of a Hub model, ``sha256:<hex>`` of local files; of an embedder, of its checkpoint and
            its options together.
        flags: settings that change what is loaded, such as ``trust_remote_code``.
        embedder: the plugin that opens it, ``None`` for a causal language model.
    """

    source: str
    digest: str
    flags: tuple[str, ...] = ()
    embedder: PluginUse | None = None

    @property
    def name(self) -> str:
        """Name it for people: of a local path the last part."""
        if self.embedder is not None:
            return self.embedder.label
        return Path(self.source).name if self.digest.startswith("sha256:") else self.source

    def identity(self) -> Json:
        """Return what of it enters a run's identity."""
        return {"digest": self.digest, "flags": sorted(self.flags)}

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return it as a JSON object."""
        embedder = None if self.embedder is None else self.embedder.to_json()
        return {"source": self.source, "digest": self.digest, "flags": list(self.flags), "embedder": embedder}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelUse:  # Any: a JSON object
        """Read what `to_json` wrote.

        Raises:
            DamagedError: if it is something else.
        """
        with stored("a model"):
            return read_as(cls, data)


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
class VectorForm:
    """How an embedder's vectors are kept and searched: what a vector store would hold.

    Attributes:
        dim: leading dimensions that are kept, at unit length again (Matryoshka); ``None`` keeps all.
        codec: of the documents; queries stay float32.
        pool: of late interaction, how many of a document's vectors become one, on average; 1 keeps them all.
        rescore: this many times the results asked for are scored again with the float32 documents; 0 is never.
    """

    dim: Positive | None = None
    codec: Codec = "float32"
    pool: Positive = 1
    rescore: Count = 0

    def __str__(self) -> str:
        parts = (
            f"{self.dim}d" if self.dim is not None else "",
            self.codec,
            f"pool {self.pool}" if self.pool > 1 else "",
            f"rescore {self.rescore}" if self.rescore else "",
        )
        return " ".join(filter(None, parts))


@dataclass(frozen=True)
class VectorGrid:
    """The forms of vectors that a study compares: every combination.

    Attributes:
        dims: widths; empty leaves each embedder its own.
        codecs: empty is float32 alone.
        pools: empty is 1 alone.
        rescores: empty is 0 alone.
    """

    dims: tuple[Positive, ...] = ()
    codecs: tuple[Codec, ...] = ()
    pools: tuple[Positive, ...] = ()
    rescores: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        table(VectorGrid, vars(self), "vectors")

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> VectorGrid:  # Any: whatever somebody wrote
        """Read a table of lists.

        Raises:
            OptionError: if it is none, or has another key or a wrong value.
        """
        return read_as(cls, data, "vectors")

    def forms(self, dim: int | None) -> tuple[VectorForm, ...]:
        """Return every combination, the first one as written first; `dim` stands in where no widths are named."""
        axes = (self.dims or (dim,), self.codecs or ("float32",), self.pools or (1,), self.rescores or (0,))
        return tuple(dict.fromkeys(VectorForm(*choice) for choice in itertools.product(*axes)))


@dataclass(frozen=True)
class Variant:
    """What one could ship: a model, how its weights are represented, and of an embedder how its vectors are kept."""

    model: ModelUse
    quantizer: PluginUse
    vectors: VectorForm | None = None


@dataclass(frozen=True)
class Documents:
    """Which documents of a task are used.

    Attributes:
        limit: the first so many of each task, as lm-eval counts them; ``None`` is all of them.
    """

    limit: Positive | None = None


@dataclass(frozen=True)
class Experiment:
    """One variant, one evaluator on one task, its documents and a seed: the unit of reuse and of failure.

    Attributes:
        documents: ``None`` for evaluators that use no documents.
        hardware: the executor's hardware, for evaluators whose numbers depend on it; else ``None``.
        reference: of evaluators that compare with a file of the baseline's: the run that leaves it; ``None`` is that
            run itself, and every other evaluator's.
    """

    variant: Variant
    evaluator: PluginUse
    documents: Documents | None
    seed: int
    hardware: str | None = None
    reference: RunId | None = None

    @property
    def run_id(self) -> RunId:
        """Name the run by what was asked: 20 hexadecimal digits."""
        vectors = self.variant.vectors
        identity: dict[str, Json] = {
            "model": self.variant.model.identity(),
            "quantizer": self.variant.quantizer.identity(),
            "evaluator": self.evaluator.identity(),
            "documents": None if self.documents is None else {"limit": self.documents.limit},
            "seed": self.seed,
            "hardware": self.hardware,
            "reference": self.reference,
        }
        if vectors is not None:
            identity["vectors"] = vars(vectors)
        return RunId(digest_of(identity).removeprefix("sha256:")[:20])

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the experiment as a JSON object that `from_json` reads."""
        return {
            "model": self.variant.model.to_json(),
            "quantizer": self.variant.quantizer.to_json(),
            "vectors": None if self.variant.vectors is None else vars(self.variant.vectors),
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
            DamagedError: if a field is missing, unknown or of a wrong type.
        """
        with stored("an experiment"):
            return read_as(cls, nested(Variant, "variant", data))


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

    def __post_init__(self) -> None:
        table(ModelRequest, vars(self), "model")

    @property
    def flags(self) -> tuple[str, ...]:
        """Name the settings that are on."""
        return tuple(name for name in ("trust_remote_code", "allow_pickle") if getattr(self, name))


def _name(path: Path) -> str:
    if str(path.absolute()) != visible(str(path.absolute())):
        raise OptionError(f"{visible(str(path))} has a name that is not UTF-8", hint="Rename it.")
    return path.absolute().name


def _by_content(value: Json) -> Json:
    """Leave out what files are called."""
    if isinstance(value, Mapping):
        if set(value) == {"digest", "name"}:
            return {"digest": value["digest"]}
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(item) for item in value]
    return value
