"""A command's help, and the spelling of its options."""

from __future__ import annotations

import contextlib
import math
import re
from typing import Any

import typer
from typer.core import TyperCommand


class Command(TyperCommand):
    """Shows arguments as ``MODEL...``, where typer writes ``{MODEL}...`` and ``MODEL <list[str]>``."""

    def collect_usage_pieces(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]  # click's
        """List the words of the usage line."""
        return [piece.translate({ord("{"): None, ord("}"): None}) for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: typer.Context, formatter: Any) -> None:  # type: ignore[override]  # click's
        """List arguments and options, without Python's types."""
        for kind in ("argument", "option"):
            params = [param for param in self.get_params(ctx) if param.param_type_name == kind]
            records = filter(None, (param.get_help_record(ctx) for param in params))
            if rows := [(re.sub(r" <.*>$", "", name), text) for name, text in records]:
                with formatter.section(f"{kind.capitalize()}s"):
                    formatter.write_dl(rows)


class StudyCommand(Command):
    """Takes ``--tasks`` for ``--task`` and ``--model MODEL`` for ``MODEL``, as other programs write them."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]  # click's
        """Replace the other spellings, which ``--help`` does not list.

        Raises:
            OptionError: for an option of other programs that is written in another way here.
        """
        from llmquant.errors import OptionError

        own = {name for param in self.params for name in param.opts}
        for name in (each.partition("=")[0] for each in args):
            if name in _ELSEWHERE and name not in own:
                raise OptionError(f"there is no option {name}", hint=_ELSEWHERE[name])
        known = [re.sub(_PLURAL, r"--\1", each) for each in args if each not in ("-m", "--model", "--models")]
        return super().parse_args(ctx, [re.sub(r"^--models?=", "", each) for each in known])


_PLURAL = r"^--(task|quantizer|evaluator)s(?==|$)"
# Options of other programs, and how the same is written here.
_ELSEWHERE = {
    "--batch-size": 'Write it in the evaluator, for example -e "lm_eval(coqa, batch_size=8)".',
    "--device": 'Write --on "local(device=cpu)".',
    "--num-fewshot": 'Write it in the evaluator, for example -e "lm_eval(gsm8k, num_fewshot=5)".',
    "--output": "Write --store FOLDER; `llmquant report` writes files.",
    "-o": "Write --store FOLDER; `llmquant report` writes files.",
}


def number(name: str, kind: type[int | float], metavar: str, text: str) -> Any:  # Any: typer's declaration
    """Declare an option that takes a number.

    Args:
        text: the option's help.
    """

    def read(given: Any) -> int | float:  # Any: a text, or the default
        from llmquant.errors import OptionError

        with contextlib.suppress(ValueError):
            value = kind(given)
            if abs(value) < math.inf:
                return value
        wanted = "a whole number" if kind is int else f"a number of {metavar.lower()}"
        raise OptionError(f"{name} is {given!r}", hint=f"Give {wanted}.")

    return typer.Option(parser=read, metavar=metavar, help=text)
