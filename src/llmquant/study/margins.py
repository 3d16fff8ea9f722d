"""The largest acceptable loss per kind of score, as text, as data, and in the units of a difference."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence, Set
from types import MappingProxyType
from typing import TypeAlias

from llmquant.errors import OptionError, nearest

Margins: TypeAlias = Mapping[str, float]
"""By metric, or by `SHARES` and `PERPLEXITIES`, in the units of the metric: 0.02 of a share is 2 points, and 0.02 of a
perplexity is 2% of the baseline's."""

SHARES = "shares"
PERPLEXITIES = "perplexity"
DEFAULT: Margins = MappingProxyType({SHARES: 0.02, PERPLEXITIES: 0.02})

# Scores between 0 and 1 that are usually written in percent; lm-eval appends the name of a filter after a comma.
_SHARE = re.compile(
    r"(.+_)?(f1|em|exact|exact_match|acc|accuracy|pass@\d+|(ndcg|recall|precision|map|mrr|hit_rate)(_at_|@)\d+)"
    r"(_norm|_bytes|_mutual_info|_all)?(,.+| .+)?"
)
_PERPLEXITY = re.compile(r"((word|byte)_)?perplexity")
_TEXT = re.compile(r"(?:([^=]+)=)?(-?[0-9.]+)\s*(%?)")


def is_share(metric: str) -> bool:
    """Return whether a metric is a share of 1 by its name, such as accuracy."""
    return _SHARE.fullmatch(metric) is not None


def points(number: float) -> str:
    """Write a number of points: ``1 point``, ``2.5 points``."""
    return f"{number:g} point{'' if number == 1 else 's'}"


def margin_of(metric: str, margins: Margins) -> float | None:
    """Return the margin for the difference of a metric; for perplexity and nats per token for its logarithm.

    Returns:
        ``None`` if neither the metric nor its kind has a margin.
    """
    if _PERPLEXITY.fullmatch(metric):
        return math.log1p(margins.get(metric, margins[PERPLEXITIES]))
    if metric in margins:
        return margins[metric]
    if metric == "nll_per_token":  # the logarithm of perplexity
        return math.log1p(margins[PERPLEXITIES])
    return margins[SHARES] if is_share(metric) else None


def read_margins(values: Sequence[str | float] | str | float | Mapping[str, float] | None) -> Margins:
    """Read margins as a user writes them.

    Args:
        values: a number of points for shares (``2``), a percentage for perplexity (``perplexity=2%``), a number in the
            metric's own units for any other score (``bleu=0.5``); several in a list; or what this function returned.

    Raises:
        OptionError: if a text is none of these, or a margin is not between 0 and 100.
    """
    if isinstance(values, Mapping):
        given = dict(values)
        for name, margin in given.items():
            hint = f'Write margin="{name}={margin}", or a share of 1 in the table.'
            _check(name, margin, margin, share=name == SHARES or is_share(name), hint=hint)
    else:
        texts = [] if values is None else [values] if isinstance(values, str | float | int) else values
        given = dict(_read(str(text)) for text in texts)
    return {**DEFAULT, **given}


def without_score(margins: Margins, measured: Set[str]) -> list[OptionError]:
    """Return an error for each margin that is for a score other than the measured ones."""
    hint = "Add an evaluator of quality, such as perplexity."
    return [
        OptionError(
            f"margin is for {name!r}, which is not measured", hint=nearest(name, measured) if measured else hint
        )
        for name in sorted(margins.keys() - DEFAULT.keys() - measured)
    ]


def loss_margins(max_loss: float | str | Sequence[float | str], margins: Margins) -> Margins:
    """Return margins with a largest acceptable loss; a plain number is points of shares and percent of perplexity.

    Raises:
        OptionError: as `read_margins`.
    """
    texts = [max_loss] if isinstance(max_loss, str | float | int) else max_loss
    given = dict(_read(str(text)) for text in texts)
    if SHARES in given:
        given = {PERPLEXITIES: given[SHARES]} | given
    return {**margins, **given}


def _read(text: str) -> tuple[str, float]:
    match = _TEXT.fullmatch(text.strip())
    hint = "Give points for shares (2), percent for perplexity (perplexity=2%), or bleu=0.5 for any other score."
    if match is None:
        raise OptionError(f"margin must be a number of points or METRIC=NUMBER, found {text!r}", hint=hint)
    name, digits, percent = (match[1] or SHARES).strip(), match[2], match[3]
    try:
        number = float(digits)
    except ValueError:
        raise OptionError(f"margin must be a number, found {text!r}", hint=hint) from None
    share = name == SHARES or is_share(name)
    relative = _PERPLEXITY.fullmatch(name) is not None
    if percent and not (share or relative):
        raise OptionError(f"a margin in percent is for shares and perplexity, found {text!r}", hint=hint)
    if relative and not percent:
        raise OptionError(f"the margin of a perplexity is in percent, found {text!r}", hint=f"Write {name}={digits}%.")
    margin = number / 100 if share or relative else number
    _check(name, margin, text, share=share)
    return name, margin


def _check(name: str, margin: object, found: object, *, share: bool, hint: str = "") -> None:
    valid = isinstance(margin, int | float) and math.isfinite(margin) and 0 <= margin <= (1 if share else math.inf)
    if not valid:
        least = "0 to 100 points" if share else "0 or more"
        raise OptionError(f"the margin for {name} must be {least}, found {found}", hint=hint)
