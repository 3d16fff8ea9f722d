"""Run a study for the command line, and print what it found."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmquant.cli.inspect import print_json, print_tables, say
from llmquant.cli.terminal import Terminal, attach_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmquant.cli.gate import Gate
    from llmquant.results.comparison import Comparison
    from llmquant.study.study import Study


@dataclass(frozen=True)
class Shown:
    """What a command prints."""

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False
    explain: bool = False


def run_and_print(
    study: Study,
    executor: str,
    store: str,
    fresh: bool,
    timeout: float | None,
    shown: Shown,
    gate: Gate | None = None,
    notes: Sequence[str] = (),
    *,
    detach: bool = False,
) -> None:
    """Run a study and print its comparison, or submit the study and print how to wait for it.

    Args:
        notes: shown with the plan.
    """
    from llmquant.api import run_study, submit_study

    ui = Terminal(executor, store, quiet=shown.quiet, verbose=shown.verbose, notes=notes)
    if not detach:
        found = run_study(study, executor=executor, store=store, fresh=fresh, timeout_s=timeout, ui=ui)
        finish(found, store, gate, shown)
        return
    left = submit_study(study, executor=executor, store=store, fresh=fresh, ui=ui)
    later = f"; experiments that wait for other experiments: {left.waiting}; run this command again to start them"
    say(f"jobs running: {left.jobs}{later if left.waiting else ''}. To wait for the study:", err=True)
    say(attach_command(left.study_id, executor, store))


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
