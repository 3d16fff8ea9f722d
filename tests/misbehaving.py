"""Evaluators that go wrong in every way a worker can, for tests of the scheduler. Imported by worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmquant import Context, LoadedModel, Measurement, PluginSpec, Result, Sample


@dataclass(frozen=True)
class MisbehaveOptions:
    """How to go wrong; `marker` is a file that is written when the evaluator starts."""

    how: Literal["not", "raise", "exit", "kill", "sleep", "sleep_once", "oom", "return_objects"] = "not"
    marker: str = ""
    tag: str = ""


class Unreadable(Exception):
    """An exception whose text cannot be made."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class NoException(BaseException):
    """What ``except Exception`` does not catch."""


_TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class BreakOptions:
    """What is raised, after how many of three tasks."""

    what: Literal["nothing", "unreadable", "base", "exit", "assert", "cycle", "wrong", "kill"] = "nothing"
    after: int = 0


class Break:
    """Yields three tasks of two documents each, unless it breaks off."""

    def __init__(self, options: BreakOptions) -> None:
        self._options = options

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        for number in range(3):
            if number == self._options.after:
                self._fail()
            samples = [Sample(document, "p", {"score": 1.0}) for document in "ab"]
            (ctx.files / f"task{number}.txt").write_text(_TOKEN)
            measured = [Measurement(f"task{number}", "score", 1.0, n=2)]
            yield Result(f"task{number}", measured, samples, {"answer": _TOKEN})
        if self._options.what == "wrong":
            yield Result("task3", [Measurement("task3", "score", "0.5")])

    def _fail(self) -> None:
        what = self._options.what
        if what == "unreadable":
            raise Unreadable
        if what == "base":
            raise NoException("it goes past except Exception")
        if what == "exit":
            sys.exit(3)
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "assert":
            assert not what
        if what == "cycle":
            error = ValueError()
            error.__cause__ = error
            raise error


class Misbehave:
    def __init__(self, options: MisbehaveOptions) -> None:
        self._options = options

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        import torch

        print("about to misbehave with hf_abcdefghijklmnopqrstuvwxyz")
        if self._options.marker:
            with Path(self._options.marker).open("a") as stream:
                stream.write(f"{self._options.how}{self._options.tag}\n")
        how = self._options.how
        if how == "raise":
            raise ValueError("this evaluator raises")
        if how == "exit":
            os._exit(3)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        once = how == "sleep_once" and Path(self._options.marker).read_text().count(how) == 1
        if how == "sleep" or once:
            time.sleep(600)
        if how == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        ctx.progress(1, 1)
        parameters = float(sum(p.numel() for p in subject.module.parameters()))
        details = {"module": subject.module} if how == "return_objects" else {}
        return [Result("misbehave", [Measurement("misbehave", "parameters", parameters)], details=details)]


BREAK = PluginSpec(
    kind="evaluator",
    name="break",
    summary="Breaks off on request.",
    options="misbehaving:BreakOptions",
    target="misbehaving:Break",
)
SPEC = PluginSpec(
    kind="evaluator",
    name="misbehave",
    summary="Goes wrong on request.",
    options="misbehaving:MisbehaveOptions",
    target="misbehaving:Misbehave",
)
