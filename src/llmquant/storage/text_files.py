"""Text and rows in files, read exactly as written: no types are guessed and no line ends are translated."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from llmquant.errors import OptionError
from llmquant.study.reading import loads

Row: TypeAlias = dict[str, Any]  # Any: JSON values

_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
# First bytes of files that contain text in another form.
_OTHERS = {
    b"\x1f\x8b": "It is compressed by gzip; decompress it.",
    b"\x28\xb5\x2f\xfd": "It is compressed by zstd; decompress it.",
    b"PK\3\4": "It is a zip archive or a spreadsheet; save it as text.",
    b"PAR1": "It is a Parquet file; write its rows as JSON lines.",
}


def read_text(path: Path, name: str) -> str:
    """Read a UTF-8 text file: every character of it but a byte-order mark.

    Args:
        name: the file's name in messages.

    Raises:
        OptionError: if it cannot be read or is not text, with the line and the byte.
    """
    with _opened(path, name) as stream:
        data = stream.read()
    return _decoded(data, name, first_line=1, first_byte=0)


def read_rows(path: Path, name: str) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a JSONL file with the numbers of their lines, from 1; empty lines are left out.

    Args:
        name: the file's name in messages.

    Raises:
        OptionError: if it cannot be read, or a line is not one JSON object.
    """
    with _opened(path, name) as stream:
        yield from parse_rows(stream, name)


def parse_rows(lines: Iterable[bytes], name: str) -> Iterator[tuple[int, Row]]:
    """Read rows like `read_rows` from an open file, such as a compressed one.

    A line ends at a line feed and nowhere else: JSON text may hold U+2028 and its like.

    Raises:
        OptionError: if a line is not one JSON object.
    """
    read = 0
    for number, line in enumerate(lines, start=1):
        text = _decoded(line, name, first_line=number, first_byte=read).strip(" \t\r\n")
        read += len(line)
        if text:
            yield number, _row(text, f"{name}, line {number}")


def _opened(path: Path, name: str) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise OptionError(f"{name} cannot be read: {error.strerror}") from error


def _decoded(data: bytes, name: str, *, first_line: int, first_byte: int) -> str:
    text, wrong = "", data.find(b"\0")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        wrong = error.start if wrong < 0 else min(wrong, error.start)
    if wrong >= 0:
        line = first_line + data.count(b"\n", 0, wrong)
        wide = data[wrong] == 0 or data.startswith(_UTF16)
        hint = "It looks like UTF-16; save it as UTF-8." if wide else "Save it as UTF-8."
        other = (said for start, said in _OTHERS.items() if not first_byte and data.startswith(start))
        raise OptionError(
            f"{name} is not UTF-8 text: in line {line}, byte {first_byte + wrong} is {data[wrong]:#x}",
            hint=next(other, hint),
        )
    return text if first_byte else text.removeprefix("\ufeff")


def _row(text: str, where: str) -> Row:
    hint = "Write one JSON object per line."
    try:
        row = loads(text)
        if "\\u" in text:
            json.dumps(row, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise OptionError(f"{where} is not JSON: {error.msg}, column {error.colno}", hint=hint) from error
    except UnicodeEncodeError as error:
        raise OptionError(f"{where} contains half of a surrogate pair, which is not a character") from error
    except ValueError as error:
        raise OptionError(f"{where} is not JSON: {error}", hint=hint) from error
    if not isinstance(row, dict):
        raise OptionError(f"{where} is {text[:40]!r}", hint=hint)
    return row
