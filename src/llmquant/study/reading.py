"""Reads JSON from any source as the types that a class declares, without guessing."""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import stat
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin

from llmquant.errors import (
    DamagedError,
    OptionError,
    PluginError,
    RequestError,
    RequestErrors,
    StoreError,
    UnknownNameError,
    nearest,
    one_of,
    raise_all,
)

T = TypeVar("T")

# ``Annotated[type, least]``: a number from `least`. A float so annotated need not be finite: then it is written as a
# string, since JSON has no NaN.
Count = Annotated[int, 0]
Positive = Annotated[int, 1]
Number = Annotated[float, -math.inf]
NumberFromZero = Annotated[float, 0.0]
_NOT_FINITE = ("nan", "inf", "-inf")

# A study of many runs with all their samples has tens of megabytes.
MOST_BYTES = 512 * 2**20
_DEEPEST = 50
LARGEST = 2**63
_MOST_BITS = 1024  # what a float can hold; Python writes no number of more than 4,300 digits
SCALARS: Mapping[Any, tuple[str, Callable[[Any], bool], str]] = {  # Any: what somebody wrote
    bool: ("true or false", lambda v: isinstance(v, bool), "Write true or false, without quotes."),
    int: ("a whole number", lambda v: _is_number(v, int), "Write it as digits, without quotes."),
    float: ("a finite number", lambda v: _is_number(v, int | float), "Write it as digits, without quotes."),
    str: ("a text", lambda v: isinstance(v, str) and _can_be_written(v), "Write it in double quotes."),
}
# `Json` is recursive, so hints are resolved with it as `Any`; the other two names occur in its definition.
NAMES = {"Json": Any, "Sequence": Sequence, "Mapping": Mapping}

_brief = reprlib.Repr()
_brief.maxstring = _brief.maxother = 120


def brief(value: Any) -> str:  # Any: what somebody wrote
    """Write a value for a message, shortened if long or deep."""
    try:
        return _brief.repr(value)
    except ValueError:  # see `_MOST_BITS`
        return "a number of thousands of digits"


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Read a regular file of at most `most` bytes.

    Raises:
        OSError: if the file is missing, is not a regular file, or is larger.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(0, "it is not a file", str(path))
    with path.open("rb") as stream:
        data = stream.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"it is larger than {most:,} bytes", str(path))
    return data


def load(path: Path, read: Callable[[Any], T], *, hint: str) -> T:  # Any: a JSON value
    """Read a JSON file that llmquant wrote.

    Args:
        read: makes an object from the content, or raises `RequestError`.
        hint: how to fix a damaged file.

    Raises:
        DamagedError: if the file cannot be read, or has been changed.
        StoreError: if a newer version wrote it.
    """
    with stored(str(path), hint):
        return read(loads(read_bytes(path).decode()))


def loads(text: str) -> Any:  # Any: a JSON value
    """Parse JSON strictly.

    Raises:
        ValueError: also for a key given twice, a number that is not finite, and for nesting without end.
    """
    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=no_constant, parse_float=finite)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:  # Any: JSON values
    """Make a table, in which no key is given twice.

    Raises:
        ValueError: if one is.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {brief(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return found


def no_constant(name: str) -> float:
    """Refuse NaN and Infinity, which Python's reader accepts, although they are not JSON and have no digest."""
    raise ValueError(f"{name} is not a number of JSON")


