"""An evaluator that goes wrong on request, for the checks of executors; workers import it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator, EvaluatorOptions, LoadedModel
from llmquant.plugins.spec import PluginSpec
from llmquant.study.run import Measurement, Result

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
BLANKED = "about to misbehave with hf_***"


@dataclass(frozen=True)
class MisbehaveOptions(EvaluatorOptions):
    """How to go wrong, and a tag that tells evaluations apart."""

    how: Literal["not", "raise", "exit", "sleep"] = "not"
    tag: str = ""


class Misbehave(Evaluator[MisbehaveOptions]):
    """Counts the model's parameters, unless it goes wrong first."""

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        """Print a token, go wrong if asked to, and count."""
        print(f"about to misbehave with {TOKEN}", flush=True)  # noqa: T201 - a token in a log
        if self.options.how == "raise":
            raise ValueError("this evaluator raises")
        if self.options.how == "exit":
            os._exit(3)
        if self.options.how == "sleep":
            time.sleep(600)
        parameters = float(sum(p.numel() for p in subject.module.parameters()))
        yield Result("misbehave", [Measurement("misbehave", "parameters", parameters)])


SPEC = PluginSpec(
    kind="evaluator",
    name="checks_misbehave",
    summary="Goes wrong on request.",
    options="llmquant.testing.misbehaving:MisbehaveOptions",
    target="llmquant.testing.misbehaving:Misbehave",
)
