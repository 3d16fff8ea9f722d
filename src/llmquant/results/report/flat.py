"""Rows with one value a column: for spreadsheets and data frames."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import fields

from llmquant.results.rows import Row
from llmquant.study.neutral import csv_cell

Value = None | bool | int | float | str


def flat(rows: Sequence[Row]) -> list[dict[str, Value]]:
    """Return a record a row: the fields of `Row`, and each condition as a column of its own, ``at_prompt_tokens``."""
    conditions = sorted({f"at_{key}" for row in rows for key in row.at})
    found = []
    for row in rows:
        record: dict[str, Value] = dict.fromkeys(columns(conditions))
        record |= {name: value for name, value in vars(row).items() if name in record}
        record |= {f"at_{key}": value for key, value in row.at.items()}
        record["provenance_differences"] = "; ".join(row.provenance_differences)
        found.append(record)
    return found


def columns(conditions: Sequence[str] = ()) -> list[str]:
    """List the columns, in order."""
    names = [field.name for field in fields(Row)]
    place = names.index("at")
    return [*names[:place], *conditions, *names[place + 1 :]]


def to_csv(rows: Sequence[Row]) -> str:
    """Write rows as comma-separated values; what is not there is an empty field, and no text is a formula."""
    records = flat(rows)
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    for line in (records[0] if records else columns(), *(record.values() for record in records)):
        writer.writerow([csv_cell(value) if isinstance(value, str) else value for value in line])
    return stream.getvalue()
