"""Functions that lm-eval's tasks import and current transformers no longer has.

transformers 5.20 dropped ``transformers.data.metrics``, whose ``squad_metrics`` the tasks ``coqa``, ``record``,
``scrolls``, ``xquad``, ``norquad`` and those of catalan_bench, galician_bench and spanish_bench import. The functions
that these tasks use follow the official evaluation script of SQuAD 2.0 (Rajpurkar, Jia and Liang, 2018).
"""

from __future__ import annotations

import importlib.util
import re
import string
import sys
from collections import Counter
from types import ModuleType

_PACKAGE = "transformers.data.metrics"
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def provide_squad_metrics() -> None:
    """Put ``transformers.data.metrics.squad_metrics`` into ``sys.modules`` if transformers does not have it."""
    import transformers.data  # noqa: F401 - find_spec looks into it

    if _PACKAGE in sys.modules or importlib.util.find_spec(_PACKAGE) is not None:
        return
    metrics, squad = ModuleType(_PACKAGE), ModuleType(f"{_PACKAGE}.squad_metrics")
    for function in (normalize_answer, get_tokens, compute_exact, compute_f1):
        setattr(squad, function.__name__, function)
    metrics.__path__ = []  # makes the module a package, so that its submodules can be imported
    setattr(metrics, "squad_metrics", squad)  # noqa: B010 - mypy does not know this attribute
    sys.modules.update({metrics.__name__: metrics, squad.__name__: squad})


def normalize_answer(s: str) -> str:
    """Drop case, punctuation, articles and extra space, in this order."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", s.lower().translate(_PUNCTUATION)).split())


def get_tokens(s: str) -> list[str]:
    """Split a normalized answer into words."""
    return normalize_answer(s).split() if s else []


def compute_exact(a_gold: str, a_pred: str) -> int:
    """Return 1 if the normalized answers are equal, else 0."""
    return int(normalize_answer(a_gold) == normalize_answer(a_pred))


def compute_f1(a_gold: str, a_pred: str) -> float:
    """Return the harmonic mean of the words' precision and recall; two answers without words agree."""
    gold, found = get_tokens(a_gold), get_tokens(a_pred)
    if not gold or not found:
        return int(gold == found)
    shared = sum((Counter(gold) & Counter(found)).values())
    if shared == 0:
        return 0
    precision, recall = shared / len(found), shared / len(gold)
    return (2 * precision * recall) / (precision + recall)
