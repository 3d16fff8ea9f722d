"""Every deliberate error, in one tree.

::

    LlmquantError
    ├── RequestError               the request is wrong, nothing was started (exit code 2)
    │   ├── UnknownNameError       no such plugin, preset, task or option
    │   ├── AmbiguousNameError     two packages offer the name
    │   ├── OptionError            an option has the wrong type or value
    │   ├── UnsupportedError       this model or device cannot do what was asked
    │   ├── ModelError             a model is missing, gated, damaged or unsafe to open
    │   ├── MissingDependencyError a package is not installed; the message has the install command
    │   ├── StoreError             not a store, an empty store, or one of a newer version
    │   │   └── DamagedError       a stored file is not as llmquant writes it
    │   └── RequestErrors          several of these errors, found together
    ├── PluginError                a plugin broke its contract or raised while it was loaded
    └── RunError                   an experiment failed; it is stored as a failed run (exit code 1)
        ├── NotHonouredError       the loaded model differs from the request
        ├── SanityError            the loaded model does not produce text, or vectors that can be compared
        ├── ItemError              a text or an image cannot be encoded
        └── ReferenceFailedError   the baseline's run failed or left no file to compare with
"""

from __future__ import annotations

import difflib
import re
import traceback
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager

_MOST_ERRORS = 20
# More errors than this that differ only in a quoted name are written as one, with so many of the other names.
_MANY, _NAMED = 5, 3
_QUOTED = re.compile(r"'[^']*'")


class LlmquantError(Exception):
    """The root of the tree.

    Args:
        message: what was wrong and what was found.
        hint: how to fix the problem.
    """

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n{self.hint}" if self.hint else self.message


class RequestError(LlmquantError):
    """The request is wrong; nothing was started."""


class UnknownNameError(RequestError):
    """No plugin, preset, task or option has this name."""


class AmbiguousNameError(RequestError):
    """Two packages offer the same short name."""


class OptionError(RequestError):
    """An option has the wrong type or value."""


class UnsupportedError(RequestError):
    """This model or device cannot do what was asked."""


class ModelError(RequestError):
    """A model is missing, gated, damaged or unsafe to open."""


class MissingDependencyError(RequestError):
    """A package is not installed."""


class StoreError(RequestError):
    """A folder is not a store, is empty, or was written by a newer version."""


class DamagedError(StoreError):
    """A stored file was cut, changed, or not written by llmquant."""


class RequestErrors(RequestError):
    """All mistakes of one request, found together.

    Attributes:
        errors: the single mistakes, in the order of the request.
    """

    def __init__(self, errors: Sequence[RequestError]) -> None:
        super().__init__("\n".join(f"- {text.replace(chr(10), chr(10) + '  ')}" for text in _texts(errors)))
        self.errors = tuple(errors)


def _texts(errors: Sequence[RequestError]) -> Iterator[str]:
    """Yield the errors' texts; many that differ only in a quoted name, such as a task's, are one text."""
    alike: dict[str, list[RequestError]] = {}
    for error in errors:
        alike.setdefault(_QUOTED.sub("''", str(error)), []).append(error)
    for group in alike.values():
        first, *others = group if len(group) > _MANY else [group[0]]
        names = [found[0] for error in others if (found := _QUOTED.search(str(error)))]
        more = f"; the same for {', '.join(names[:_NAMED])} and {len(others) - _NAMED} more" if others else ""
        yield first.message + more + (f"\n{first.hint}" if first.hint else "")
        yield from map(str, () if others else group[1:])


class PluginError(LlmquantError):
    """A plugin broke its contract or raised while it was loaded."""


class RunError(LlmquantError):
    """An experiment failed; it is stored as a failed run."""


class NotHonouredError(RunError):
    """The loaded model differs from the request."""


class SanityError(RunError):
    """The loaded model does not produce text, or vectors that can be compared."""


class ItemError(RunError):
    """A text or an image cannot be encoded: it is empty, damaged or too large."""


class ReferenceFailedError(RunError):
    """The baseline's run failed or left no file to compare with."""


def describe(error: BaseException) -> str:
    """Describe any exception for people; one without a message is described by where it was raised."""
    try:
        text = str(error).strip()
    except BaseException as broken:  # a third party's `__str__` may raise anything
        text, missing = "", f" whose message cannot be read ({type(broken).__name__} in its __str__)"
    else:
        missing = " without a message"
    name = type(error).__name__
    if text:
        return text if isinstance(error, LlmquantError) else f"{name}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    return name + missing + (f", at {frames[-1].filename}:{frames[-1].lineno} in {frames[-1].name}" if frames else "")


def first_line(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextmanager
def collecting(errors: list[RequestError]) -> Iterator[None]:
    """Add what the block raises to `errors`, so that all mistakes are reported at once."""
    try:
        yield
    except RequestErrors as error:
        errors += error.errors
    except RequestError as error:
        errors.append(error)


@contextmanager
def foreign(what: str) -> Iterator[None]:
    """Run a third party's code, which may raise anything and call ``sys.exit``; only Ctrl-C ends the program.

    Args:
        what: beginning of the message, such as ``package/plugin: check failed``.

    Raises:
        PluginError: for anything but llmquant's own errors and a lack of memory.
    """
    try:
        yield
    except (LlmquantError, MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise PluginError(f"{what}: {describe(error)}") from error


def shorten(errors: list[RequestError], name: str) -> None:
    """Replace the mistakes in the file or folder `name` that come after the first 20 by their number."""
    if len(errors) > _MOST_ERRORS:
        errors[_MOST_ERRORS:] = [OptionError(f"{name} has {len(errors) - _MOST_ERRORS} more mistakes like these")]


def raise_all(errors: Iterable[RequestError]) -> None:
    """Raise a single error as it is, and several as one `RequestErrors`; equal ones count once.

    Raises:
        RequestError: if there is any.
        RequestErrors: if there are several.
    """
    found = list({str(error): error for error in errors}.values())
    if len(found) > 1:
        raise RequestErrors(found)
    if found:
        raise found[0]


def one_of(name: str, choices: Iterable[str]) -> str:
    """Suggest a value of an option: the nearest, or if none is very close, all of up to five choices."""
    names = list(choices)
    if len(names) > 5 or difflib.get_close_matches(name, names, cutoff=0.75):
        return nearest(name, names)
    return f"Use {', '.join(names)}."


def require_known(what: str, name: str | None, known: Collection[str]) -> None:
    """Refuse a name that is not known; ``None`` stands for all.

    Raises:
        UnknownNameError: with the nearest names.
    """
    if name is not None and name not in known:
        raise UnknownNameError(f"there is no {what} {name!r}", hint=nearest(name, known))


def nearest(name: str, known: Iterable[str]) -> str:
    """Suggest known names close to a mistyped name.

    Returns:
        A hint: the nearest names if any are close, else all names (or their number, above 40 names).
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    if not close and len(name) > 2:  # a part of a name, such as nf4
        close = [known_name for known_name in names if name.lower() in known_name.lower()][:3]
    if close:
        return f"Did you mean {' or '.join(repr(match) for match in close)}?"
    if not names:
        return "There are none."
    return f"Known: {', '.join(names)}." if len(names) <= 40 else f"{len(names)} names are known; none is close."
