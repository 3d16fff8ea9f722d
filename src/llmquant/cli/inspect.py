"""The commands that show stored studies, plugins, tasks, the cache and this machine."""

from __future__ import annotations

import contextlib
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from llmquant.cli.command import Command, number
from llmquant.cli.gate import Gate, file_to_write
from llmquant.cli.options import (
    Explain,
    FailOn,
    Junit,
    MarginOption,
    MaxLatency,
    MaxLoss,
    MaxMemory,
    complete_study,
)
from llmquant.machine.streams import stdout_to_stderr
from llmquant.study.counting import counted
from llmquant.study.neutral import json_text, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmquant.results.report.table import Table

inspect_app = typer.Typer(rich_markup_mode=None)
cache_app = typer.Typer(help="List or prune the cache.", no_args_is_help=True, rich_markup_mode=None)
inspect_app.add_typer(cache_app, name="cache")

_COMMAND = re.compile(r"(Run: |(?<=: )llmquant |^ *(llmquant|pip install) ).*$")

# The stream for JSON while standard output is reserved for JSON.
_stdout: ContextVar[TextIO | None] = ContextVar("_stdout", default=None)


@contextlib.contextmanager
def _stdout_alone() -> Iterator[None]:
    """Keep standard output for JSON."""
    with stdout_to_stderr() as stream:
        token = _stdout.set(stream)
        try:
            yield
        finally:
            _stdout.reset(token)


def _keep_stdout(context: typer.Context, as_json: bool) -> bool:
    if as_json:
        context.with_resource(_stdout_alone())
    return as_json


AsJson = Annotated[bool, typer.Option("--json", callback=_keep_stdout, help="Print JSON on standard output.")]


# Formats of a report by the ending of its file.
_FORMATS = {".html": "html", ".md": "markdown", ".csv": "csv", ".json": "json", ".parquet": "parquet"}


@inspect_app.command(cls=Command)
def report(
    store: Annotated[
        str, typer.Argument(metavar="STORE", help="Store folder, or a file from `report --format json`.")
    ] = "results",
    study: Annotated[
        str | None,
        typer.Option(
            metavar="ID", autocompletion=complete_study, help="Study id, or its beginning (default: the newest study)."
        ),
    ] = None,
    list_studies: Annotated[bool, typer.Option("--list", help="List the studies of the store, and exit.")] = False,
    form: Annotated[
        str | None,
        typer.Option(
            "--format",
            "-f",
            metavar="FORMAT",
            help="table, markdown, csv, parquet, json or html (default: by the ending of --out, otherwise table).",
        ),
    ] = None,
    margin: MarginOption = None,
    max_memory: MaxMemory = None,
    max_latency: MaxLatency = None,
    max_loss: MaxLoss = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="GPU", help="Recommend a variant that fits into the memory of this GPU, for example L40S."
        ),
    ] = None,
    fail_on: FailOn = None,
    junit: Junit = None,
    out: Annotated[
        str | None,
        typer.Option("--out", "-o", metavar="FILE", help="File to write, such as a.html (default: standard output)."),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option("--html", metavar="FILE", help="Write the HTML report to this file too, for example report.html."),
    ] = None,
    explain: Explain = False,
) -> None:
    """Show a stored study.

    The report is a table, Markdown, CSV, Parquet, one portable JSON file, or one HTML page.
    """
    from llmquant.errors import OptionError, nearest
    from llmquant.results.comparison import Comparison
    from llmquant.results.report.summary import study_line, tables

    if list_studies:
        from llmquant.cli.study_list import study_tables
        from llmquant.storage.store import Store

        print_tables(study_tables(Store.existing(store)))
        return
    gate = Gate.of(max_memory, max_latency, max_loss, gpu, fail_on, junit)
    files = {name: file_to_write(name) for name in (out, html) if name is not None}
    if form is None:
        form = "table" if out is None else _FORMATS.get(files[out].suffix.lower(), "table")
    found = Comparison.load(store) if store.endswith(".json") else Comparison.from_store(store, study)
    found = found.at_margin(margin) if margin else found
    writers: dict[str, Callable[[], str]] = {
        "markdown": lambda: found.to_markdown(gate.limits, gate.max_loss),
        "csv": found.to_csv,
        "json": lambda: json_text(found.to_json()),
        "html": lambda: found.to_html(gate.limits, gate.max_loss),
        "table": lambda: found.to_text(explain=explain),
    }
    if form not in (*writers, "parquet"):
        raise OptionError(f"format is {form!r}", hint=nearest(form, (*writers, "parquet")))
    if form == "parquet":
        if out is None:
            raise OptionError("parquet is not text", hint="Give a file: --out report.parquet")
        found.save_parquet(out)
        say(f"written to {out}")
    elif out is not None:
        files[out].write_text(writers[form](), encoding="utf-8")
        say(f"written to {out}")
    elif form == "table":
        say(study_line(found.record), "")
        print_tables(tables(found, gate.limits, gate.max_loss), explain=explain)
    else:
        typer.echo(writers[form]())  # each writer escapes its own texts
    if html is not None:
        files[html].write_text(writers["html"](), encoding="utf-8")
        say(f"written to {html}", err=True)
    if code := gate.exit_code(found):
        sys.exit(code)