def finite(text: str) -> float:
    """Read a number that is finite."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large")
    return number


@contextmanager
def stored(what: str, hint: str = "") -> Iterator[None]:
    """Turn an error inside this block into the error of a stored file.

    Args:
        hint: how to fix the problem; without a hint, errors of nested data stay unchanged.

    Raises:
        DamagedError: with the first mistake, for what is not as llmquant writes it.
        StoreError: if a newer version wrote it.
    """
    try:
        yield
    except StoreError as error:
        if not hint:
            raise
        cure = hint if isinstance(error, DamagedError) else error.hint
        raise type(error)(f"{what}: {error.message}", hint=cure) from error
    except RequestError as error:
        first = error.errors[0] if isinstance(error, RequestErrors) else error
        raise DamagedError(f"{what} cannot be read: {first.message}", hint=hint) from error
    except (OSError, ValueError, RuntimeError) as error:  # a RuntimeError is a loop of links
        reason = getattr(error, "strerror", None) or error
        raise DamagedError(f"{what} cannot be read: {reason}", hint=hint) from error


def read_as(
    cls: type[T], data: Any, where: str = "", beside: Mapping[str, Any] = types.MappingProxyType({})
) -> T:  # Any: types and what somebody wrote
    """Construct a dataclass from a table with its fields.

    Args:
        where: name of the data, for the beginning of error messages.
        beside: types of additional keys, which are checked and left out.

    Raises:
        OptionError: if a value is missing or of a wrong type.
        UnknownNameError: for a key that the class does not have.
        RequestErrors: for several of these.
    """
    return cls(**{key: value for key, value in table(cls, data, where, beside).items() if key not in beside})


def nested(cls: Any, name: str, data: Any) -> Any:  # Any: dataclasses and what somebody wrote
    """Move the fields of a class into a separate table, next to the other keys, as `name`."""
    if not isinstance(data, Mapping):
        return data
    own = {key: data[key] for key in _fields(cls)[0] if key in data}
    return {key: value for key, value in data.items() if key not in own} | {name: own}


def table(
    cls: Any,
    data: Any,
    where: str = "",
    beside: Mapping[str, Any] = types.MappingProxyType({}),
) -> dict[str, Any]:  # Any: dataclasses, types and what somebody wrote
    """Check a table with the fields of a dataclass and return its values.

    Args:
        beside: types of further keys; all of them needed.

    Raises:
        RequestError: as `read_as`.
    """
    hints, needed = _fields(cls)
    hints = {**hints, **beside}
    if not isinstance(data, Mapping):
        raise OptionError(f"{where or 'it'} must be a table of keys, found {brief(data)}")
    errors: list[RequestError] = [
        UnknownNameError(f"{where or 'it'} has no key {brief(key)}", hint=nearest(brief(key).strip("'"), hints))
        for key in data
        if key not in hints
    ]
    found: dict[str, Any] = {}  # Any: a class's fields
    for name, hint in hints.items():
        inner = f"{where}.{name}" if where else name
        try:
            if name in data:
                found[name] = value_of(hint, data[name], inner)
            elif name in needed or name in beside:
                errors.append(OptionError(f"{inner} is missing"))
        except RequestError as error:
            errors.append(error)
    raise_all(errors)
    return found


def checked_fields(found: T, where: str) -> T:
    """Return a dataclass that a third party made, after a check of its fields; lists become tuples.

    Raises:
        PluginError: naming the first wrong field.
    """
    try:
        return type(found)(**table(type(found), vars(found), where))
    except RequestError as error:
        raise PluginError(error.message, hint=error.hint) from error


def value_of(hint: Any, value: Any, where: str) -> Any:  # Any: types and what somebody wrote
    """Check a value against a type, in which ``Any`` is JSON, and return it; lists become tuples.

    Raises:
        RequestError: if it is something else, or holds a number or a text that cannot be written again.
    """
    if hint in SCALARS:
        return _scalar(hint, value, where)
    origin, args = _parts(hint)
    if isinstance(hint, NewType):
        return value_of(hint.__supertype__, value, where)
    if origin is Annotated:
        any_float = args[0] is float and (isinstance(value, float) or value in _NOT_FINITE)
        number = float(value) if any_float else value_of(args[0], value, where)
        if number < args[1]:
            raise OptionError(f"{where} must be at least {args[1]:g}, found {number}")
        return number
    if origin in (Union, types.UnionType):
        return of_union(args, value, where, value_of)
    if origin is Literal:
        if not any(type(value) is type(choice) and value == choice for choice in args):
            raise OptionError(f"{where} is {brief(value)}", hint=one_of(brief(value).strip("'"), map(str, args)))
        return value
    if origin is tuple:
        return _tuple(args, value, where)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(map(SCALARS[str][1], value)):
            raise OptionError(f"{where} must be a table of keys, found {brief(value)}")
        return {key: value_of(args[1], item, f"{where}.{key[:60]}") for key, item in value.items()}
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        read = getattr(hint, "from_json", None)  # what is written otherwise than it is kept
        return read_as(hint, value, where) if read is None else read(value)
    if hint is Any:
        check_json(value, where)
        return value
    raise TypeError(f"{hint} cannot be read")


def of_union(
    arms: Sequence[Any], value: Any, where: str, read: Callable[[Any, Any, str], Any]
) -> Any:  # Any: types and what somebody wrote
    """Read a value as the first of several types that accepts it.

    Raises:
        RequestError: if none does.
    """
    if value is None and type(None) in arms:
        return None
    errors = []
    for arm in arms:
        if arm is not type(None):
            try:
                return read(arm, value, where)
            except RequestError as error:
                errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    raise OptionError(f"{where} is {brief(value)}", hint=f"It must be {' or '.join(map(_name, arms))}.")


def check_json(value: Any, where: str, *, deepest: int = _DEEPEST) -> None:  # Any: what somebody wrote
    """Check that a value is JSON which can be written again.

    Raises:
        OptionError: if it is something else, such as a date, is nested too deeply or holds too large a number.
    """
    if deepest == 0:
        raise OptionError(f"{where} is nested too deeply", hint=f"At most {_DEEPEST} levels are read.")
    if isinstance(value, Mapping):
        for key, item in value.items():
            value_of(str, key, f"a key of {where}")
            check_json(item, f"{where}.{key[:60]}", deepest=deepest - 1)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, where, deepest=deepest - 1)
    elif isinstance(value, str | float):
        value_of(type(value), value, where)
    elif not isinstance(value, int | None) or (value or 0).bit_length() > _MOST_BITS:
        kinds = "JSON: a text, a finite number, true, false, a list or a table"
        raise OptionError(f"{where} must be {kinds}, found {brief(value)}", hint="Write a text in double quotes.")


def _scalar(kind: type, value: Any, where: str) -> Any:  # Any: what somebody wrote
    name, accepts, cure = SCALARS[kind]
    if not accepts(value):
        raise OptionError(f"{where} must be {name}, found {brief(value)}", hint=cure)
    if type(value) is int and abs(value) >= LARGEST:
        raise OptionError(f"{where} is too large: {brief(value)}", hint="Numbers are below 2^63.")
    return value


def _tuple(kinds: Sequence[Any], value: Any, where: str) -> tuple[Any, ...]:  # Any: types and what somebody wrote
    if not isinstance(value, list | tuple):
        raise OptionError(f"{where} must be a list, found {brief(value)}", hint="Write it in [square brackets].")
    if kinds[1:] == (Ellipsis,):
        kinds = [kinds[0]] * len(value)
    if len(kinds) != len(value):
        raise OptionError(f"{where} must have {len(kinds)} values, found {len(value)}")
    return tuple(value_of(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value, strict=True)))


def _name(hint: Any) -> str:  # Any: types
    if hint is type(None):
        return "null"
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return SCALARS[hint][0] if hint in SCALARS else getattr(hint, "__name__", str(hint))


def _is_number(value: Any, kinds: Any) -> bool:  # Any: what somebody wrote, and types
    if not isinstance(value, kinds) or isinstance(value, bool):
        return False
    return isinstance(value, int) or math.isfinite(value)


def _can_be_written(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return False
    return True


@cache
def _parts(hint: Any) -> tuple[Any, tuple[Any, ...]]:  # Any: types
    return get_origin(hint), get_args(hint)


@cache
def _fields(cls: Any) -> tuple[dict[str, Any], frozenset[str]]:  # Any: dataclasses and types
    """Return the types of a dataclass's fields, and the names of those without a default."""
    hints = typing.get_type_hints(cls, localns=NAMES, include_extras=True)
    own = [field for field in dataclasses.fields(cls) if field.init]
    missing = dataclasses.MISSING
    needed = frozenset(f.name for f in own if f.default is missing and f.default_factory is missing)
    return {field.name: hints[field.name] for field in own}, needed
