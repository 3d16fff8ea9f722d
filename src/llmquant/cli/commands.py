"""The group of all commands: Ctrl-C prints what it interrupted, where typer exits without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from llmquant.cli.inspect import say


class Commands(TyperGroup):
    """Commands that end with one line and exit code 130 on Ctrl-C."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:  # Any: typer's own copy of click
        """Parse the command line."""
        with _ending_in_one_line():
            return super().make_context(*args, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # Any: as above
        """Take ``help COMMAND`` for ``COMMAND --help``, and ``version`` for ``--version``."""
        if args[:1] == ["help"]:
            args = [*args[1:], "--help"]
        return super().parse_args(ctx, ["--version"] if args == ["version"] else args)

    def invoke(self, ctx: Any) -> Any:  # Any: as above
        """Run the command."""
        with _ending_in_one_line():
            return super().invoke(ctx)


@contextmanager
def _ending_in_one_line() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, typer.Abort) as error:  # Abort: at a question
        say("", str(error) or "interrupted", err=True)
        raise typer.Exit(130) from None
