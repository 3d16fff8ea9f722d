"""A study in a terminal: its plan, cost, progress, interruption and log."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import typer

from llmquant.cli.inspect import say
from llmquant.study.neutral import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmquant.planning.resolve import Planned
    from llmquant.plugins.executor import Executor, Offer
    from llmquant.running.progress import Progress


class Terminal:
    """Shows a study's progress in a terminal and asks for confirmation there."""

    def __init__(self, executor: str, store: str, *, quiet: bool) -> None:
        self._executor, self._store, self._quiet = executor, store, quiet

    def planned(self, planned: Planned, executor: Executor) -> None:
        """Print the number of experiments, the model sizes and the expected time."""
        from llmquant.cli.announce import announcement

        if not self._quiet:
            say(*announcement(planned, executor, self._store), err=True)

    def agree(self, offer: Offer) -> bool:
        """Print the maximum cost, and ask for confirmation in a terminal unless it is confirmed already."""
        say(*offer.text.splitlines(), err=True)
        return offer.agreed or (sys.stdin.isatty() and typer.confirm("Start?", err=True))

    def progress(self) -> AbstractContextManager[Callable[[Progress], None]]:
        """Show the study's progress, unless ``--quiet`` is given."""
        from llmquant.results.report.progress import show_progress

        return nullcontext(lambda state: None) if self._quiet else show_progress()

    def interrupted(self, study: str) -> bool:
        """Ask whether to cancel jobs that could continue; a second Ctrl-C, or no terminal, cancels the jobs."""
        if not sys.stdin.isatty():
            return True
        try:
            if typer.confirm("\nCancel the running jobs? If not, the jobs continue", default=True, err=True):
                return True
        except typer.Abort:
            return True
        say(f"To wait for the jobs: {attach_command(study, self._executor, self._store)}", err=True)
        return False


def attach_command(study: str, on: str, store: str) -> str:
    """Return the command that waits for a study."""
    import shlex

    return shlex.join(["llmquant", "attach", study, "--on", on, "--store", store])


class Printable(logging.Formatter):
    """Escapes the control characters of a message."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a message without secrets."""
        from llmquant.storage.blanking import blank_secrets

        return printable(blank_secrets(super().format(record)), keep="\n")


def show_log(*, verbose: bool) -> None:
    """Show the log above the progress lines."""
    from rich.console import Console
    from rich.logging import RichHandler

    above = RichHandler(console=Console(stderr=True), show_time=False, show_level=False, show_path=False, keywords=[])
    above.setFormatter(Printable())
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[above])
