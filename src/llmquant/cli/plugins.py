"""The commands that list and check plugins."""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from typing import Annotated

import typer

from llmquant.cli.command import Command
from llmquant.cli.inspect import AsJson, print_json, say
from llmquant.machine.streams import stdout_to_stderr
from llmquant.study.neutral import printable

plugins_app = typer.Typer(help="List and check plugins and presets.", no_args_is_help=False, rich_markup_mode=None)

Traceback = Annotated[bool, typer.Option("--verbose", "-v", help="Print the traceback of each failure.")]
Everything = Annotated[
    bool, typer.Option("--verbose", "-v", help="Print the traceback of each failure, and what other libraries print.")
]


@plugins_app.callback()
def plugins(context: typer.Context, as_json: AsJson = False, verbose: Traceback = False) -> None:
    """List all plugins and presets.

    Packages whose plugins could not be loaded are listed too.
    """
    if context.invoked_subcommand is None:
        _list_plugins(as_json=as_json, verbose=verbose)


@plugins_app.command("list")
def plugins_list(as_json: AsJson = False, verbose: Traceback = False) -> None:
    """List all plugins and presets.

    Packages whose plugins could not be loaded are listed too.
    """
    _list_plugins(as_json=as_json, verbose=verbose)


@plugins_app.command("check", cls=Command)
def plugins_check(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="Plugin, preset or call, kind:name, or package, for example 'rtn(bits=3)'."
        ),
    ],
    verbose: Everything = False,
) -> None:
    """Check an installed plugin on a tiny model.

    Each failure is printed with how to fix it. The exit code is 1 if a check fails.
    """
    from llmquant.cli.terminal import libraries_logged
    from llmquant.plugins.checking import matching
    from llmquant.plugins.registry import registry

    failed = False
    with stdout_to_stderr() as stream, libraries_logged(verbose=verbose):

        def show(line: str) -> None:
            typer.echo(printable(line), file=stream)

        found, broken = matching(registry(), name)
        for item in broken:
            failed = True
            show(f"broken: {item.package}: {item.reason}")
            for line in item.traceback.splitlines() if verbose else ():
                show(f"  {line}")
        for plugin, call in found:
            from llmquant.testing import outcomes

            show(f"{plugin.spec.kind} {plugin.full_name} {plugin.version}: {plugin.spec.summary}")
            count: Counter[str] = Counter()
            for outcome in outcomes(plugin.spec, call):
                count[outcome.status] += 1
                mark = outcome.status.upper() if outcome.error else outcome.status
                first, *rest = (outcome.text or outcome.check.meaning).splitlines()
                show(f"  {mark}  {outcome.check.name}: {first}")
                for line in rest:
                    show(f"        {line}")
                for line in "".join(traceback.format_exception(outcome.error)).splitlines() if verbose else ():
                    show(f"        {line}")
            failed |= count["fail"] > 0
            show(f"  {count['pass']} passed, {count['fail']} failed, {count['skip']} skipped")
    if failed:
        sys.exit(1)


def _list_plugins(*, as_json: bool, verbose: bool) -> None:
    from llmquant.plugins.checking import plugin_rows
    from llmquant.plugins.registry import registry

    rows, broken = plugin_rows(registry()), registry().broken
    if as_json:
        print_json({"plugins": rows, "broken": [vars(item) for item in broken]})
        return
    for kind in dict.fromkeys(row["kind"] for row in rows):
        typer.secho(f"{kind}s", bold=True)
        for row in rows:
            if row["kind"] == kind:
                say(f"  {row['name']:24} {row['summary']}", hang=27)
                if row["missing"]:
                    say(f"{'':27}{row['missing']}")
                if row["broken"]:
                    say(f"{'':27}broken: {row['broken']}", fg="red")
                if row["presets"]:
                    say(f"{'':27}presets: {', '.join(row['presets'])}")
    for item in broken:
        say(f"broken: {item.package}: {item.reason}", fg="red")
        if verbose:
            say(*item.traceback.splitlines())
