"""Paired differences: published examples, slow plain versions, properties, and what the intervals really cover."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from llmquant.stats.means import mean_difference, scaled
from llmquant.stats.paired import MIN_CHANGED, PairedDifference, Student, paired_difference
from llmquant.stats.proportions import adjusted_interval, score_interval
from llmquant.stats.verdicts import judge

BINARY = st.sampled_from([0.0, 1.0])
UNIT = st.sampled_from([0.0, 0.25, 0.4, 0.5, 0.67, 0.8, 1.0])
ANY = st.floats(-100, 100, allow_nan=False).map(lambda x: round(x, 3))


def verdict(difference: PairedDifference) -> str | None:
    """Judge a score that is better if higher, at 2 points."""
    return judge(difference, higher_is_better=True, margin=0.02).verdict


def pairs(scores, *, least: int = 1, most: int = 40):
    return st.lists(st.tuples(scores, scores), min_size=least, max_size=most)


counts = st.integers(1, 60).flatmap(
    lambda n: st.integers(0, n).flatmap(lambda h: st.tuples(st.just(h), st.integers(0, n - h), st.just(n)))
)


# -- the score interval ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("higher", "lower", "n", "low", "high"),
    [
        # Fagerland, Lydersen, Laake: Statistical Analysis of Contingency Tables (2017), chapter 8, with the R package
        # contingencytables: complete response before and after consolidation therapy (Cavo et al., 2012).
        (6, 16, 161, -0.1240, -0.0054),
        # There too: airway hyper-responsiveness before and after stem cell transplantation (Bentur et al., 2009).
        (1, 7, 21, -0.517, -0.026),
    ],
)
def test_score_interval_matches_published_examples(higher, lower, n, low, high):
    """The limits are the printed ones to the digits that were printed."""
    digits = len(str(low).partition(".")[2])
    assert score_interval(higher, lower, n) == pytest.approx((low, high), abs=0.6 * 10**-digits)


@given(counts)
@settings(max_examples=25, deadline=None)
def test_score_interval_ends_where_the_score_statistic_is_critical(count):
    """At both ends the score statistic, its nuisance maximized numerically, is the normal quantile."""
    higher, lower, n = count
    for end in score_interval(higher, lower, n):
        if abs(end) < 0.999:
            assert abs(_plain_score_statistic(higher, lower, n, end)) == pytest.approx(1.959964, abs=2e-3)


def _plain_score_statistic(higher: int, lower: int, n: int, x: float) -> float:
    """Tango's statistic with the restricted maximum likelihood found by search instead of by formula."""

    def loss(q: float) -> float:  # q: share of `lower` pairs; q + x of `higher` ones
        total = 0.0
        for count, share in ((lower, q), (higher, q + x), (n - higher - lower, 1 - 2 * q - x)):
            total -= count * math.log(max(share, 1e-300)) if count else 0.0
        return total

    bounds = (max(0.0, -x), (1 - x) / 2)
    q = float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x)
    candidates = [q, *bounds]  # the search does not reach the ends
    q = min(candidates, key=loss)
    return (higher - lower - n * x) / math.sqrt(n * (2 * q + x * (1 - x)))


@given(counts)
@settings(deadline=None)
def test_score_interval_holds_the_estimate_and_mirrors(count):
    """The estimate is inside, all of it within [-1, 1], and swapping the sides mirrors it."""
    higher, lower, n = count
    low, high = score_interval(higher, lower, n)
    assert -1 <= low <= (higher - lower) / n + 1e-8
    assert (higher - lower) / n - 1e-8 <= high <= 1
    assert score_interval(lower, higher, n) == pytest.approx((-high, -low), abs=1e-7)


# -- means -----------------------------------------------------------------------------------------------------------


@given(pairs(ANY, least=2))
@settings(deadline=None)
def test_difference_and_standard_error_are_the_plain_ones(scores):
    """The value is the mean of the differences, its standard error their sd over the root of n."""
    v, b = np.array(scores).T
    found = paired_difference(v, b)
    assert found.value == pytest.approx(np.mean(v - b), abs=1e-9)
    assert found.stderr == pytest.approx(np.std(v - b, ddof=1) / math.sqrt(len(v)), abs=1e-9)
    assert (found.n, found.higher, found.lower) == (len(v), sum(v > b), sum(v < b))


