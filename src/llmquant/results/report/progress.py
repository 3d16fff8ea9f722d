"""Shows a study's progress: live lines in a terminal or a notebook, else one line per change."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from llmquant.study.counting import counted
from llmquant.study.neutral import html_text, printable

if TYPE_CHECKING:
    from llmquant.running.progress import Progress, Running

_LINE_EVERY_S = 30.0
_DISPLAY_EVERY_S = 0.5


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[Callable[[Progress], None]]:
    """Show progress on standard error or in a notebook's output; call the yielded function with each new state."""
    console = console or Console(stderr=True)
    if console.is_jupyter:
        with _notebook() as show:
            yield show
        return
    if not console.is_terminal:
        yield _line_printer(console)
        return
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield lambda state: live.update(_panel(state))


@contextmanager
def _notebook() -> Iterator[Callable[[Progress], None]]:
    """Show progress in one output that is updated; afterwards it holds the headline alone."""
    from IPython.display import display

    shown = display({"text/plain": ""}, raw=True, display_id=True)
    start = at = time.monotonic()
    last: Progress | None = None

    def show(state: Progress) -> None:
        nonlocal at, last
        if last is None or time.monotonic() - at > _DISPLAY_EVERY_S:
            at = time.monotonic()
            shown.update(_bundle(headline(state), state.running), raw=True)
        last = state

    try:
        yield show
    finally:
        if last is not None:
            took = f"{headline(replace(last, running=()))}, after {duration(time.monotonic() - start)}"
            shown.update(_bundle(took, ()), raw=True)


def _bundle(first: str, running: Sequence[Running]) -> dict[str, str]:
    """Write a headline and a line per running experiment as text and as HTML."""
    lines, rows = [first], []
    for each in running:
        elapsed, count = duration(time.monotonic() - each.since), f"{each.done}/{each.total}" if each.total else ""
        lines.append("  ".join(["", *filter(None, (printable(each.label), count, elapsed))]))
        value = f' value="{each.done}" max="{each.total}"' if each.total else ""
        rows.append(f"<div><progress{value}></progress> {count} {html_text(each.label)}, {elapsed}</div>")
    return {"text/plain": "\n".join(lines), "text/html": f"<div>{html_text(first)}</div>{''.join(rows)}"}


@contextmanager
def show_layers(console: Console | None) -> Iterator[Callable[[int, int], None]]:
    """Show the number of quantized layers while the block runs; nothing without a console."""
    columns = (TextColumn("quantizing"), BarColumn(), TextColumn("{task.fields[layers]}"), TimeElapsedColumn())
    with RichProgress(
        *columns,
        console=console,
        transient=True,
        redirect_stdout=False,  # libraries print elsewhere
        redirect_stderr=False,
        disable=console is None or not console.is_terminal,
    ) as bar:
        task = bar.add_task("", total=None, layers="")
        yield lambda done, total: bar.update(
            task, completed=done, total=total, layers=f"{done} of {counted(total, 'layer')}"
        )


def headline(state: Progress) -> str:
    """Describe a study's progress in one line."""
    parts = [f"{state.reused + state.completed} of {counted(state.total, 'experiment')} done"]
    parts += [f"{state.reused} reused"] if state.reused else []
    parts += [f"{state.failed} failed"] if state.failed else []
    if state.remaining_s is not None and state.remaining_s >= 1 and state.running:
        parts.append(f"about {duration(state.remaining_s)} left")
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Write a duration as people say it: ``40 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def _panel(state: Progress) -> Group:
    grid = Table.grid(padding=(0, 1))
    for running in state.running:
        elapsed = time.monotonic() - running.since
        count = f"{running.done}/{running.total}" if running.total else ""
        bar = ProgressBar(total=running.total or None, completed=running.done, width=24, pulse=not running.total)
        grid.add_row(
            Padding(Text(printable(running.label)), (0, 0, 0, 2)),  # wraps: a wait names who is waited for
            bar,
            Text(count),
            Text(duration(elapsed)),
        )
    return Group(Text(headline(state)), grid)


def _line_printer(console: Console) -> Callable[[Progress], None]:
    last_key, last_at = "", 0.0

    def show(state: Progress) -> None:
        nonlocal last_key, last_at
        running = ", ".join(f"{r.label} {r.done}/{r.total}" if r.total else r.label for r in state.running)
        key = f"{state.completed} {state.failed} {[r.label for r in state.running]}"
        if key != last_key or time.monotonic() - last_at > _LINE_EVERY_S:
            last_key, last_at = key, time.monotonic()
            line = f"{headline(state)}{f' · now {running}' if running else ''}"
            console.print(Text(printable(line)), soft_wrap=True)

    return show
