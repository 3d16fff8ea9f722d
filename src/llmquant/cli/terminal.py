"""A study in a terminal: its plan, cost, progress, interruption and log."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING

import typer

from llmquant.cli.inspect import say
from llmquant.study.neutral import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from llmquant.planning.resolve import Planned
    from llmquant.plugins.executor import Executor, Offer
    from llmquant.running.progress import Progress


class Terminal:
    """Shows a study's progress in a terminal and asks for confirmation there."""

    def __init__(
        self,
        executor: str,
        store: str,
        *,
        quiet: bool,
        verbose: bool = False,
        notes: Sequence[str] = (),
        max_loss: Sequence[str] | None = None,
    ) -> None:
        self._executor, self._store, self._quiet, self._notes = executor, store, quiet, notes
        self._max_loss = max_loss
        self._console = show_log(verbose=verbose)

    def planned(self, planned: Planned, executor: Executor) -> None:
        """Print the number of experiments, the model sizes and the expected time.

        Raises:
            OptionError: if ``--max-loss`` names a score that the study does not measure.
        """
        from llmquant.cli.announce import announcement
        from llmquant.errors import raise_all
        from llmquant.planning.margins import unknown_margins
        from llmquant.study.margins import loss_margins

        raise_all([*unknown_margins(loss_margins(self._max_loss or (), {}), planned.evaluators)])
        if not self._quiet:
            say(*announcement(planned, executor, self._store), *(f"note: {note}" for note in self._notes), err=True)

    def agree(self, offer: Offer) -> bool:
        """Print the maximum cost, and ask for confirmation in a terminal unless it is confirmed already."""
        say(*offer.text.splitlines(), err=True)
        return offer.agreed or (sys.stdin.isatty() and typer.confirm("Start?", err=True))

    def progress(self) -> AbstractContextManager[Callable[[Progress], None]]:
        """Show the study's progress, unless ``--quiet`` is given."""
        from llmquant.results.report.progress import show_progress

        return nullcontext(lambda state: None) if self._quiet else show_progress(self._console)

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


def show_log(*, verbose: bool) -> Console:
    """Show the log on standard error, and return the console: a live display on the same one stays below the log.

    Args:
        verbose: show each step, and what other libraries log, warn of and download.
    """
    from rich.console import Console
    from rich.highlighter import NullHighlighter
    from rich.logging import RichHandler

    console = Console(stderr=True)
    handler = RichHandler(
        console=console, highlighter=NullHighlighter(), show_time=False, show_level=False, show_path=False
    )
    handler.setFormatter(Printable())
    if not verbose:
        handler.addFilter(logging.Filter("llmquant"))
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    logging.captureWarnings(True)
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[handler])
    return console


@contextmanager
def libraries_logged(*, verbose: bool) -> Iterator[Console | None]:
    """Send what libraries print in this block to a file, which is kept and named if the block fails.

    The block receives a console that still shows.

    Args:
        verbose: show what libraries print, and yield ``None``: a live display would be torn.
    """
    from rich.console import Console

    from llmquant.running.output import flush_output, give_back, keep_output

    if verbose:
        show_log(verbose=True)
        yield None
        return
    flush_output()
    output = keep_output()
    with (
        NamedTemporaryFile(prefix="llmquant-", suffix=".log", delete=False) as log,
        os.fdopen(os.dup(output[1]), "w", encoding="utf-8") as shown,
    ):
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        failed = True
        try:
            yield Console(file=shown)
            failed = False
        finally:
            flush_output()
            give_back(output)
            if failed and Path(log.name).stat().st_size:
                say(f"messages of other libraries: {log.name}", err=True)
            else:
                Path(log.name).unlink()