def test_interval_of_unbounded_scores_is_scipys():
    """Scores outside [0, 1] get the t interval that scipy computes."""
    rng = np.random.default_rng(0)
    v, b = rng.normal(3, 1, 30), rng.normal(2.5, 1, 30)
    found, known = paired_difference(v, b), stats.ttest_rel(v, b).confidence_interval(0.95)
    assert found.method == "t"
    assert (found.low, found.high) == pytest.approx((known.low, known.high))


def test_interval_of_bounded_scores_allows_for_an_unseen_document_and_for_skewness():
    """Scores in [0, 1] get scipy's standard error plus one document of difference 1, and a longer end where skewed."""
    rng = np.random.default_rng(0)
    v, b = rng.random(30), rng.random(30)
    found, q = paired_difference(v, b), stats.t.isf(0.025, 29)
    stderr = math.sqrt(stats.sem(v - b) ** 2 + 1 / 900)
    skewness = stats.skew(v - b)
    low, high = (q + max(0, side * skewness) / math.sqrt(30) * (2 * q * q + 1) / 6 for side in (-1, 1))
    assert abs(skewness) > 0.1
    assert (found.low, found.high) == pytest.approx((found.value - low * stderr, found.value + high * stderr))


def test_scores_that_hardly_change_could_still_hide_broken_documents():
    """Of 100 documents that all gain a little, none was broken; 3.6% of others may be, and lose up to 1."""
    found = paired_difference(np.linspace(0.501, 0.502, 100), np.full(100, 0.5))
    assert found.low == pytest.approx(found.value - (1 - 0.025 ** (1 / 100)))
    assert found.p == pytest.approx(1)


@pytest.mark.parametrize(
    ("higher", "lower", "n", "low", "high"),
    [(1, 7, 21, -0.508359, -0.013380), (6, 16, 161, -0.119499, -0.003201), (0, 8, 200, -0.069797, -0.009411)],
)
def test_adjusted_interval_is_that_of_another_package(higher, lower, n, low, high):
    """Bonett and Price's limits are those of `bonett_price_paired_ci` of evalstats 0.3.3."""
    assert adjusted_interval(higher, lower, n) == pytest.approx((low, high), abs=1e-6)


@given(st.one_of(pairs(BINARY), pairs(UNIT), pairs(ANY, least=6)), st.booleans())
@settings(deadline=None)
def test_a_higher_level_gives_a_wider_interval(scores, ordered):
    """The intervals of 80%, 95% and 99.9% lie inside each other and around the same difference."""
    v, b = np.array(scores).T
    found = [paired_difference(v, b, level=level, ordered=ordered) for level in (0.8, 0.95, 0.999)]
    assert len({(one.value, one.stderr, one.p) for one in found}) == 1
    if found[0].low is not None and found[0].high is not None:
        assert found[2].low <= found[1].low + 1e-9 <= found[0].low + 2e-9
        assert found[0].high <= found[1].high + 1e-9 <= found[2].high + 2e-9


@pytest.mark.parametrize("level", [0, 1, 95, math.nan])
def test_a_level_that_is_no_probability_is_refused(level):
    """95 is not read as 95%."""
    with pytest.raises(ValueError, match="level"):
        paired_difference([1.0, 2.0], [0.0, 0.0], level=level)


# -- windows of a text -----------------------------------------------------------------------------------------------


def _windows(rng, n, autocorrelation):
    d = rng.standard_normal(n)
    for i in range(1, n):
        d[i] = autocorrelation * d[i - 1] + math.sqrt(1 - autocorrelation**2) * d[i]
    return d


def test_order_costs_little_where_neighbours_are_not_alike():
    """For independent windows, the interval that allows for their order is 0 to 15% wider on average."""
    rng = np.random.default_rng(8)
    ratios = []
    for _ in range(200):
        d = rng.standard_normal(50)
        free, ordered = (paired_difference(d, 0 * d, ordered=ordered) for ordered in (False, True))
        ratios.append((ordered.high - ordered.low) / (free.high - free.low))
    assert min(ratios) >= 1
    assert np.mean(ratios) < 1.15


@pytest.mark.parametrize(("n", "autocorrelation"), [(50, 0.0), (50, 0.3), (200, 0.3), (200, 0.5)])
def test_windows_that_are_alike_are_covered(n, autocorrelation):
    """The 95% interval covers in at least 93% of texts, where plain t covers in 85% (0.3) or 75% (0.5)."""
    rng = np.random.default_rng(9)
    ends = [paired_difference(d, 0 * d, ordered=True) for d in (_windows(rng, n, autocorrelation) for _ in range(600))]
    assert np.mean([one.low <= 0 <= one.high for one in ends]) >= 0.93


