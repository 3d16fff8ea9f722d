"""Checks the plain arguments of public functions before anything is looked up or loaded."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from llmquant.errors import OptionError, RequestError, collecting, raise_all
from llmquant.study.reading import brief, value_of

P = ParamSpec("P")
R = TypeVar("R")

_PLAIN: dict[str, Any] = {  # Any: types, by how annotations write them
    **{kind.__name__: kind for kind in (bool, int, str)},
    **{f"{kind.__name__} | None": kind | None for kind in (int, float, str)},
}


def plain_arguments(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse an argument of a wrong type where the annotation is a plain type, a path, or a function.

    Numbers of numpy are passed on as Python's.

    Raises:
        RequestError: for a wrong type, or a seed or limit that is out of range; `RequestErrors` for several.
    """
    signature, annotations = inspect.signature(function), function.__annotations__

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        errors: list[RequestError] = []
        bound = signature.bind(*args, **kwargs)
        for name, value in bound.arguments.items():
            if getattr(value, "shape", None) == ():  # a number of numpy, as from a table
                bound.arguments[name] = value.item()
            with collecting(errors):
                _check(name, annotations.get(name, ""), bound.arguments[name])
        raise_all(errors)
        return function(*bound.args, **bound.kwargs)

    return checked


def plain_methods(cls: type[R]) -> type[R]:
    """Check the arguments of a class's public methods with `plain_arguments`."""
    for name, member in list(vars(cls).items()):
        if not name.startswith("_") and inspect.isfunction(member):
            setattr(cls, name, plain_arguments(member))
        elif isinstance(member, classmethod):
            setattr(cls, name, classmethod(plain_arguments(member.__func__)))
    return cls


def wrong_seed(seed: int) -> list[RequestError]:
    """Return the error of a seed that numpy does not take."""
    if 0 <= seed < 2**32:
        return []
    return [OptionError(f"seed must be a whole number from 0 to 4294967295, found {seed}")]


def _check(name: str, annotation: str, value: Any) -> None:  # Any: whatever somebody passed
    if annotation.startswith("str") and isinstance(value, str):  # whatever its characters, as a store may hold it
        return
    if annotation in _PLAIN:
        value_of(_PLAIN[annotation], value, name)
        if name == "seed":
            raise_all(wrong_seed(value))
    elif annotation == "str | Path" and not isinstance(value, str | os.PathLike):
        raise OptionError(f"{name} is {brief(value)}, not a path", hint='Give a path, such as "out".')
    elif annotation.startswith("Callable[") and not callable(value):
        raise OptionError(f"{name} is {brief(value)}, not a function", hint="Leave it out, or give a function.")
