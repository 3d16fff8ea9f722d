"""From a written call to a checked options object, and back to JSON.

Positional values go to the first field; `llmquant.plugins.field_types` has the types that fields may have.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

from llmquant.errors import (
    OptionError,
    PluginError,
    RequestError,
    RunError,
    UnknownNameError,
    collecting,
    describe,
    foreign,
    nearest,
    raise_all,
)
from llmquant.plugins.field_types import class_path, coerce, field_types, takes_many
from llmquant.storage.blanking import blank_secrets
from llmquant.study.call import Call, Json
from llmquant.study.experiment import Digest, InputFile, InputFolder

Options = Any  # Any: plugins bring their own dataclasses


def build(cls: type[Any], call: Call, defaults: Mapping[str, Json] | None = None) -> Options:  # Any: see Options
    """Construct options from a call, over a preset's `defaults`.

    Raises:
        UnknownNameError: for an option that does not exist.
        OptionError: for a wrong type, a wrong value, or a value missing; also for a `ValueError` of the class itself.
        RequestErrors: for several of these.
        PluginError: if the class is not a dataclass with supported types, or raises any other exception.
    """
    types = field_types(cls)
    given: dict[str, Json] = {**(defaults or {}), **call.options, **_positional(call, types)}
    errors: list[RequestError] = []
    values: dict[str, Any] = {}  # Any: option values
    for name, value in given.items():
        if name not in types:
            hint = nearest(name, types) if types else "It has no options."
            errors.append(UnknownNameError(f"{call.name} has no option {name!r}", hint=hint))
            continue
        with collecting(errors):
            values[name] = coerce(value, types[name], f"{call.name}: {name}")
    errors += [OptionError(f"{call.name} needs a value for {name!r}") for name in required(cls) if name not in given]
    raise_all(errors)
    with foreign(f"{class_path(cls)} failed on {values!r}"):
        try:
            return cls(**values)
        except ValueError as error:
            raise OptionError(f"{call.name}: {str(error) or describe(error)}") from error


def check_class(cls: type[Any]) -> None:  # Any: see Options
    """Check that options are a frozen dataclass whose public attributes are fields of supported types and defaults.

    Raises:
        PluginError: naming the field.
    """
    where = class_path(cls)
    types = field_types(cls)
    if not cls.__dataclass_params__.frozen:
        raise PluginError(f"{where} is not frozen", hint="Write @dataclass(frozen=True).")
    for name, value in {**dict.fromkeys(vars(cls).get("__annotations__", ())), **vars(cls)}.items():
        constant = name.startswith("_") or name.isupper() or hasattr(value, "__get__") or isinstance(value, type)
        if not constant and name not in cls.__dataclass_fields__:
            raise PluginError(
                f"{where}: {name} is not a field, and so not an option",
                hint=f"Write @dataclass(frozen=True) and a type, as in '{name}: int = 4'; write constants in capitals.",
            )
    for f in dataclasses.fields(cls):
        if f.init and f.name not in required(cls):
            try:
                with foreign(f"{where}: the default of {f.name} failed"):
                    default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
                    same = coerce(default, types[f.name], f"{where}: the default of {f.name}") == default
            except RequestError as error:
                raise PluginError(error.message, hint=error.hint) from error
            if not same:
                raise PluginError(
                    f"{where}: the default of {f.name} is {default!r}", hint=f"It must be {types[f.name]}."
                )


def required(cls: type[Any]) -> list[str]:  # Any: see Options
    """Name the options that have no default."""
    return [f.name for f in dataclasses.fields(cls) if f.init and f.default is f.default_factory is dataclasses.MISSING]


def dump(options: Options) -> dict[str, Json]:
    """Return every option as JSON, defaults included.

    Raises:
        PluginError: if an option is not JSON, such as a default of NaN.
    """
    return {f.name: _dump(getattr(options, f.name)) for f in dataclasses.fields(options) if f.init}


def restore(cls: type[Any], data: Mapping[str, Json]) -> Options:  # Any: see Options
    """Construct options from what `dump` returned; files come back without a path."""
    return build(cls, Call(cls.__name__, (), data))


def label(call: Call, options: Options) -> str:
    """Write a call for people, with file names instead of paths."""
    first = next((f.name for f in dataclasses.fields(options)), "")
    listed = len(call.args) == 1 and isinstance(call.args[0], list)
    shown = _shown(call.args[0] if listed else list(call.args), getattr(options, first)) if call.args else []
    args = [shown] if listed or not isinstance(shown, list) else shown
    named = {key: _shown(value, getattr(options, key)) for key, value in call.options.items()}
    return blank_secrets(str(Call(call.name, tuple(args), named)))


def _shown(written: Json, value: Any) -> Json:  # Any: option values
    if isinstance(value, InputFile):
        return value.name
    if isinstance(value, tuple) and isinstance(written, list) and len(value) == len(written):
        return [_shown(item, each) for item, each in zip(written, value, strict=True)]
    return written


def input_files(options: Options) -> dict[Digest, Path]:
    """Return the paths on this machine of the files named in options."""
    return {file.digest: file.path for file in _files(options) if file.path is not None}


def located(options: Options, inputs: Mapping[Digest, Path]) -> Options:
    """Return options whose files and folders have their paths on this machine.

    Args:
        inputs: paths on this machine, by content digest.
    """
    paths = {
        field.name: dataclasses.replace(value, path=inputs[value.digest])
        for field in dataclasses.fields(options)
        if isinstance(value := getattr(options, field.name), InputFile) and value.digest in inputs
    }
    return dataclasses.replace(options, **paths)


def verify_inputs(options: Options, inputs: Mapping[Digest, Path]) -> None:
    """Refuse files and folders that differ from those the options were made with.

    A checkpoint folder is checked by its quantizer, which digests it in another way.

    Args:
        inputs: paths on this machine, by content digest.

    Raises:
        RunError: if a file changed since, or was damaged during the transfer.
        OptionError: if a file cannot be read.
    """
    for file in _files(options):
        path = inputs.get(file.digest)
        if path is None or (path.is_dir() and not isinstance(file, InputFolder)):
            continue
        found = (InputFolder if path.is_dir() else InputFile).read(path).digest
        if found != file.digest:
            raise RunError(
                f"{file.name} is not what the study was planned with: {found}, not {file.digest}",
                hint="The file was changed, or damaged during the transfer. Run the same command again.",
            )


def _files(options: Options) -> Iterator[InputFile]:
    for f in dataclasses.fields(options):
        value = getattr(options, f.name)
        yield from (item for item in (value if isinstance(value, tuple) else [value]) if isinstance(item, InputFile))


def _positional(call: Call, types: Mapping[str, Any]) -> dict[str, Json]:  # Any: types
    """Assign the positional values to the first option."""
    if not call.args:
        return {}
    if not types:
        raise OptionError(f"{call.name} takes no value, found {call.args[0]!r}")
    first = next(iter(types))
    if first in call.options:
        raise OptionError(f"{call.name}: {first} is given twice, by position and by name")
    if len(call.args) == 1:
        return {first: call.args[0]}
    if not takes_many(types[first]):
        raise OptionError(f"{call.name} takes one positional value ({first}), found {len(call.args)}")
    return {first: list(call.args)}


def _dump(value: Any) -> Json:  # Any: option values
    if isinstance(value, InputFile):
        return {"digest": value.digest, "name": blank_secrets(value.name)}
    if isinstance(value, tuple | list):
        return [_dump(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _dump(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        raise PluginError(f"an option is {value}, which is not a number of JSON", hint="Use None for a missing number.")
    return cast("Json", value)