@inspect_app.command(cls=Command)
def tasks(
    pattern: Annotated[
        str,
        typer.Argument(metavar="PATTERN", help="mteb benchmark such as ViDoRe(v1), or part of a task's name."),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """List the tasks of lm-eval and mteb.

    Tasks of mteb are listed with their sizes and metrics.
    """
    from llmquant.cli.task_table import task_json, task_table
    from llmquant.errors import MissingDependencyError, UnknownNameError
    from llmquant.storage.cache import Cache

    names: list[str] = []
    found: list[Any] = []  # Any: MtebTask
    missing: list[MissingDependencyError] = []
    try:
        from llmquant.catalogs.lm_eval import installed_tasks

        names = [name for name in sorted(installed_tasks(Cache.default()).entries) if pattern.lower() in name.lower()]
    except MissingDependencyError as error:
        missing.append(error)
    unknown: UnknownNameError | None = None
    try:
        from llmquant.catalogs.mteb import known_mteb, list_tasks, mteb_is_installed

        found = list_tasks(pattern, Cache.default())
        if not mteb_is_installed():
            version = known_mteb(Cache.default()).version
            say(f"mteb is not installed: the tasks of mteb {version} are listed", err=True)
    except UnknownNameError as error:
        unknown = error
    except MissingDependencyError as error:
        missing.append(error)
    if len(missing) == 2:
        raise missing[0]
    if not names and not found and unknown is not None:
        raise unknown
    if as_json:
        print_json({"tasks": names, "mteb": [task_json(task) for task in found]})
        return
    if names:
        say(*names)
    if found:
        print_tables([task_table(found)])
    for lacking in missing:
        say(f"{lacking.message}. {lacking.hint}", err=True)


@cache_app.command("list")
def cache_list(as_json: AsJson = False) -> None:
    """List entries, the longest unused first.

    Each entry is shown with its size and the time of its last use.
    """
    from datetime import UTC, datetime

    from llmquant.results.report.table import Column, Table
    from llmquant.storage.cache import Cache

    cache = Cache.default()
    entries = cache.entries()
    if as_json:
        print_json(
            {"root": str(cache.root), "entries": [{**vars(entry), "path": str(entry.path)} for entry in entries]}
        )
        return
    columns = ("entry", "MiB", "last used (UTC)", Column(("made from",), align="left"))
    rows = tuple(
        (
            f"{entry.kind}/{entry.path.name[:12]}",
            f"{entry.bytes / 2**20:,.1f}",
            f"{datetime.fromtimestamp(entry.used_at, UTC):%Y-%m-%d %H:%M}",
            entry.name or "–",
        )
        for entry in entries
    )
    total = sum(entry.bytes for entry in entries) / 2**20
    print_tables([Table(f"{total:,.1f} MiB in {cache.root}", columns, rows)])


@cache_app.command("prune")
def cache_prune(
    unused_days: Annotated[
        float,
        number("unused days", float, "DAYS", "Delete entries not used for this number of days."),
    ] = 30,
) -> None:
    """Delete cache entries that were not used recently."""
    from llmquant.storage.cache import Cache

    deleted = Cache.default().prune(unused_days=unused_days)
    say(f"deleted {counted(len(deleted), 'entry')}, {sum(entry.bytes for entry in deleted) / 2**20:.1f} MiB")


@inspect_app.command()
def doctor(as_json: AsJson = False) -> None:
    """Check this machine's hardware and packages."""
    from llmquant.cli.doctor import examine

    findings = examine()
    if as_json:
        print_json({"findings": [vars(finding) for finding in findings]})
        return
    for finding in findings:
        say(f"{finding.mark} {finding.subject:22} {finding.text}", hang=26)
        if finding.cure:
            say(f"{'':26}{finding.cure}")


def print_tables(tables: Sequence[Table], *, explain: bool = True) -> None:
    """Print tables at the terminal's width, with all of their footnotes or the first ones."""
    from rich.console import Console

    from llmquant.results.report.text import print_tables as show

    show(tables, Console(), explain=explain)


def print_json(data: Any) -> None:  # Any: a JSON value
    """Print a value as JSON, the only text on standard output."""
    typer.echo(json_text(data), file=_stdout.get())


def say(*lines: str, err: bool = False, fg: str | None = None, hang: int = 0) -> None:
    """Print lines for people, with control characters escaped; in a terminal they wrap between words.

    Args:
        hang: column at which a line that was broken continues; by default that of its first word.
    """
    shown = list(map(printable, lines))
    if (sys.stderr if err else sys.stdout).isatty():
        shown = [wrapped(line, shutil.get_terminal_size().columns, hang) for line in shown]
    text = "\n".join(shown)
    typer.echo(typer.style(text, fg=fg) if fg else text, err=err)


def wrapped(line: str, width: int, hang: int = 0) -> str:
    """Break a line between words and continue it at column `hang`; a command reaches to the end and is not broken."""
    whole = _COMMAND.sub(lambda command: command[0].replace(" ", "\0"), line)
    indent = " " * (hang or len(line) - len(line.lstrip()))
    return textwrap.fill(
        whole, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ).replace("\0", " ")
