"""The one grammar for plugins in strings: ``name(positional, key=value)``.

Brackets balance, values are JSON or bare words::

    bnb_4bit(quant_type=fp4, double_quant=false)
    mteb(ViDoRe(v1))
    lm_eval(coqa, num_fewshot=2, gen_kwargs={"max_gen_toks": 32})
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from llmquant.errors import OptionError
from llmquant.study.reading import brief, check_json, finite, no_constant, unique, value_of

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"

# Longer texts than this are files.
_LONGEST = 2**16
_DEEPEST = 40
_CLOSING = {"(": ")", "[": "]", "{": "}"}


@dataclass(frozen=True)
class Call:
    """A plugin or preset as written, before it is looked up.

    Attributes:
        name: short (``bnb_4bit_nf4``) or full (``llmquant/bnb_4bit``).
        args: positional values; the plugin's first option takes them.
        options: values by option name.
    """

    name: str
    args: tuple[Json, ...] = ()
    options: Mapping[str, Json] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Call:
        """Parse ``name`` or ``name(positional, key=value)``.

        Raises:
            OptionError: if brackets do not balance, the name is missing or invalid, a value is missing, or a key is
                given twice.
        """
        text = text.strip()
        if len(text) > _LONGEST:
            raise OptionError(f"{brief(text)} has more than {_LONGEST:,} characters", hint="Give long texts as files.")
        value_of(str, text, "a call")
        name, bracket, rest = text.partition("(")
        name = name.strip()
        if not name or set(name) & set(')[]{},="'):
            raise OptionError(f"{text!r} has no plugin name", hint="Write one name, or one name(key=value).")
        if not bracket:
            return cls(name)
        if not rest.endswith(")"):
            raise OptionError(f"{text!r} does not end with ')'", hint="Write name(key=value, ...).")
        args: list[Json] = []
        options: dict[str, Json] = {}
        for part in split(rest[:-1], whole=text):
            key, equals, value = _key_value(part)
            if not equals:
                if options:
                    raise OptionError(f"positional value {part!r} follows a named value in {text!r}")
                args.append(_value(part))
            elif not value:
                raise OptionError(f"option {key!r} has no value in {text!r}", hint=f'An empty text is {key}="".')
            elif key in options:
                raise OptionError(f"option {key!r} is given twice in {text!r}")
            else:
                options[key] = _value(value)
        return cls(name, tuple(args), options)

    @classmethod
    def of(cls, value: str | Call | Mapping[str, Json]) -> Call:
        """Read a call from a string, a call, or a table ``{"name": ..., **options}`` of a study file.

        Raises:
            OptionError: if the table has no name, or gives an option twice.
        """
        if isinstance(value, Call):
            return value
        if isinstance(value, str):
            return cls.parse(value)
        name = value.get("name") if isinstance(value, Mapping) else None
        if not isinstance(name, str):
            raise OptionError(
                f"{brief(value)} has no plugin name", hint='Write "name" or { name = "...", option = ... }.'
            )
        call = cls.parse(name)
        check_json(value, name)
        options = {key: option for key, option in value.items() if key != "name"}
        for key in options.keys() & call.options.keys():
            raise OptionError(f"option {key!r} is given twice, in {name!r} and in the table")
        return cls(call.name, call.args, {**call.options, **options})

    def __str__(self) -> str:
        parts = [_text(arg) for arg in self.args] + [f"{key}={_text(value)}" for key, value in self.options.items()]
        return f"{self.name}({', '.join(parts)})" if parts else self.name


def split(text: str, *, whole: str) -> list[str]:
    """Split at commas that are outside brackets and quotes."""
    parts: list[str] = []
    expected: list[str] = []
    start, quoted, escaped = 0, False, False
    for i, char in enumerate(text):
        if quoted:
            quoted = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            quoted = True
        elif char in _CLOSING:
            expected.append(_CLOSING[char])
            if len(expected) > _DEEPEST:
                raise OptionError(f"brackets are nested more than {_DEEPEST} deep in {brief(whole)}")
        elif char in ")]}":
            if not expected or expected.pop() != char:
                raise OptionError(f"brackets do not balance in {whole!r}")
        elif char == "," and not expected:
            parts.append(text[start:i])
            start = i + 1
    if expected or quoted:
        raise OptionError(f"brackets or quotes do not balance in {whole!r}")
    parts = [part.strip() for part in (*parts, text[start:])]
    if parts == [""]:
        return []
    if "" in parts:
        raise OptionError(f"an empty value stands between commas in {whole!r}")
    return parts


def _key_value(part: str) -> tuple[str, str, str]:
    """Split ``key=value`` when what stands before ``=`` is an identifier."""
    key, equals, value = part.partition("=")
    if equals and key.strip().isidentifier():
        return key.strip(), equals, value.strip()
    return "", "", part


def _value(text: str) -> Json:
    """Read JSON, a list of bare words, or a bare word."""
    try:
        value: Json = json.loads(text, object_pairs_hook=_table, parse_constant=no_constant, parse_float=finite)
    except ValueError:
        if text.startswith("[") and text.endswith("]"):
            return [_value(part) for part in split(text[1:-1], whole=text)]
        if len(text) > 1 and text[0] == text[-1] == "'":
            hint = f"Use double quotes: {json.dumps(text[1:-1])}."
            raise OptionError(f"{text} stands in single quotes, which would be part of the text", hint=hint) from None
        return text
    check_json(value, brief(text))
    return value


def _table(pairs: Sequence[tuple[str, Json]]) -> dict[str, Json]:
    try:
        return unique(pairs)
    except ValueError as error:
        raise OptionError(str(error)) from error


def _text(value: Json) -> str:
    """Write a value so that `_value` reads it back, without quotes if possible."""
    if isinstance(value, str) and value and value == value.strip() and not set(value) & set(",=\"'"):
        with contextlib.suppress(OptionError):  # unbalanced brackets: quoted below
            if _value(value) == value and split(value, whole=value) == [value]:
                return value
    return json.dumps(value)
