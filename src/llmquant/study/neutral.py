"""Escapes text from elsewhere for its output format: a terminal, HTML, Markdown, CSV, JSON.

Labels, task names, answers, messages and file names come from models, data sets, plugins and third parties' stores.
Each format has one function here, which its renderer applies to every text that it writes.
"""

from __future__ import annotations

import re
from typing import Any

# Most text has only these characters; each other character is checked for being printable.
_OTHER = re.compile(r"[^ -~]")
# Characters that are markup in Markdown. An underscore inside a word is not, and labels often contain some.
_MARKUP = re.compile(r"[\\`*<>|~]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|&(?=#?\w+;)|^[#+-](?=\s)")
# A spreadsheet computes a cell with such a first character, including the full-width forms.
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")


def printable(text: str, *, keep: str = "") -> str:
    r"""Escape each control or invisible character: ESC becomes ``\x1b``, other white space a space.

    Args:
        keep: characters that stay, such as a line break.
    """

    def visible(match: re.Match[str]) -> str:
        char = match[0]
        if char.isprintable() or char in keep:
            return char
        return " " if char.isspace() else char.encode("unicode_escape").decode()

    return _OTHER.sub(visible, text)


def html_text(text: str) -> str:
    """Escape text for the content of an element or a quoted attribute."""
    import html

    return html.escape(printable(text))


def html_lines(text: str) -> str:
    """Escape a text of several lines; its line breaks stay."""
    return "\n".join(html_text(line) for line in text.split("\n"))


def markdown_text(text: str) -> str:
    """Escape text for one line or cell of GitHub's Markdown."""
    return _MARKUP.sub(r"\\\g<0>", " ".join(printable(text).split()))


def csv_cell(text: str) -> str:
    """Put an apostrophe before a text that a spreadsheet would compute."""
    shown = printable(text, keep="\n")
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) else shown


def json_text(value: Any) -> str:  # Any: a JSON value
    """Write a value as JSON; characters that are not printable are escaped, so that it is exact on a terminal too."""
    import json

    def escaped(match: re.Match[str]) -> str:
        char = match[0]
        return char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1]

    return _OTHER.sub(escaped, json.dumps(value, indent=1, ensure_ascii=False))
