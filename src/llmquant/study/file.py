"""Reads a study file as plain values: unambiguous TOML, YAML and JSON of limited size."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llmquant.errors import OptionError
from llmquant.study.folders import near
from llmquant.study.reading import finite, loads, read_bytes, unique

# A thousand variants; Python's reader of YAML takes seconds for more.
_MOST_BYTES = 64 * 2**10
_DEEPEST = 50
# tomllib keeps every prefix of a dotted key: gigabytes for a key of ten thousand parts.
_DOTTED = re.compile(r"""(?<![\w-])((?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*){50}""", re.ASCII)
# Plain scalars of YAML that are not text. YAML 1.1 has many more, such as no, 12:30, 0x10, 010, 1_000 and dates; here
# they are text, as they were written, and refused where text is not wanted.
_YAML: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (  # Any: scalars
    (re.compile(r"null|Null|NULL|~|"), lambda text: None),
    (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text.lower() == "true"),
    (re.compile(r"-?(0|[1-9]\d*)", re.ASCII), int),
    (re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][-+]?\d+)?", re.ASCII), finite),
)


def read_study_file(path: Path) -> Any:  # Any: whatever the file holds
    """Read a study file; its suffix gives the format.

    Raises:
        OptionError: if it cannot be read, has another ending, gives a key twice, or is large, deep or ambiguous.
    """
    # Any: whatever the file holds
    parsers: dict[str, Callable[[str], Any]] = {".toml": _toml, ".yaml": _yaml, ".yml": _yaml, ".json": loads}
    if path.suffix not in parsers:
        raise OptionError(f"{path} has the ending {path.suffix!r}", hint="A study file is .toml, .yaml or .json.")
    try:
        return parsers[path.suffix](read_bytes(path, _MOST_BYTES).decode("utf-8-sig"))
    except OSError as error:
        raise OptionError(f"cannot read {path}: {error.strerror}", hint=near(path)) from error
    except RecursionError as error:
        raise OptionError(f"{path} cannot be parsed: it is nested too deeply") from error
    except ValueError as error:  # tomllib and json raise its subclasses
        raise OptionError(f"{path} cannot be parsed: {error}") from error


def _toml(text: str) -> Any:  # Any: whatever the file holds
    if _DOTTED.search(text):
        raise ValueError("it is nested too deeply")
    return tomllib.loads(text)


def _yaml(text: str) -> Any:  # Any: whatever the file holds
    import yaml

    events = iter(yaml.parse(text, Loader=yaml.SafeLoader))
    try:
        next(events), next(events)  # of the stream and of the document
        value = _yaml_value(next(events), events, _DEEPEST)
        next(events)
        if not isinstance(next(events), yaml.StreamEndEvent):
            raise ValueError("it holds more than one document")
    except yaml.YAMLError as error:
        tabs = "; YAML indents with spaces, not with tabs" if r"'\t'" in str(error) else ""
        raise ValueError(f"{error}{tabs}") from error
    except StopIteration:
        raise ValueError("it is empty") from None
    return value


def _yaml_value(event: Any, events: Iterator[Any], deepest: int) -> Any:  # Any: events of PyYAML, and values
    import yaml

    where = f"line {event.start_mark.line + 1}"
    if deepest == 0:
        raise ValueError(f"{where}: it is nested too deeply")
    if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
        raise ValueError(f"{where}: anchors and aliases are not read; write the value out")
    if event.tag is not None:
        raise ValueError(f"{where}: the tag {event.tag} is not read; write the value alone")
    if isinstance(event, yaml.ScalarEvent):
        plain = event.implicit[0]
        return next((read(event.value) for shape, read in _YAML if plain and shape.fullmatch(event.value)), event.value)
    if isinstance(event, yaml.SequenceStartEvent):
        items = []
        while not isinstance(event := next(events), yaml.SequenceEndEvent):
            items.append(_yaml_value(event, events, deepest - 1))
        return items
    pairs = []
    while not isinstance(event := next(events), yaml.MappingEndEvent):
        if not isinstance(event, yaml.ScalarEvent):
            raise ValueError(f"line {event.start_mark.line + 1}: a key must be a text")
        pairs.append((event.value, _yaml_value(next(events), events, deepest - 1)))
    return unique(pairs)
