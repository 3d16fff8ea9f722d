"""Local rows as the data set of a task: every value keeps its type from the file.

A `datasets.Dataset` has one type per column: next to 5.5 a 5 becomes 5.0, its JSON loader converts texts that look like
dates to times, and a missing field becomes null.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from datasets.fingerprint import Hasher

from llmquant.errors import RunError
from llmquant.storage.text_files import Row, read_rows

_Function: TypeAlias = Callable[..., Any]  # Any: a task's own function


def read_documents(*, local_rows: str, local_rows_name: str, **_: object) -> dict[str, LocalRows]:
    """Read a file of rows as the test split; lm-eval calls this, with a task's metadata as well.

    Args:
        local_rows: the file's path.
        local_rows_name: the file's name in messages.

    Raises:
        OptionError: if a line is not a JSON object.
    """
    found = list(read_rows(Path(local_rows), local_rows_name))
    return {"test": LocalRows([row for _, row in found], [f"line {line}" for line, _ in found])}


class LocalRows(Sequence[Row]):
    """Rows with the methods of a `datasets.Dataset` that tasks call.

    Each access returns a copy, as in a data set, because some tasks sort or shuffle their rows.

    Args:
        rows: at least one row.
        places: each row's name in messages.
    """

    def __init__(self, rows: Sequence[Row], places: Sequence[str]) -> None:
        self._rows, self.places = rows, places
        self._made: dict[tuple[object, str], LocalRows] = {}

    @property
    def features(self) -> dict[str, None]:
        """All fields; a row may lack some of them."""
        return dict.fromkeys(key for row in self._rows for key in row)

    @property
    def column_names(self) -> list[str]:
        """All fields as a list."""
        return list(self.features)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:  # Any: a row by its number, or a column by its name
        if isinstance(index, str):
            return [row[index] for row in self]
        return copy.deepcopy(self._rows[operator.index(index)])

    def map(
        self,
        function: _Function,
        *,
        with_indices: bool = False,
        batched: bool = False,
        remove_columns: Sequence[str] = (),
    ) -> LocalRows:
        """Return rows updated by `function`; a batched function gets columns and may return new rows."""

        def make() -> LocalRows:
            if batched:
                columns = function({key: self[key] for key in self.features})
                rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
                return LocalRows(rows, [f"document {number}" for number in range(1, len(rows) + 1)])
            numbers = range(len(self))
            made = [self._call(function, number, *([number] if with_indices else [])) or {} for number in numbers]
            kept = [{key: row[key] for key in row if key not in remove_columns} for row in self]
            return LocalRows([old | new for old, new in zip(kept, made, strict=True)], self.places)

        return self._once(make, function, (with_indices, batched, remove_columns))

    def filter(self, function: _Function) -> LocalRows:
        """Return the rows for which `function` is true."""
        numbers = range(len(self))
        return self._once(lambda: self.select(n for n in numbers if self._call(function, n)), function, "filter")

    def select(self, numbers: Iterable[int]) -> LocalRows:
        """Return some of the rows."""
        chosen = list(numbers)
        return LocalRows([self._rows[number] for number in chosen], [self.places[number] for number in chosen])

    def _call(self, function: _Function, number: int, *others: int) -> Any:  # Any: what a task makes of a row
        try:
            return function(self[number], *others)
        except Exception as error:  # a task's own code
            raise RunError(f"{self.places[number]}: {type(error).__name__}: {error}") from error

    def _once(self, make: Callable[[], LocalRows], function: _Function, how: object) -> LocalRows:
        """Return the earlier result of an equal function.

        lm-eval asks a task for its documents several times, and some tasks shuffle: the scored documents must be the
        prompted ones. Functions are created anew each time, so they are identified by their code and captured values.
        """
        inside = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        inside += getattr(function, "__defaults__", None) or ()
        key = (getattr(function, "__code__", function), Hasher.hash((inside, how)))
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]
