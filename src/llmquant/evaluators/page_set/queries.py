"""Read the queries of a local retrieval set from JSONL, CSV or TSV, and report every mistake in them."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmquant.errors import OptionError, RequestError, nearest, shorten
from llmquant.evaluators.page_set.pages import resolve
from llmquant.storage.text_files import read_rows, read_text

ENDINGS = (".jsonl", ".csv", ".tsv")
_DIGITS = 9
_COLUMNS = ("query", "relevant", "relevance", "id")
_HINT = (
    'Write {"query": "...", "relevant": ["page.png", "manual.pdf#3"]} in each row; in CSV and TSV several pages are '
    "separated by ';'."
)


@dataclass(frozen=True)
class Question:
    """A query.

    Attributes:
        relevant: grades by page id, at least one of them above 0.
    """

    id: str
    text: str
    relevant: Mapping[str, int]


def read_questions(path: Path, name: str, names: Mapping[str, str]) -> tuple[list[Question], list[RequestError]]:
    """Read a file of queries, and list its mistakes, at most 21.

    Args:
        name: the file's name, whose ending determines the format.
        names: page ids by all accepted names.
    """
    questions: list[Question] = []
    errors: list[RequestError] = []
    seen: dict[str, int] = {}
    asked: dict[str, tuple[int, dict[str, int]]] = {}
    try:
        rows = list(_rows(path, name))
    except OptionError as error:
        return [], [error]
    named = any(row.get("id") not in (None, "") for row in rows)
    for number, row in enumerate(rows, start=1):
        where = f"{name}, row {number}"
        found = list(_mistakes(row, where, names))
        identity = str(number) if row.get("id") in (None, "") else str(row["id"])
        if named and row.get("id") in (None, ""):
            found.append(OptionError(f"{where}: the id is empty", hint="Give all queries an id, or none."))
        elif identity in seen:
            found.append(OptionError(f"{where}: id {identity!r} is that of row {seen[identity]} already"))
        seen.setdefault(identity, number)
        errors += found
        if not found:
            grades = _grades(row)
            relevant = {resolve(page, names) or page: grade for page, grade in grades.items()}
            text = str(row["query"]).strip()
            first, pages = asked.setdefault(text, (number, relevant))
            if pages != relevant:  # each row would count the other's pages as wrong
                hint = "Put all pages of a query into one row."
                errors.append(OptionError(f"{where}: the query is that of row {first}, with other pages", hint=hint))
            questions.append(Question(identity, text, relevant))
    if not rows:
        errors.append(OptionError(f"{name} has no queries", hint=_HINT))
    shorten(errors, name)
    return questions, errors


def _mistakes(row: Mapping[str, Any], where: str, names: Mapping[str, str]) -> Iterator[OptionError]:  # Any: a row
    if None in row:  # the key that `csv` uses for surplus cells
        yield OptionError(f"{where} has more cells than columns", hint='Put a cell with a comma in "".')
        return
    unknown = [column for column in row if column not in _COLUMNS]
    if unknown:
        yield OptionError(f"{where}: there is no column {unknown[0]!r}", hint=nearest(str(unknown[0]), _COLUMNS))
    if not isinstance(row.get("query"), str) or not row["query"].strip():
        yield OptionError(f"{where}: the query is empty", hint=_HINT if "query" not in row else "")
    try:
        grades = _grades(row)
    except ValueError as error:
        hint = "Write one grade per page: a whole number, 0 for a page that is not relevant."
        yield OptionError(f"{where}: {error}", hint=hint)
        return
    if not any(grade > 0 for grade in grades.values()):
        yield OptionError(
            f"{where}: no page is relevant",
            hint="Remove the query, because a query without an answer cannot be scored.",
        )
    found: dict[str, int] = {}
    for page, grade in grades.items():
        if (known := resolve(page, names)) is None:
            several = "Separate pages by ';' in CSV and TSV, or write a list in JSONL." if "," in page else ""
            yield OptionError(f"{where}: there is no page {page!r}", hint=several or nearest(page, names))
        elif found.setdefault(known, grade) != grade:
            yield OptionError(f"{where}: page {page!r} has the grades {found[known]} and {grade}")


def _grades(row: Mapping[str, Any]) -> dict[str, int]:  # Any: a row's values
    """Return the grade of each page in a row, 1 for a row without grades.

    Raises:
        ValueError: for an invalid grade, and if the numbers of grades and pages differ.
    """
    relevant, relevance = row.get("relevant"), row.get("relevance")
    if isinstance(relevant, Mapping):
        pages, grades = list(relevant), list(relevant.values())
    else:
        pages = _listed(relevant)
        grades = [1] * len(pages) if relevance in (None, "") else _listed(relevance)
    if len(pages) != len(grades):
        raise ValueError(f"{len(pages)} pages are relevant, but there are {len(grades)} grades")
    found: dict[str, int] = {}
    for page, grade in zip(pages, grades, strict=True):
        text = str(grade).strip()
        if not text.isdecimal() or len(text) > _DIGITS:
            raise ValueError(f"the grade of {page!r} is {grade!r}, not a whole number from 0")
        called = str(page).strip()
        if found.setdefault(called, int(text)) != int(text):
            raise ValueError(f"page {called!r} has the grades {found[called]} and {text}")
    return found


def _listed(value: Any) -> list[Any]:  # Any: a row's value
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(";") if part.strip()]
    return list(value) if isinstance(value, list) else [value]


def _rows(path: Path, name: str) -> Iterator[Mapping[str, Any]]:  # Any: JSON values
    ending = Path(name).suffix.lower()
    if ending not in ENDINGS:
        raise OptionError(f"{name} has the ending {ending!r}", hint=f"Use a {', '.join(ENDINGS)} file.")
    if ending == ".jsonl":
        yield from (row for _, row in read_rows(path, name))
        return
    # Not by `splitlines`: a quoted cell may hold line ends, and any cell U+2028.
    text = io.StringIO(read_text(path, name), newline="")
    reader = csv.DictReader(text, delimiter="," if ending == ".csv" else "\t", strict=True)
    try:
        if twice := [column for column, count in Counter(reader.fieldnames).items() if count > 1]:
            raise OptionError(f"{name} has the column {twice[0]!r} twice", hint=_HINT)
        unknown = [column for column in reader.fieldnames or () if column not in _COLUMNS]
        if unknown:  # reported once, not for every row
            raise _unknown_columns(name, list(reader.fieldnames or ()), unknown[0], reader.reader.dialect.delimiter)
        if lacks := [column for column in _COLUMNS[:2] if column not in (reader.fieldnames or _COLUMNS)]:
            raise OptionError(f"{name} has no column {lacks[0]!r}", hint=_HINT)
        yield from reader
    except csv.Error as error:
        hint = 'A cell that begins with " must end with "; a " inside is written as "".'
        raise OptionError(f"{name}, line {reader.line_num + 1} cannot be read: {error}", hint=hint) from error


def _unknown_columns(name: str, columns: list[str], unknown: str, delimiter: str) -> OptionError:
    """Say which columns a file has, and what is wrong with them: their names, or what separates them."""
    names = {",": "commas", ";": "semicolons", "\t": "tabs"}
    other = next((mark for mark in names if mark != delimiter and mark in unknown and len(columns) == 1), None)
    if other is not None:
        hint = f"They are separated by {names[other]}; separate them by {names[delimiter]}."
    elif unknown.strip().lower() in _COLUMNS:
        hint = f"Write {unknown.strip().lower()!r}, in small letters and without spaces."
    else:
        hint = f"Rename or remove {unknown!r}: the columns are query and relevant, and optionally relevance and id."
    return OptionError(f"{name} has the columns {', '.join(map(repr, columns))}", hint=hint)
