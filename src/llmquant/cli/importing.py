"""The command that imports results of other programs."""

from __future__ import annotations

from typing import Annotated

import typer

from llmquant.cli.command import Command
from llmquant.cli.inspect import AsJson, print_json, print_tables
from llmquant.cli.options import Explain, MarginOption, Quiet, StoreDir
from llmquant.cli.outcome import say_stored

import_app = typer.Typer(rich_markup_mode=None)


@import_app.command("import", cls=Command)
def import_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="[NAME=]PATH",
            help="Folder of lm-eval (with --log_samples) or mteb, or text file of llama.cpp's perplexity; "
            "NAME is the variant's name, for example nf4=out/nf4.",
        ),
    ],
    baseline: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Variant to compare the others with, for example bf16 (default: the first)."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of the model (default: the name in the baseline's files).")
    ] = None,
    margin: MarginOption = None,
    store: StoreDir = "results",
    as_json: AsJson = False,
    explain: Explain = False,
    quiet: Quiet = False,
) -> None:
    """Compare results of lm-eval, mteb or llama.cpp.

    Results are imported into a store. Nothing is run.
    """
    from llmquant.importers.studies import import_results
    from llmquant.results.report.summary import summary

    found = import_results(sources, baseline=baseline, model=model, margin=margin, store=store)
    if as_json:
        print_json(found.rows_json())
        return
    print_tables(summary(found.rows(), found.record, changes=found.changes()), explain=explain)
    if not quiet:
        say_stored(found, store)