def test_windows_that_never_forget_have_no_interval():
    """A few of them with a steady drift through the text do not show how much texts vary; many of them do."""
    drift = np.linspace(0, 1, 20)
    found = paired_difference(drift, 0 * drift, ordered=True)
    assert (found.low, found.high, found.p, found.method) == (None, None, None, "")
    drift = np.linspace(0, 1, 100)
    found = paired_difference(drift, 0 * drift, ordered=True)
    assert found.low < 0 < found.high < 20


def test_the_mean_over_tasks_is_the_plain_one():
    """Tasks count the same; for two tasks Satterthwaite's degrees of freedom are Welch's."""
    rng = np.random.default_rng(3)
    first, second = rng.normal(0.5, 1, 12), rng.normal(0.1, 3, 40)
    found = mean_difference([paired_difference(d, np.zeros_like(d)) for d in (first, second)])
    # Welch's test of first against -second is about the sum of the two means.
    known = stats.ttest_ind(first, -second, equal_var=False).confidence_interval(0.95)
    assert found.value == pytest.approx((first.mean() + second.mean()) / 2)
    assert (found.low, found.high) == pytest.approx((known.low / 2, known.high / 2))
    assert found.stderr == pytest.approx(math.sqrt(first.var(ddof=1) / 12 + second.var(ddof=1) / 40) / 2)
    assert (found.n, found.higher + found.lower, found.method) == (52, 52, "t")


def test_a_few_changed_documents_of_several_tasks_decide_nothing():
    """The interval of five changed documents includes zero; seven tasks of one each show a real loss."""
    one = paired_difference([1.0] * 19 + [0.0], [1.0] * 20)
    assert verdict(mean_difference([one] * 5)) == "undecided"
    assert mean_difference([one] * 5).high == 0
    found = judge(mean_difference([one] * 7), higher_is_better=True, margin=0.02)
    assert (found.verdict, found.real) == ("undecided", "loss")


def test_tasks_without_a_change_bound_what_may_change_together():
    """Ten documents each show nothing, and neither do twenty; the bound is near that of the rule of three."""
    ten = paired_difference([1.0] * 10, [1.0] * 10)
    assert verdict(mean_difference([ten, ten])) == "undecided"
    many = mean_difference([ten] * 20)
    assert -many.low == pytest.approx(1 - 0.025 ** (1 / 200))


def test_the_mean_is_no_more_certain_than_one_of_its_tasks_allows():
    """A task of 50 documents without a change leaves half of its own uncertainty in the mean with a precise one."""
    rough = paired_difference([1.0] * 50, [1.0] * 50)
    precise = paired_difference([1.0, 0.0] * 500, [0.0, 1.0] * 10 + [1.0, 0.0] * 490)
    found = mean_difference([rough, precise])
    assert found.low == pytest.approx(rough.low / 2)
    assert found.high == pytest.approx(rough.high / 2)


