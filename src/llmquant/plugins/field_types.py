"""The types that options may have, and the conversion of values to them.

The types are ``bool``, ``int``, ``float``, ``str``, ``Literal[...]``, ``InputFile``, ``tuple[T, ...]``,
``Mapping[str, T]``, ``Json``, and unions of these.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from llmquant.errors import OptionError, PluginError, describe, one_of
from llmquant.study.experiment import InputFile, path_of
from llmquant.study.reading import NAMES, SCALARS, brief, check_json, of_union, read_as

Type = Any  # Any: a type, such as ``tuple[int, ...] | None``


def class_path(cls: type[Any]) -> str:  # Any: a plugin's class, which should be a class
    """Return a class as a plugin's spec names it, ``module:Name``; anything else as it is."""
    return f"{cls.__module__}:{cls.__qualname__}" if hasattr(cls, "__qualname__") else brief(cls)


def field_types(cls: type[Any]) -> dict[str, Type]:  # Any: a plugin's own dataclass
    """Return the types of a dataclass's options, in order.

    Raises:
        PluginError: if the class is not a dataclass, or a field has an unsupported type.
    """
    where = class_path(cls)
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        raise PluginError(f"{where} is not a dataclass; options must be frozen dataclasses")
    try:
        hints = typing.get_type_hints(cls, localns=NAMES)
    except Exception as error:  # a third party's annotations may raise anything
        raise PluginError(f"the types of {where} cannot be resolved: {describe(error)}") from error
    found = {f.name: hints[f.name] for f in dataclasses.fields(cls) if f.init}
    for name, hint in found.items():
        if not _supported(hint):
            raise PluginError(
                f"{where}: {name} has type {hint}",
                hint="Options may be bool, int, float, str, Literal, InputFile, tuple[T, ...], Mapping[str, T], "
                "Json, and unions of these.",
            )
    return found


def takes_many(hint: Type) -> bool:
    """Return whether a field of this type takes several positional values."""
    return _origin(hint) is tuple or (_is_union(hint) and any(takes_many(arm) for arm in get_args(hint)))


def coerce(value: Any, hint: Type, where: str) -> Any:  # Any: option values
    """Check a written value and convert it to a field's type.

    Args:
        where: plugin and option, for the beginning of error messages.

    Raises:
        OptionError: if the value does not fit.
    """
    args = get_args(hint)
    if _is_union(hint):
        return of_union(args, value, where, lambda arm, item, place: coerce(item, arm, place))
    if _origin(hint) is Literal:
        return _literal(value, args, where)
    if _origin(hint) is tuple:
        items = value if isinstance(value, list | tuple) else [value]
        return tuple(coerce(item, args[0], where) for item in items)
    if _is_file(hint):
        return _input_file(value, hint, where)
    if _is_mapping(hint):
        if not isinstance(value, Mapping):
            raise OptionError(
                f"{where} must be a table, found {brief(value)}", hint='Write it as JSON: {"key": value}.'
            )
        return {str(key): coerce(item, args[1], f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        check_json(value, where)
        return value
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a bare word of digits
    name, accepts, cure = SCALARS[hint]
    if not accepts(value):
        raise OptionError(f"{where} must be {name}, found {brief(value)}", hint=cure)
    return float(value) if hint is float else value


def _origin(hint: Type) -> Any:  # Any: a type; the stubs promise too little for `tuple` and `Literal`
    return get_origin(hint)


def _supported(hint: Type) -> bool:
    args = get_args(hint)
    if _is_union(hint):
        return all(arm is type(None) or _supported(arm) for arm in args)
    if _origin(hint) is tuple:
        return len(args) == 2 and args[1] is Ellipsis and _supported(args[0])
    if _is_mapping(hint):
        return len(args) == 2 and args[0] is str and _supported(args[1])
    return _origin(hint) is Literal or _is_file(hint) or hint is Any or hint in SCALARS


def _is_union(hint: Type) -> bool:
    return _origin(hint) in (Union, types.UnionType)


def _is_mapping(hint: Type) -> bool:
    origin = _origin(hint)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def _is_file(hint: Type) -> bool:
    return isinstance(hint, type) and issubclass(hint, InputFile)  # a subclass says which files it takes


def _literal(value: Any, choices: tuple[Any, ...], where: str) -> Any:  # Any: option values
    for choice in choices:
        # 8 and 8.0, or 1 and True, are equal but not the same choice; 8 may stand for the text "8".
        if (type(value) is type(choice) and value == choice) or (type(value) is int and choice == str(value)):
            return choice
    raise OptionError(f"{where} is {brief(value)}", hint=one_of(brief(value).strip("'"), map(str, choices)))


def _input_file(value: Any, cls: type[InputFile], where: str) -> InputFile:  # Any: option values
    if isinstance(value, InputFile):
        return value
    if isinstance(value, Mapping) and set(value) == {"digest", "name"}:
        return read_as(cls, value, where)
    if not isinstance(value, str | Path):
        raise OptionError(f"{where} must be a file's path, found {brief(value)}")
    try:
        return cls.read(path_of(value))
    except OptionError as error:
        raise OptionError(f"{where}: {error.message}", hint=error.hint) from error
    except OSError as error:  # a name that is too long
        raise OptionError(f"{where}: cannot read {brief(str(value))}: {error.strerror}") from error
