"""Variants and experiments: pure data, and the digests that name them."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NewType

from llmquant.errors import OptionError
from llmquant.study.call import Json
from llmquant.study.folders import file_sha256, list_files, near
from llmquant.study.reading import Count, Positive, brief, nested, read_as, stored, table
from llmquant.study.slices import Slice

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
    return Digest(f"sha256:{hex_digest(value)}")


def hex_digest(value: Json) -> str:
    """Digest a JSON value: 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def visible(text: str) -> str:
    r"""Return a text that can be stored and printed: a lone surrogate, which UTF-8 cannot hold, becomes ``\ud800``."""
    return text.encode("utf-8", "backslashreplace").decode()


def path_of(text: str | Path) -> Path:
    """Return a path with ``~`` replaced by the home folder; unchanged if the user is unknown."""
    try:
        return Path(text).expanduser()
    except RuntimeError:  # reported later as a missing file
        return Path(text)


@dataclass(frozen=True)
class InputFile:
    """A local file named in an option, identified by its content, not by its path.

    Attributes:
        digest: ``sha256:`` and 64 hexadecimal digits of the content.
        name: the file's name, for people; not part of any identity.
        path: path on this machine; ``None`` on a worker, which uses ``Context.inputs[digest]``.
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
        except (OSError, ValueError) as error:  # a ValueError means an invalid file name
            raise OptionError(f"cannot read {path}: {getattr(error, 'strerror', error)}", hint=near(path)) from error
        if size == 0:
            raise OptionError(f"{path} is empty")
        return cls(Digest(f"sha256:{digest}"), _name(path), path.absolute())


@dataclass(frozen=True)
class InputFolder(InputFile):
    """A local folder named in an option, identified by its files' names and contents, not by its path."""

    @classmethod
    def read(cls, path: Path) -> InputFolder:
        """Digest the files in the folder at `path`, as `list_files` lists them.

        Raises:
            OptionError: if the path is not a folder, the folder has no files, or something in it cannot be read.
        """
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "does not exist"
            raise OptionError(f"{path} {what}", hint=near(path))
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
        source: the requested source, for people; not part of the identity.
        digest: ``commit:<sha>`` of a Hub model, ``sha256:<hex>`` of local files; for an embedder, the digest of its
            checkpoint and options together.
        flags: settings that change loading, such as ``trust_remote_code``.
        embedder: the plugin that opens the model; ``None`` for a causal language model.
    """

    source: str
    digest: str
    flags: tuple[str, ...] = ()
    embedder: PluginUse | None = None

    @property
    def name(self) -> str:
        """The model's name for people; the last part of a local path."""
        if self.embedder is not None:
            return self.embedder.label
        return Path(self.source).name if self.digest.startswith("sha256:") else self.source

    def identity(self) -> Json:
        """Return the part that enters a run's identity."""
        return {"digest": self.digest, "flags": sorted(self.flags)}

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the fields as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ModelUse:  # Any: a JSON object
        """Read what `to_json` wrote.

        Raises:
            DamagedError: if the data is something else.
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
        label: name of the variant or evaluator in tables: the preset, or the call as written.
    """

    plugin: str
    version: str
    options: Mapping[str, Json]
    label: str

    @property
    def is_built_in(self) -> bool:
        """Whether the plugin is part of llmquant."""
        return self.plugin.startswith("llmquant/")

    def identity(self) -> Json:
        """Return the part that enters a run's identity: without the label, and files by content."""
        return {"plugin": self.plugin, "version": self.version, "options": _by_content(self.options)}

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the fields as a JSON object, which the constructor takes."""
        return vars(self) | {"options": dict(self.options)}


@dataclass(frozen=True)
class VectorForm:
    """The form in which an embedder's vectors are stored and searched.

    Attributes:
        dim: number of leading dimensions that are kept and normalized again (Matryoshka); ``None`` keeps all.
        codec: storage format of document vectors; query vectors stay float32.
        pool: token-pooling factor for late-interaction models: vectors averaged into one; 1 keeps all vectors.
        rescore: N, if the top k x N candidates are rescored with float32 document vectors; 0 for no rescoring.
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
        dims: vector widths, for example 768 and 256; empty for each embedder's own width.
        codecs: storage formats; empty for float32 only.
        pools: token-pooling factors; empty for 1 only.
        rescores: rescoring factors; empty for 0 only.
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
            OptionError: if the data is not such a table, or has an unknown key or a wrong value.
        """
        return read_as(cls, data, "vectors")

    def forms(self, dim: int | None) -> tuple[VectorForm, ...]:
        """Return every combination, in the order as written; `dim` is the width if the grid has no widths."""
        axes = (self.dims or (dim,), self.codecs or ("float32",), self.pools or (1,), self.rescores or (0,))
        return tuple(dict.fromkeys(VectorForm(*choice) for choice in itertools.product(*axes)))


@dataclass(frozen=True)
class Variant:
    """A model, its weight quantization and, for an embedder, the form of its vectors."""

    model: ModelUse
    quantizer: PluginUse
    vectors: VectorForm | None = None


@dataclass(frozen=True)
class Documents:
    """Which documents of a task are used.

    Attributes:
        limit: maximum documents per task, the first ones as lm-eval counts; ``None`` for all documents.
        slice: the slice of the documents in random order that is used instead; ``None`` for the documents as they come.
    """

    limit: Positive | None = None
    slice: Slice | None = None

    def to_json(self) -> dict[str, Json]:
        """Return the fields as a JSON object."""
        found: dict[str, Json] = {"limit": self.limit}
        return found if self.slice is None else {**found, "slice": vars(self.slice)}


@dataclass(frozen=True)
class Experiment:
    """One variant, one evaluator on one task, its documents and a seed: the unit of reuse and of failure.

    Attributes:
        documents: ``None`` for evaluators that use no documents.
        hardware: the executor's hardware, for evaluators whose numbers depend on it; else ``None``.
        reference: run id of the baseline whose file the evaluator compares with; ``None`` for that run itself, and for
            evaluators without a reference.
    """

    variant: Variant
    evaluator: PluginUse
    documents: Documents | None
    seed: int
    hardware: str | None = None
    reference: RunId | None = None

    @property
    def imported(self) -> bool:
        """Whether the results come from another program's files: only plugins' full names have a slash."""
        return "/" not in self.evaluator.plugin

    @property
    def slice(self) -> Slice | None:
        """The slice of the documents that is used; ``None`` for the documents as they come, or none."""
        return None if self.documents is None else self.documents.slice

    @cached_property
    def run_id(self) -> RunId:
        """The run's id: a digest of the request, 20 hexadecimal digits."""
        vectors = self.variant.vectors
        identity: dict[str, Json] = {
            "model": self.variant.model.identity(),
            "quantizer": self.variant.quantizer.identity(),
            "evaluator": self.evaluator.identity(),
            "documents": None if self.documents is None else self.documents.to_json(),
            "seed": self.seed,
            "hardware": self.hardware,
            "reference": self.reference,
        }
        if vectors is not None:
            identity["vectors"] = vars(vectors)
        return RunId(hex_digest(identity)[:20])

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the experiment as a JSON object that `from_json` reads."""
        return {
            "model": self.variant.model.to_json(),
            "quantizer": self.variant.quantizer.to_json(),
            "vectors": None if self.variant.vectors is None else vars(self.variant.vectors),
            "evaluator": self.evaluator.to_json(),
            "documents": None if self.documents is None else self.documents.to_json(),
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
    """A model as requested.

    Attributes:
        source: a Hub id with an optional ``@revision``, a folder (``./`` or absolute), or a ``.gguf`` file.
        trust_remote_code: run Python code from the checkpoint.
        allow_pickle: read ``.bin`` checkpoints; opening such a checkpoint can run code.
    """

    source: str
    trust_remote_code: bool = False
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        table(ModelRequest, vars(self), "model")

    @classmethod
    def of(cls, model: Any, where: str = "model") -> ModelRequest:  # Any: whatever somebody passed
        """Read a model as a user gives it: a text, a path or a request.

        Raises:
            OptionError: if it is something else.
        """
        if isinstance(model, ModelRequest):
            return model
        if isinstance(model, Path):  # a relative path, also where a model of the Hub has its name
            return cls(str(model if model.is_absolute() else f"./{model}"))
        if isinstance(model, str):
            return cls(model)
        if isinstance(model, Mapping):
            return read_as(ModelRequest, model, where)
        hint = 'Write "name" or { source = "name", trust_remote_code = true }.'
        raise OptionError(f"{where} is {brief(model)}, which is not a model", hint=hint)

    @property
    def flags(self) -> tuple[str, ...]:
        """Name the settings that are on."""
        return tuple(name for name in ("trust_remote_code", "allow_pickle") if getattr(self, name))


def _name(path: Path) -> str:
    if str(path.absolute()) != visible(str(path.absolute())):
        raise OptionError(f"{visible(str(path))} has a name that is not UTF-8", hint="Rename it.")
    return path.absolute().name


def _by_content(value: Json) -> Json:
    """Remove file names from options."""
    if isinstance(value, Mapping):
        if set(value) == {"digest", "name"}:
            return {"digest": value["digest"]}
        return {key: _by_content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_by_content(item) for item in value]
    return value
