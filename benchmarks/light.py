"""Fakes that make a whole study cost seconds: `kills.py --light` installs this file as ``sitecustomize``.

In a worker torch and the loading of models are fakes, and an evaluator of another package sleeps for milliseconds. In
every process the system's clock is shifted by the seconds in the file ``clock``, which changes between two moments.
"""

from __future__ import annotations

import builtins
import datetime
import importlib.machinery
import os
import random
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(os.environ.get("LLMQUANT_KILLS", "."))
_FAKES = (
    "torch",
    "accelerate",
    "accelerate.utils",
    "transformers",
    "transformers.modeling_utils",
    *(f"llmquant.loading.{name}" for name in ("causal_lm", "memory", "quantized", "row_independence", "small_files")),
    "llmquant.running.guard",
    "llmquant.quantizers.baseline.quantizer",
)


@dataclass(frozen=True)
class Options:
    """A number that tells evaluations apart."""

    number: int = 0


class Evaluator:
    """Yields two tasks with samples drawn from the number."""

    def __init__(self, options: Options) -> None:
        self._number = options.number

    def evaluate(self, subject: Any, ctx: Any) -> Iterator[Any]:  # Any: fakes
        """Sleep, score and write a file."""
        from llmquant import Result, Sample

        for task in ("one", "two"):
            time.sleep(0.02)
            draw = random.Random(f"{self._number} {task}")
            (ctx.files / task).write_text(str(draw.random()))
            scored = [Sample(str(n), "p", {"score": draw.random()}) for n in range(20)]
            yield Result.from_samples(task, scored, "score", higher_is_better=True)


class Anything:
    """An object that has every attribute, can be called, is empty and false."""

    def __getattr__(self, name: str) -> Any:  # Any: another one
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:  # Any: as above
        """Return another one."""
        return Anything()

    def __iter__(self) -> Iterator[Any]:  # Any: as above
        return iter(())

    def __bool__(self) -> bool:
        return False


class _Module(types.ModuleType):
    def __getattr__(self, name: str) -> Any:  # Any: as above
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


def _load(path: object, info: Any, *rest: object) -> Any:  # Any: a LoadedModel
    from llmquant import AppliedQuantization, LoadedModel
    from llmquant.plugins.evaluator import LoadStats

    applied = AppliedQuantization("fake", "float32", 32.0, "float32", {"float32": 1}, 0)
    nothing: Any = None  # Any: there is no module, tokenizer or folder
    return LoadedModel(Anything(), nothing, info, applied, nothing, "cpu", LoadStats(0.1, None))  # type: ignore[arg-type]  # fakes


class _Baseline:
    load_kwargs = applied = staticmethod(lambda *arguments: None)

    def __init__(self, options: object) -> None: ...


def _shift() -> float:
    try:
        return float((FOLDER / "clock").read_text())
    except (OSError, ValueError):  # it is being written
        return 0.0


def install() -> None:
    """Shift this process's clock, and in a worker replace the heavy modules."""
    own_time, own_datetime, own_import = time.time, datetime.datetime, builtins.__import__
    time.time = lambda: own_time() + _shift()

    class Shifted(own_datetime):
        @classmethod
        def now(cls, tz: datetime.tzinfo | None = None) -> Any:  # Any: as the class says
            return own_datetime.now(tz) + datetime.timedelta(seconds=_shift())

    shifted: Any = types.ModuleType("datetime")  # Any: a module with the attributes of another one
    vars(shifted).update({**vars(datetime), "datetime": Shifted})

    def import_shifted(name: str, globals: Any = None, *rest: Any, **named: Any) -> Any:  # noqa: A002 # Any: as the original
        # Compiled modules crash with a class that is not the original one.
        ours = name == "datetime" and str((globals or {}).get("__package__")).startswith("llmquant")
        return shifted if ours else own_import(name, globals, *rest, **named)

    builtins.__import__ = import_shifted
    if "llmquant.running.worker" not in sys.orig_argv:
        return
    for name in _FAKES:
        sys.modules[name] = _Module(name)
        sys.modules[name].__spec__ = importlib.machinery.ModuleSpec(name, None)
    fakes: Any = sys.modules  # Any: they have every attribute
    fakes["torch"].get_num_threads = lambda: 1
    fakes["llmquant.loading.causal_lm"].load_causal_lm = _load
    fakes["llmquant.quantizers.baseline.quantizer"].Baseline = _Baseline


if __name__ == "sitecustomize":
    install()
