"""The part of an answer that a task scores: once it is complete, nothing that follows can change a score."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.filters.selection import TakeFirstFilter

# Returns whether the beginning of an answer contains the whole scored part, given the stop strings.
Complete = Callable[[str, Sequence[str]], bool]


def first_line(text: str, stop: Sequence[str]) -> bool:
    r"""Return whether no continuation of `text` changes ``text.strip().split("\n")[0]``.

    A stop string that begins in the first line and ends after it would change that line.
    """
    line, ended, _ = text.lstrip().partition("\n")
    complete = bool(ended) and line == text.strip().partition("\n")[0]
    return complete and not any("\n" in each.lstrip("\n") for each in stop)


# By the digest of the function that scores an answer, because in another release of lm-eval it may read more.
_RULES: Mapping[str, Complete] = {
    # coqa
    "d70edfc16e489801104ee41e19550e3548f7da2946c39b7b1f3963f443b789bc": first_line,
    # coqcat
    "289ec1ac4877435526913d0bbc017d79f03e22cf998ccbe50da5e0211a048bc2": first_line,
}


def rules(tasks: Mapping[str, Any]) -> dict[str, Complete]:  # Any: lm-eval's Task
    """Return the known rules, by the task's name."""
    return {name: rule for name, task in tasks.items() if (rule := _rule(task)) is not None}


def _rule(task: Any) -> Complete | None:  # Any: as above
    score = task.config.process_results
    if not callable(score) or any(each.func is not TakeFirstFilter for part in task._filters for each in part.filters):
        return None
    return _RULES.get(hashlib.sha256(inspect.getsource(score).encode()).hexdigest())