def test_groups_without_a_change_decide_nothing():
    """No changed answer in six stories is not proof that no answer changes; there is no interval, also in a mean."""
    few = paired_difference([1.0] * 30, [1.0] * 30, groups=[str(place // 5) for place in range(30)])
    many = paired_difference([1.0, 0.0] * 50, [0.0, 1.0] * 50)
    assert verdict(few) == "undecided"
    assert mean_difference([few, many]).low is None


def test_a_mean_errs_no_more_than_its_tasks():
    """A small task whose 4% of broken answers a sample may miss makes no mean over two tasks surer than 95%."""
    rng = np.random.default_rng(5)
    wrong = 0
    for _ in range(400):
        rough = paired_difference(1.0 - (rng.random(50) < 0.04), np.ones(50))
        changes = rng.random((2, 1000)) < 0.02
        precise = paired_difference(0.5 * np.ones(1000) + 0.5 * changes[0] - 0.5 * changes[1], 0.5 * np.ones(1000))
        wrong += mean_difference([rough, precise]).low > -0.02
    assert wrong <= 0.05 * 400


def test_tasks_in_which_all_documents_change_alike_have_no_spread():
    """Where every document of every task moves by the same amount, the interval is that amount."""
    one = paired_difference([2.0] * 8, [1.0] * 8)
    assert (mean_difference([one, one]).low, mean_difference([one, one]).high) == (1.0, 1.0)


def test_windows_are_weighted_by_their_tokens():
    """With weights the difference is that of the ratios of sums: the logarithm of the perplexities' ratio."""
    tokens = np.array([512, 512, 512, 300, 512, 512, 90, 512.0])
    rng = np.random.default_rng(1)
    b = tokens * rng.normal(3, 0.3, 8)
    v = b + tokens * rng.normal(0.2, 0.02, 8)
    found = paired_difference(v, b, weights=tokens)
    assert found.value == pytest.approx(v.sum() / tokens.sum() - b.sum() / tokens.sum())
    # The jackknife is the slow, plain version of a ratio's standard error.
    left_out = np.array([((v - b).sum() - (v - b)[i]) / (tokens.sum() - tokens[i]) for i in range(8)])
    jackknife = math.sqrt(7 / 8 * ((left_out - left_out.mean()) ** 2).sum())
    assert found.stderr == pytest.approx(jackknife, rel=0.15)


def test_documents_of_a_group_count_as_one():
    """Ten copies of every document in a group of their own give no more information than one copy each."""
    rng = np.random.default_rng(2)
    v, b = rng.normal(size=12), rng.normal(size=12)
    once = paired_difference(v, b)
    groups = [str(i) for i in range(12) for _ in range(10)]
    copies = paired_difference(np.repeat(v, 10), np.repeat(b, 10), groups=groups)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))


def test_one_group_for_all_is_one_document():
    """Documents that all share a source say as much as one document: no error and no interval."""
    v, b = np.arange(9.0), np.full(9, 3.0)
    found = paired_difference(v, b, groups=["text"] * 9)
    assert (found.value, found.stderr, found.low, found.high) == (paired_difference(v, b).value, None, None, None)
    assert verdict(found) == "undecided"


def test_documents_without_a_group_stand_alone():
    """No group is not a group: beside grouped documents the others count as one unit each."""
    rng = np.random.default_rng(4)
    v, b = rng.normal(size=20), rng.normal(size=20)
    assert paired_difference(v, b, groups=[""] * 20) == paired_difference(v, b)
    named = ["story"] * 5 + [f"document {i}" for i in range(15)]
    mixed = ["story"] * 5 + [""] * 15
    assert paired_difference(v, b, groups=mixed) == paired_difference(v, b, groups=named)


@given(st.one_of(pairs(BINARY), pairs(UNIT), pairs(ANY)))
@settings(deadline=None)
def test_swapping_variant_and_baseline_mirrors(scores):
    """The baseline minus the variant has the mirrored value and interval."""
    v, b = np.array(scores).T
    one, other = paired_difference(v, b), paired_difference(b, v)
    assert other.value == pytest.approx(-one.value)
    assert (other.low is None) == (one.low is None)
    if one.low is not None and one.high is not None:
        assert (other.low, other.high) == pytest.approx((-one.high, -one.low), abs=1e-7)


@pytest.mark.parametrize("scores", [([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0])])
def test_scores_that_do_not_pair_are_refused(scores):
    """No pair, a missing partner or a score that is no number is an error, not a statistic."""
    with pytest.raises(ValueError, match=r"pair|finite"):
        paired_difference(*scores)


# -- verdicts --------------------------------------------------------------------------------------------------------


def interval(low: float, high: float, n: int = 100) -> PairedDifference:
    """Make a difference with an interval."""
    half = (high - low) / 2
    return PairedDifference(
        (low + high) / 2, half / 1.98, low, high, n, 40, 40, 80, "t", n, 0.5, Student(0.0, 1.0, n - 1.0)
    )


@pytest.mark.parametrize(
    ("low", "high", "said", "real"),
    [
        (-6, -3, "worse", "loss"),
        (1, 4, "better", "gain"),
        (-1, 1, "no worse", ""),
        (-1.5, -0.5, "no worse", "loss"),
        (-4, -1, "undecided", "loss"),
        (-4, 3, "undecided", ""),
        (-2, -1, "undecided", "loss"),  # a margin that the interval touches does not hold
    ],
)
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_the_margin_decides_and_zero_makes_a_difference_real(low, high, said, real, higher_is_better):
    """At a margin of 2, the whole interval must lie on one side of -2; a loss or gain is real if it excludes zero."""
    ends = (low, high) if higher_is_better else (-high, -low)
    found = judge(interval(*ends), higher_is_better=higher_is_better, margin=2)
    assert (found.verdict, found.real) == (said, real)
    assert found.no_worse_than == (low if higher_is_better else -low)
    assert (found.documents_needed is None) == (said != "undecided")


def test_without_a_margin_there_is_no_verdict_but_a_bound():
    """A score without a margin is not judged; its bound and a real loss are known."""
    found = judge(interval(-4, -1), higher_is_better=True, margin=None)
    assert (found.verdict, found.real, found.no_worse_than) == (None, "loss", -4)


def test_the_documents_that_would_decide_do():
    """With the documents needed, an interval around the same estimate excludes the margin."""
    pilot = judge(interval(-6, 8, n=50), higher_is_better=True, margin=2)
    assert pilot.documents_needed is not None
    half = 7 * math.sqrt(50 / pilot.documents_needed)
    assert 1 - half > -2
    assert 1 - half / 0.6 < -2  # and not with many fewer


def test_an_undecided_verdict_needs_twice_as_many_documents_at_least():
    """Also where the standard error alone asks for fewer, as with few windows of a text."""
    found = judge(replace(interval(-4.5, -1.9, n=100), stderr=0.1), higher_is_better=True, margin=2)
    assert (found.verdict, found.documents_needed) == ("undecided", 200)


def test_an_estimate_at_the_margin_needs_very_many_documents():
    """Where the present documents would show half a margin, the plan is for the estimate itself."""
    found = judge(interval(-2.5, -1.6, n=10_000), higher_is_better=True, margin=2)
    assert found.verdict == "undecided"
    assert found.documents_needed > 1_000_000


def test_the_same_weights_twice_are_no_worse():
    """Windows whose likelihoods are equal to the last bit need no interval."""
    nll = np.linspace(100, 200, 20)
    found = paired_difference(nll, nll, weights=np.full(20, 64.0), ordered=True)
    assert judge(found, higher_is_better=False, margin=0.02).verdict == "no worse"


@given(st.one_of(pairs(BINARY, least=6), pairs(UNIT, least=6), pairs(ANY, least=6)), st.booleans())
@settings(deadline=None, max_examples=300)
def test_few_changed_documents_decide_nothing(scores, higher_is_better):
    """Whatever the scores, fewer than six changed documents are never called better or worse."""
    v, b = np.array(scores).T
    found = paired_difference(v, b)
    said = judge(found, higher_is_better=higher_is_better, margin=0.02).verdict
    if found.changed < MIN_CHANGED:
        assert said in ("undecided", "no worse")
        assert found.low is None or found.low <= 0 <= (found.high or 0)
    if said in ("better", "worse"):
        assert found.low is not None
        assert found.high is not None
        assert found.low > 0 or found.high < 0
        assert found.low <= found.value <= found.high


@pytest.mark.parametrize(
    ("shift", "higher_is_better", "said"),
    [(1, True, "better"), (-1, True, "worse"), (1, False, "worse"), (-1, False, "better"), (1, None, "differs")],
)
def test_verdict_knows_the_direction(shift, higher_is_better, said):
    """A clear change is better or worse as the metric's direction says, or only different."""
    base = np.linspace(2, 3, 20)
    assert judge(paired_difference(base + shift, base), higher_is_better=higher_is_better, margin=0.5).verdict == said


def test_equal_scores_still_have_an_interval():
    """No change in 50 right or wrong answers bounds how often others may change: ``z^2 / (n + z^2)``."""
    scores = np.tile([0.0, 1.0], 25)
    found = paired_difference(scores, scores)
    assert found.high == pytest.approx(1.959964**2 / (50 + 1.959964**2))
    assert found.low == -found.high


@pytest.mark.parametrize(("up", "down"), [(8, 5), (14, 11), (5, 2), (3, 0)])
def test_five_points_of_f1_on_fifty_documents_are_undecided(up, down):
    """67.6 against 62.5 on 50 documents, once reported as NF4 beating FP16, stays undecided however it came about."""
    base = np.array([1.0] * 31 + [0.25] + [0.0] * 18)
    variant = base.copy()
    variant[:down] = 0.0
    variant[50 - up : 50] = 1.0
    variant[50 - up] = 0.55  # makes the sums meet
    assert (base.mean(), variant.mean()) == pytest.approx((0.625, 0.676))
    assert verdict(paired_difference(variant, base)) == "undecided"


# -- what the intervals cover ----------------------------------------------------------------------------------------


def _qa(rng: np.random.Generator, n: int) -> np.ndarray:
    """Draw F1 as question answering has it: half right, a third wrong, the rest in between."""
    draw = rng.random(n)
    return np.where(draw < 0.5, 1.0, np.where(draw < 0.8, 0.0, rng.choice([0.25, 0.4, 0.5, 0.67, 0.8], n)))


def _binary(rng, n, up, down):
    draw = rng.random(n)
    d = np.where(draw < up, 1.0, np.where(draw < up + down, -1.0, 0.0))
    b = np.where(d > 0, 0.0, np.where(d < 0, 1.0, (rng.random(n) < 0.6).astype(float)))
    return b + d, b


def _reworded(rng, n, share):
    b = _qa(rng, n)
    return np.where(rng.random(n) < share, _qa(rng, n), b), b


def _broken_few(rng, n):
    draw = rng.random(n)
    d = np.where(draw < 0.03, -0.9, np.where(draw < 0.30, 0.1, 0.0))
    b = np.where(d < 0, 0.95, 0.4)
    return b + d, b


@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: _binary(rng, n, 0.05, 0.05), 0.0),
        (lambda rng, n: _binary(rng, n, 0.15, 0.15), 0.0),
        (lambda rng, n: _binary(rng, n, 0.0, 0.02), -0.02),
        (lambda rng, n: _binary(rng, n, 0.05, 0.25), -0.20),
        (lambda rng, n: _reworded(rng, n, 0.1), 0.0),
        (lambda rng, n: _reworded(rng, n, 0.4), 0.0),
        (_broken_few, 0.0),
    ],
    ids=["5% each way", "15% each way", "2% one way", "25% against 5%", "90% ties", "60% ties", "a few broken"],
)
def test_intervals_cover_what_they_promise(draw, truth):
    """At n = 50 the 95% interval holds the true difference in at least 93% of studies, for every kind of score."""
    rng = np.random.default_rng(11)
    studies = 600
    held = 0
    for _ in range(studies):
        found = paired_difference(*draw(rng, 50))
        held += found.low is None or found.high is None or found.low - 1e-9 <= truth <= found.high + 1e-9
    # 600 studies estimate a coverage of 95% to within 0.9 points.
    assert held / studies >= 0.93


