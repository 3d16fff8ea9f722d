"""Print what a study found."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.cli.inspect import print_json, print_tables, say

if TYPE_CHECKING:
    from llmquant.cli.gate import Gate
    from llmquant.results.comparison import Comparison


@dataclass(frozen=True)
class Shown:
    """What a command prints."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    explain: bool = False


def finish(found: Comparison, store: str, gate: Gate | None, shown: Shown, *, failed: bool = False) -> None:
    """Print a comparison, and exit with 1 if a run failed, or as the gate says."""
    from llmquant.results.report.summary import tables

    if shown.as_json:
        print_json(found.rows_json())
    else:
        limits, max_loss = (None, None) if gate is None else (gate.limits, gate.max_loss)
        print_tables(tables(found, limits, max_loss), explain=shown.explain)
        if not shown.quiet:
            say_stored(found, store)
    code = 0 if gate is None else gate.exit_code(found)
    if failed or found.failed:
        code = 1
    if code:
        sys.exit(code)


def say_stored(found: Comparison, store: str) -> None:
    """Print where the results are, and the command that prints them again."""
    again = shlex.join(["llmquant", "report", store])
    say("", f"Results: {store} (study {found.record.study_id}). Print again: {again}", err=True)
