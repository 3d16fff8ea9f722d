"""Confidence sequences: exact at the end, nested, equal to the plain formula, and right often enough at every look."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from llmquant import stats


def _plain_capital(scores: list[float], mean: float, population: int) -> float:
    """Multiply each gambler's profits draw by draw."""
    distances = (0.005, 0.01, 0.02, 0.04, 0.08)
    capitals = [1.0] * len(distances)
    best = 1.0
    seen: list[float] = []
    squares = 0.25
    for score in scores:
        left = population - len(seen)
        mu = (population * mean - sum(seen)) / left
        variance = squares / (len(seen) + 1)
        for place, distance in enumerate(distances):
            bet = min(distance * population / left / variance, 0.75 / mu)
            capitals[place] *= 1 + bet * (score - mu)
        best = max(best, sum(capitals) / len(capitals))
        seen.append(score)
        squares += (score - (0.5 + sum(seen)) / (len(seen) + 1)) ** 2
    return best


def test_the_ends_are_where_the_plain_capital_reaches_the_threshold():
    """Just outside the interval a gambler has once multiplied the stake by 40, just inside none has."""
    scores = list(np.random.default_rng(1).random(60) ** 2)
    low, high = stats.betting_interval(scores, 300)
    mirrored = [1 - score for score in scores]
    assert _plain_capital(scores, low - 2e-6, 300) > 40 > _plain_capital(scores, low + 2e-6, 300)
    assert _plain_capital(mirrored, 1 - high - 2e-6, 300) > 40 > _plain_capital(mirrored, 1 - high + 2e-6, 300)


def test_more_documents_never_widen_the_interval():
    """Each look's interval is inside that of the look before."""
    scores = np.random.default_rng(2).random(400)
    ends = [stats.betting_interval(scores[:n], 400) for n in (1, 10, 50, 100, 200, 399, 400)]
    for (low, high), (lower, higher) in pairwise(ends):
        assert low - 2e-6 <= lower <= higher <= high + 2e-6


def test_a_whole_population_has_an_exact_mean():
    """Nothing is left to guess; one document before the end, its two possible scores are the ends."""
    variant, baseline = [1, 0, 1, 1, 0, 1], [0, 0, 1, 1, 1, 0]
    found = stats.sequential_difference(variant, baseline, 6)
    assert found.value == found.low == found.high == 1 / 6
    assert found.p == 0
    before = stats.sequential_difference(variant[:5], baseline[:5], 6)
    assert (before.low, before.high) == (pytest.approx(-1 / 6), pytest.approx(1 / 6))


@pytest.mark.parametrize("kind", ["right/wrong", "F1"])
def test_intervals_at_every_look_hold_the_mean_in_95_percent(kind):
    """Of 400 random orders, at most 5% and three Monte-Carlo errors ever exclude the true mean on one of the sides."""
    rng = np.random.default_rng(3)
    changed = rng.random(300) < 0.2
    difference = np.where(
        changed, rng.choice([-1.0, 1.0], 300) if kind == "right/wrong" else rng.uniform(-1, 1, 300), 0
    )
    x = (1 + rng.permuted(np.repeat(difference[None], 400, 0), axis=1)[:, :-1]) / 2
    mean = (1 + difference.mean()) / 2
    capital = np.maximum(stats.log_capital(x, mean, 300), stats.log_capital(1 - x, 1 - mean, 300)).max(1)
    missed = (capital >= math.log(40)).mean()
    assert 0 < missed <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 400)


def test_p_is_below_five_percent_where_the_interval_excludes_zero():
    """The p-value and the interval come from the same gamblers."""
    rng = np.random.default_rng(4)
    decided = 0
    for shift in np.linspace(0, 0.3, 40):
        baseline = rng.random(200) < 0.5
        found = stats.sequential_difference(baseline | (rng.random(200) < shift), baseline, 1000)
        excluded = found.low > 0 or found.high < 0
        assert excluded == (found.p < 0.05)
        decided += excluded
    assert 5 < decided < 35


@pytest.mark.parametrize("scores", [[], [0.2, 1.5], [math.nan], [0.5] * 11])
def test_scores_that_cannot_come_from_the_population_are_refused(scores):
    """None, one above 1, one that is not a number, or more than there are."""
    with pytest.raises(ValueError, match="score"):
        stats.betting_interval(scores, 10)


def test_a_mean_over_tasks_is_between_the_ends_of_its_tasks():
    """It is sure where every task is, and exact where every task was scored to the end."""
    rng = np.random.default_rng(5)
    scores = [(rng.random(n) < 0.5, rng.random(n) < 0.5) for n in (150, 80)]
    parts = [stats.sequential_difference(*pair, population=200) for pair in scores]
    mean = stats.mean_difference(parts)
    assert (mean.low, mean.high) == (min(part.low for part in parts), max(part.high for part in parts))
    assert (mean.method, mean.p) == ("betting sequence", None)
    ended = [stats.sequential_difference(*pair, population=pair[0].size) for pair in scores]
    mean = stats.mean_difference(ended)
    assert mean.low == mean.value == mean.high == pytest.approx((ended[0].value + ended[1].value) / 2)