@pytest.mark.parametrize("n", [50, 200])
@pytest.mark.parametrize(
    ("draw", "truth"),
    [
        (lambda rng, n: _binary(rng, n, 0.0, 0.02), -0.02),
        (lambda rng, n: _binary(rng, n, 0.025, 0.075), -0.05),
        (lambda rng, n: _reworded(rng, n, 0.1), 0.0),
        (_broken_few, 0.0),
    ],
    ids=["2% one way", "7.5% against 2.5%", "90% ties", "a few broken"],
)
def test_a_loss_is_rarely_overlooked(draw, truth, n):
    """The lower end is above the true difference in about 2.5% of studies: no false *better*, no false *no worse*."""
    rng = np.random.default_rng(12)
    studies = 1500
    above = sum(paired_difference(*draw(rng, n)).low > truth + 1e-9 for _ in range(studies))
    # 1,500 studies estimate 2.5% to within 0.4 points.
    assert above / studies <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / studies)


def test_the_mean_over_tasks_rarely_overlooks_a_loss():
    """Three tasks of 50 documents with a few broken answers show a false gain in about 2.5% of studies, not in 7%."""
    rng = np.random.default_rng(13)
    studies = 800
    above = 0
    for _ in range(studies):
        found = mean_difference([paired_difference(*_broken_few(rng, 50)) for _ in range(3)])
        above += found.low is not None and found.low > 1e-9
    assert above / studies <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / studies)


@given(st.lists(pairs(UNIT, least=8, most=12), min_size=2, max_size=4), st.sampled_from([100.0, -100.0, 50.0]))
@settings(deadline=None)
def test_a_mean_in_other_units_is_the_mean_in_other_units(tasks, factor):
    """Points or margins, losses or gains: the interval of the mean only changes its scale, and p not at all."""
    found = [paired_difference(*np.array(task).T) for task in tasks]
    before, after = scaled(mean_difference(found), factor), mean_difference([scaled(one, factor) for one in found])
    assert (after.value, after.higher) == (pytest.approx(before.value), before.higher)
    if before.low is not None:
        assert (after.low, after.high, after.p) == pytest.approx((before.low, before.high, before.p))
