"""A study as data and as a file: TOML, YAML (the safe loader) and JSON with one schema."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from llmquant.errors import OptionError, RequestError, UnknownNameError, collecting, nearest, raise_all
from llmquant.study.call import Call, Json
from llmquant.study.experiment import ModelRequest, VectorGrid, path_of
from llmquant.study.file import read_study_file
from llmquant.study.margins import DEFAULT, Margins, read_margins
from llmquant.study.reading import brief, value_of

STUDY_SCHEMA = 1
# Any: types
_FIELDS: Mapping[str, Any] = {"baseline": str | None, "limit": int | None, "until_sure": bool, "seed": int}
_KEYS = ("schema", "models", "quantizers", "evaluators", "vectors", "margin", *_FIELDS)

T = TypeVar("T")
Model: TypeAlias = str | Path | ModelRequest
Plugin: TypeAlias = str | Call | Mapping[str, Json]


@dataclass(frozen=True)
class Study:
    """A comparison to run: models, quantizers, evaluators, and the baseline to compare with.

    The executor is not part of a study.

    Attributes:
        quantizers: empty for the defaults of `llmquant.compare`.
        evaluators: empty for the defaults of `llmquant.compare`.
        baseline: label of one of the quantizers; ``None`` for the first ``*_baseline``, which is added if missing.
        limit: maximum documents per task (for retrieval: queries per task), at least 1; ``None`` for all.
        until_sure: score documents in random order, and stop as soon as each verdict is sure.
        vectors: the forms of vectors to compare, for embedders.
        margins: the largest acceptable losses, see `llmquant.study.margins`; they decide verdicts, not what is run.
    """

    models: tuple[ModelRequest, ...]
    quantizers: tuple[Call, ...] = ()
    evaluators: tuple[Call, ...] = ()
    baseline: str | None = None
    limit: int | None = 100
    seed: int = 0
    vectors: VectorGrid = field(default_factory=VectorGrid)
    margins: Margins = field(default_factory=lambda: DEFAULT)
    until_sure: bool = False

    def __repr__(self) -> str:
        return f"Study({', '.join(f'{key}={value!r}' for key, value in self.to_json().items() if key != 'schema')})"

    def __post_init__(self) -> None:
        for key, kind in _FIELDS.items():
            value_of(kind, getattr(self, key), key)

    @classmethod
    def of(
        cls,
        models: Model | Sequence[Model],
        quantizers: Plugin | Sequence[Plugin] = (),
        evaluators: Plugin | Sequence[Plugin] = (),
        *,
        vectors: VectorGrid | Mapping[str, Sequence[int | str]] | None = None,
        baseline: str | None = None,
        margin: float | str | Sequence[float | str] | None = None,
        limit: int | None = 100,
        until_sure: bool = False,
        seed: int = 0,
    ) -> Study:
        """Build a study from the arguments of `compare`.

        Raises:
            RequestError: as `from_file`.
        """
        return cls.from_json(
            {
                "models": [models] if isinstance(models, str | Path | ModelRequest) else models,
                "quantizers": [quantizers] if isinstance(quantizers, str | Call | Mapping) else quantizers,
                "evaluators": [evaluators] if isinstance(evaluators, str | Call | Mapping) else evaluators,
                "vectors": vars(vectors) if isinstance(vectors, VectorGrid) else vectors or {},
                "baseline": baseline,
                "margin": margin,
                "limit": "all" if limit is None else limit,
                "until_sure": until_sure,
                "seed": seed,
            }
        )

    @classmethod
    def from_file(cls, path: Path | str) -> Study:
        """Read a study file; relative paths are relative to the working folder.

        Raises:
            OptionError: if it cannot be read, or a value is wrong.
            UnknownNameError: for a key that does not exist.
            RequestErrors: for several of these.
        """
        data = read_study_file(path_of(path))
        if not isinstance(data, Mapping):
            raise OptionError(f"{path} must contain a table of keys, found {brief(data)}")
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Study:  # Any: a JSON object
        """Build a study from a table with the keys of a study file.

        Raises:
            RequestError: as `from_file`.
        """
        errors: list[RequestError] = [
            UnknownNameError(f"a study has no key {brief(key)}", hint=nearest(brief(key).strip("'"), _KEYS))
            for key in data
            if key not in _KEYS
        ]
        schema = data.get("schema", STUDY_SCHEMA)
        if type(schema) is not int or schema != STUDY_SCHEMA:
            hint = f"This llmquant reads schema {STUDY_SCHEMA}."
            errors.append(OptionError(f"unknown study schema {brief(schema)}", hint=hint))
        given: dict[str, Any] = {  # Any: the fields of a study
            "models": _each(data, "models", ModelRequest.of, errors),
            "quantizers": _each(data, "quantizers", _call, errors),
            "evaluators": _each(data, "evaluators", _call, errors),
        }
        if data.get("limit") == "all":
            data = {**data, "limit": None}
        elif data.get("limit", 0) is None:
            errors.append(OptionError("limit is null", hint='Write limit = 50, or limit = "all".'))
        readers = [
            ("vectors", VectorGrid.from_json),
            ("margin", read_margins),
            *((key, _field(key)) for key in _FIELDS),
        ]
        for key, read in readers:
            with collecting(errors):
                if key in data:
                    given["margins" if key == "margin" else key] = read(data[key])
        raise_all(errors)
        return cls(**given)

    def to_json(self) -> dict[str, Json]:
        """Return the study as the table of a study file."""
        models: list[Json] = [
            {"source": model.source, **dict.fromkeys(model.flags, True)} if model.flags else model.source
            for model in self.models
        ]
        data: dict[str, Json] = {"schema": STUDY_SCHEMA, "models": models}
        if self.quantizers:
            data["quantizers"] = [str(call) for call in self.quantizers]
        if self.evaluators:
            data["evaluators"] = [str(call) for call in self.evaluators]
        axes: dict[str, Json] = {axis: list(values) for axis, values in vars(self.vectors).items() if values}
        if axes:
            data["vectors"] = axes
        if self.baseline is not None:
            data["baseline"] = self.baseline
        if self.margins != DEFAULT:
            data["margin"] = dict(self.margins)
        if self.until_sure:
            data["until_sure"] = True
        return {**data, "limit": "all" if self.limit is None else self.limit, "seed": self.seed}


def _field(key: str) -> Callable[[Any], Any]:  # Any: whatever somebody wrote
    return lambda value: value_of(_FIELDS[key], value, key)


def _call(value: Any, where: str) -> Call:  # Any: whatever the file holds
    try:
        return Call.of(value)
    except OptionError as error:
        raise OptionError(f"{where}: {error.message}", hint=error.hint) from error


def _each(
    data: Mapping[str, Any],
    key: str,
    read: Callable[[Any, str], T],
    errors: list[RequestError],
) -> tuple[T, ...]:  # Any: whatever the file holds
    values = data.get(key, ())
    if isinstance(values, str) or not isinstance(values, Sequence):
        errors.append(
            OptionError(
                f"{key} must be a list, found {brief(values)}",
                hint=f"Write {key} = [{brief(values) if isinstance(values, str | Mapping) else '...'}].",
            )
        )
        return ()
    found = []
    for i, value in enumerate(values):
        with collecting(errors):
            found.append(read(value, f"{key}[{i}]"))
    return tuple(found)
