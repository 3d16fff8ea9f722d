"""Rows as a pandas data frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from llmquant.errors import MissingDependencyError
from llmquant.results.report.flat import columns, flat
from llmquant.results.rows import Row

if TYPE_CHECKING:
    import pandas as pd


def to_frame(rows: Sequence[Row]) -> pd.DataFrame:
    """Return a tidy frame: a line a row, a column a field, conditions as ``at_...``; what is not there is missing.

    Raises:
        MissingDependencyError: if pandas is not installed.
    """
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingDependencyError(
            "a data frame needs pandas, which is not installed", hint='Run: pip install "llmquant[frame]"'
        ) from error
    records = flat(rows)
    # A column of None alone has no type to guess; pandas' own missing value lets numbers be numbers.
    return pd.DataFrame.from_records(records, columns=list(records[0]) if records else columns()).convert_dtypes()
