"""Read other programs' result files: JSON with their NaN, and one error for whatever is not as they write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llmquant.errors import OptionError, PluginError, describe
from llmquant.running.checked_results import checked_results
from llmquant.study.call import Json
from llmquant.study.experiment import Digest, digest_of
from llmquant.study.folders import file_sha256
from llmquant.study.reading import brief, read_bytes
from llmquant.study.run import Result

AGAIN = "Copy the file again, or run the evaluation again."
# Half of a surrogate pair, or a whole one, as JSON escapes it.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Imported:
    """What a program measured in one task.

    Attributes:
        program: ``lm_eval``, ``mteb`` or ``llama.cpp``.
        protocol: the settings that comparable results share, such as the number of examples and the chat template.
        digest: digest of the files' contents.
        model: the model's name in the files; ``""`` if they have none.
        packages: versions of packages, as far as the files name them.
        evaluated_at: start of the evaluation in ISO 8601, UTC; ``""`` if the files do not say.
        notes: notes for readers of the study.
    """

    program: str
    result: Result
    protocol: Mapping[str, Json]
    digest: Digest
    model: str = ""
    packages: Mapping[str, Json] = field(default_factory=dict)
    evaluated_at: str = ""
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> str:
        """The task's name."""
        return self.result.task


def read_json(path: Path) -> Any:  # Any: a JSON value
    """Read JSON in which NaN and Infinity may occur, as Python writes them.

    Raises:
        OptionError: if the file cannot be read or is something else.
    """
    try:
        return _loads(read_bytes(path))
    except (OSError, ValueError, RecursionError) as error:
        raise OptionError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}", hint=AGAIN) from error


def read_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:  # Any: JSON values
    """Yield the number and the table of each line.

    Raises:
        OptionError: if the file cannot be read, or a line is not a table.
    """
    number = 0
    try:
        with path.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                entry = _loads(line)
                if not isinstance(entry, dict):
                    raise ValueError(f"it is {brief(entry)}")
                yield number, entry
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"{path}, line {number}, cannot be read: {reason}", hint=AGAIN) from error


@contextmanager
def written_by(program: str, path: Path) -> Iterator[None]:
    """Turn an error inside this block about a file's content into one that names the file.

    Raises:
        OptionError: if something is missing or of another type than the program writes.
    """
    try:
        yield
    # What reading an unknown structure raises.
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise OptionError(f"{path} is not as {program} writes it: {describe(error)}", hint=AGAIN) from error


def checked(result: Result, path: Path) -> Result:
    """Check that a result's numbers and samples agree.

    Raises:
        OptionError: if they do not.
    """
    try:
        (found,) = checked_results([result], str(path))
    except PluginError as error:
        raise OptionError(error.message, hint=AGAIN) from error
    return found


def _loads(data: bytes) -> Any:  # Any: a JSON value
    """Parse JSON; half of a surrogate pair, which UTF-8 cannot hold, becomes a question mark."""
    value = json.loads(data)
    if _SURROGATE.search(data):
        value = json.loads(json.dumps(value, ensure_ascii=False).encode("utf-8", "replace"))
    return value


def digest_of_files(paths: Iterable[Path]) -> Digest:
    """Digest the contents of files that have been read."""
    return digest_of([file_sha256(path) for path in paths])
