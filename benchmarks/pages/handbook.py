"""Read the authored pages from ``content/*.toml`` and parse them into blocks.

The maker and the machines are invented; the text was written for this set and has the licence of the repository.

The body of a page is lines of plain text. A blank line ends a paragraph; other blocks begin with a mark::

    ## Heading            = Caption of a table      @bars Caption; unit
    - bullet              | a | row |               label 12      (a bar of 12)
    1. numbered step      ! warning
    @drawing Caption      rect X Y W H, circle X Y R, line X Y X Y, label X Y TO_X TO_Y text (0 to 100 each way)

``queries.jsonl`` has one query per line, with the pages that answer it: 2 for a full answer, 1 for a partial answer.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

CONTENT = Path(__file__).with_name("content")
_SHAPES = {"rect": 4, "circle": 3, "line": 4, "label": 4}


@dataclass(frozen=True)
class Block:
    """One piece of a page.

    Attributes:
        kind: heading, text, item, step, warning, table, bars or drawing.
        text: what it says; a caption for a table or figure.
        rows: a table's cells, the first row its head; a chart's (label, value); a drawing's (shape, text, *numbers).
    """

    kind: str
    text: str = ""
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Page:
    """A page of a handbook.

    Attributes:
        number: as printed, from 1 in each handbook.
        columns: of its text, 1 or 2.
    """

    file: str
    machine: str
    name: str
    edition: str
    number: int
    of: int
    title: str
    columns: int
    blocks: tuple[Block, ...]

    @property
    def text(self) -> str:
        """Every word that the page shows, as perfect OCR would give them."""
        lines = [f"{self.machine} {self.name}", self.title]
        for block in self.blocks:
            lines.append(block.text)
            if block.kind == "drawing":
                lines += [row[1] for row in block.rows if row[1]]
            else:
                lines += [" ".join(row) for row in block.rows]
        return "\n".join([*lines, self.edition, f"Page {self.number} of {self.of}"])


def read_pages(folder: Path = CONTENT) -> list[Page]:
    """Return all pages, by handbook and in their order in it."""
    pages = []
    for path in sorted(folder.glob("*.toml")):
        book = tomllib.loads(path.read_text(encoding="utf-8"))
        for number, page in enumerate(book["page"], start=1):
            pages.append(
                Page(
                    file=f"{path.stem}-{page['section']}.png",
                    machine=book["machine"],
                    name=book["name"],
                    edition=book["edition"],
                    number=number,
                    of=len(book["page"]),
                    title=page["title"],
                    columns=page["columns"],
                    blocks=tuple(_blocks(page["body"])),
                )
            )
    return pages


def _blocks(body: str) -> list[Block]:
    blocks: list[Block] = []
    caption = ""
    for group in re.split(r"\n\s*\n", body.strip()):
        lines = group.splitlines()
        if lines[0].startswith("="):
            caption = lines.pop(0)[1:].strip()
        if lines[0].startswith("@"):
            kind, _, text = lines[0][1:].partition(" ")
            read = _bar if kind == "bars" else _shape
            blocks.append(Block(kind, text, tuple(read(line) for line in lines[1:])))
        elif lines[0].startswith("|"):
            rows = tuple(tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines)
            blocks.append(Block("table", caption, rows))
            caption = ""
        else:
            blocks += _prose(lines)
    return blocks


def _prose(lines: list[str]) -> list[Block]:
    blocks: list[Block] = []
    for line in lines:
        if line.startswith("## "):
            blocks.append(Block("heading", line[3:]))
        elif line.startswith("! "):
            blocks.append(Block("warning", line[2:]))
        elif line.startswith("- "):
            blocks.append(Block("item", line[2:]))
        elif re.match(r"\d+\. ", line):
            blocks.append(Block("step", line))
        else:
            blocks.append(Block("text", line))
    return blocks


def _bar(line: str) -> tuple[str, ...]:
    label, _, value = line.rpartition(" ")
    return label, value


def _shape(line: str) -> tuple[str, ...]:
    shape, *rest = line.split()
    count = _SHAPES[shape]
    return (shape, " ".join(rest[count:]), *rest[:count])
