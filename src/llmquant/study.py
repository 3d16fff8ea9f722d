"""What ``compare`` runs, as data and as a file: TOML, YAML (the safe loader) and JSON of one schema."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmquant.call import Call, Json
from llmquant.errors import LlmquantError, OptionError, RequestError, RequestErrors, UnknownNameError, nearest
from llmquant.experiment import ModelRequest, VectorGrid

STUDY_SCHEMA = 1
_KEYS = ("schema", "models", "quantizers", "evaluators", "vectors", "baseline", "limit", "seed")


@dataclass(frozen=True)
class Study:
    """What ``compare`` runs: models, quantizers, evaluators, and the baseline they are held against.

    Where it runs is no part of it.

    Attributes:
        quantizers: empty for the defaults.
        evaluators: empty for the defaults.
        baseline: label of one of the quantizers; ``None``: the first ``*_baseline``, added when there is none.
        limit: documents a task, at least 1; ``None`` is all.
        vectors: the forms of vectors to compare, for embedders.
    """

    models: tuple[ModelRequest, ...]
    quantizers: tuple[Call, ...] = ()
    evaluators: tuple[Call, ...] = ()
    baseline: str | None = None
    limit: int | None = 100
    seed: int = 0
    vectors: VectorGrid = field(default_factory=VectorGrid)

    @classmethod
    def from_file(cls, path: Path | str) -> Study:
        """Read a study file; relative paths in it are relative to where the program runs.

        Raises:
            OptionError: if it cannot be read, or a value is wrong.
            UnknownNameError: for a key that does not exist.
            RequestErrors: for several of these.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise OptionError(f"cannot read {path}: {error.strerror}") from error
        try:
            data = _parse(path, text)
        except ValueError as error:  # tomllib, json and yaml all raise its subclasses
            raise OptionError(f"{path} cannot be parsed: {error}") from error
        if not isinstance(data, Mapping):
            raise OptionError(f"{path} holds no table of keys")
        return cls.from_json(data)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Study:  # Any: a JSON object
        """Build a study from a table with the keys of a study file.

        Raises:
            RequestError: as `from_file`.
        """
        errors: list[RequestError] = [
            UnknownNameError(f"a study has no key {key!r}", hint=nearest(key, _KEYS))
            for key in data
            if key not in _KEYS
        ]
        if data.get("schema", STUDY_SCHEMA) != STUDY_SCHEMA:
            errors.append(
                OptionError(
                    f"study schema {data['schema']!r} is not known", hint=f"This llmquant reads {STUDY_SCHEMA}."
                )
            )
        models = _each(data.get("models", ()), "models", _model, errors)
        quantizers = _each(data.get("quantizers", ()), "quantizers", Call.of, errors)
        evaluators = _each(data.get("evaluators", ()), "evaluators", Call.of, errors)
        vectors = VectorGrid()
        try:
            vectors = VectorGrid.from_json(data.get("vectors", {}))
        except OptionError as error:
            errors.append(error)
        limit, seed, baseline = data.get("limit", 100), data.get("seed", 0), data.get("baseline")
        if limit == "all":
            limit = None
        for key, value, kinds in (
            ("limit", limit, (int, type(None))),
            ("seed", seed, (int,)),
            ("baseline", baseline, (str, type(None))),
        ):
            if not isinstance(value, kinds) or isinstance(value, bool):
                errors.append(
                    OptionError(
                        f"{key} has a wrong type: {value!r}",
                        hint='Write limit = 50, or limit = "all".' if key == "limit" else "",
                    )
                )
        if len(errors) > 1:
            raise RequestErrors(errors)
        if errors:
            raise errors[0]
        return cls(tuple(models), tuple(quantizers), tuple(evaluators), baseline, limit, seed, vectors)

    def to_json(self) -> dict[str, Json]:
        """Return it as the table of a study file."""
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
        return {**data, "limit": "all" if self.limit is None else self.limit, "seed": self.seed}

    def to_file(self, path: Path | str) -> None:
        """Write a study file; the ending says which format: ``.toml``, ``.yaml`` or ``.json``.

        Raises:
            OptionError: for another ending.
        """
        path = Path(path)
        data = self.to_json()
        if path.suffix == ".toml":
            import tomli_w

            text = tomli_w.dumps(data)
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            text = yaml.safe_dump(data, sort_keys=False)
        elif path.suffix == ".json":
            text = json.dumps(data, indent=2)
        else:
            raise _unknown_format(path)
        path.write_text(text, encoding="utf-8")


def _parse(path: Path, text: str) -> Any:  # Any: whatever the file holds
    if path.suffix == ".toml":
        return tomllib.loads(text)
    if path.suffix in (".yaml", ".yml"):
        import yaml

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from error
    if path.suffix == ".json":
        return json.loads(text)
    raise _unknown_format(path)


def _unknown_format(path: Path) -> OptionError:
    return OptionError(f"{path} has the ending {path.suffix!r}", hint="A study file is .toml, .yaml or .json.")


def _model(value: Any) -> ModelRequest:  # Any: whatever the file holds
    if isinstance(value, str):
        return ModelRequest(value)
    if isinstance(value, Mapping) and isinstance(value.get("source"), str):
        unknown = set(value) - {"source", "trust_remote_code", "allow_pickle"}
        if unknown:
            raise UnknownNameError(
                f"a model has no key {min(unknown)!r}", hint=nearest(min(unknown), ModelRequest.__dataclass_fields__)
            )
        return ModelRequest(**value)
    raise OptionError(
        f"{value!r} names no model", hint='Write "name" or { source = "name", trust_remote_code = true }.'
    )


def _each(values: Any, key: str, read: Any, errors: list[RequestError]) -> list[Any]:  # Any: whatever the file holds
    if isinstance(values, str) or not isinstance(values, Sequence):
        errors.append(OptionError(f"{key} must be a list, found {values!r}"))
        return []
    found = []
    for value in values:
        try:
            found.append(read(value))
        except LlmquantError as error:
            errors.append(error if isinstance(error, RequestError) else OptionError(str(error)))
    return found
