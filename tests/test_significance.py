"""Tests of differences, families of tests, and sample sizes: published values, duality with intervals, inverses."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from llmquant import stats

split = st.tuples(st.integers(0, 60), st.integers(0, 60))
p_values = st.lists(st.none() | st.floats(0, 1), max_size=30)


@given(split)
@settings(deadline=None)
def test_exact_mcnemar_is_the_binomial_test(counts):
    """The exact p-value is scipy's binomial test of the changed documents."""
    higher, lower = counts
    known = scipy_stats.binomtest(higher, higher + lower).pvalue if higher + lower else 1.0
    assert stats.mcnemar_exact(higher, lower) == pytest.approx(known)


@pytest.mark.parametrize(
    ("higher", "lower", "exact", "mid"),
    [
        # Fagerland, Lydersen, Laake: BMC Medical Research Methodology 13:91 (2013), table 6: 0.070 and 0.039 for
        # airway hyper-responsiveness; 0.053 and 0.035 for complete response.
        (1, 7, 0.070, 0.039),
        (6, 16, 0.053, 0.035),
    ],
)
def test_mcnemar_matches_published_examples(higher, lower, exact, mid):
    """Both p-values are the printed ones, whichever side is the larger."""
    for counts in ((higher, lower), (lower, higher)):
        assert stats.mcnemar_exact(*counts) == pytest.approx(exact, abs=6e-4)
        assert stats.mcnemar_mid_p(*counts) == pytest.approx(mid, abs=6e-4)


def _draw(rng: np.random.Generator, kind: str) -> tuple[np.ndarray, np.ndarray]:
    n, shift = int(rng.integers(6, 200)), float(rng.choice([0.0, 0.1, 0.2]))
    b = rng.random(n)
    if kind == "binary":
        return (rng.random(n) < 0.5 + shift).astype(float), (b < 0.5).astype(float)
    return (np.clip(b + rng.normal(shift / 2, 0.3, n), 0, 1), b) if kind == "unit" else (b + rng.normal(shift, 1, n), b)


@pytest.mark.parametrize("kind", ["binary", "unit", "unbounded", "ordered"])
def test_p_is_below_five_percent_where_the_interval_excludes_zero(kind):
    """The p-value and the 95% interval never contradict each other."""
    rng = np.random.default_rng(0)
    decided = 0
    for _ in range(300):
        found = stats.paired_difference(*_draw(rng, kind), ordered=kind == "ordered")
        if kind == "ordered" and found.p is None:  # a few windows, each like the one before it
            assert (found.low, found.high) == (None, None)
            continue
        assert found.low is not None
        assert found.high is not None
        assert found.p is not None
        excluded = found.low > 0 or found.high < 0
        assert (found.p < 0.05) == excluded
        decided += excluded
    assert 30 < decided < 270


@given(p_values)
@settings(deadline=None)
def test_holm_keeps_order_and_never_lowers(found):
    """Adjusted p-values are at least the plain ones, in their order, and the smallest counts k times."""
    adjusted = stats.holm(found)
    pairs = sorted((p, a) for p, a in zip(found, adjusted, strict=True) if p is not None and a is not None)
    assert [a is None for a in adjusted] == [p is None for p in found]
    assert all(p <= a <= 1 for p, a in pairs)
    assert [a for _, a in pairs] == sorted(a for _, a in pairs)
    assert not pairs or pairs[0][1] == pytest.approx(min(1, len(pairs) * pairs[0][0]))


def test_holm_matches_the_worked_example():
    """0.01, 0.04, 0.03, 0.005 become 0.03, 0.06, 0.06, 0.02, as R's p.adjust and statsmodels' multipletests have it."""
    assert stats.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_sidak_levels_multiply_to_the_level_of_the_family():
    """Ten independent intervals at the Sidak level hold together with the family's confidence; one needs no more."""
    assert stats.sidak_level(10) ** 10 == pytest.approx(0.95)
    assert stats.sidak_level(1, 0.9) == pytest.approx(0.9)


def test_one_point_of_a_discordance_of_five_percent_needs_3925_documents():
    """(1.96 + 0.84)^2 x 0.05 / 0.01^2, the normal formula for paired proportions without a loss."""
    assert stats.documents_needed(0.01, 0.05**0.5) == 3925
    assert stats.documents_needed(0.01, 0.05**0.5, difference=-0.01) is None


@given(st.integers(2, 10**6), st.floats(0.01, 1), st.floats(0.5, 0.99), st.sampled_from([0.0, 1.0, 100.0]))
@settings(deadline=None)
def test_the_reachable_margin_needs_just_the_documents_that_reach_it(documents, sd, power, largest):
    """Planning forwards and backwards agrees."""
    margin = stats.reachable_margin(documents, sd, largest=largest, power=power)
    assert abs((stats.documents_needed(margin, sd, largest=largest, power=power) or 0) - documents) <= 1


def test_answers_that_never_changed_still_need_the_documents_in_which_one_could():
    """Two points need 183 right or wrong answers even if none changes: as many as the interval then needs."""
    needed = stats.documents_needed(0.02, 0.001, largest=1.0)
    assert needed == 183
    equal = np.full(needed + 10, 0.5)
    assert stats.paired_difference(equal, equal).low > -0.02
    assert stats.paired_difference(equal[:150], equal[:150]).low < -0.02


def test_a_study_of_the_planned_size_decides_as_often_as_planned():
    """With 10% discordance and a margin of 2 points, the interval excludes the loss in 80% of studies."""
    rng = np.random.default_rng(5)
    n = stats.documents_needed(0.02, 0.1**0.5)
    assert n is not None
    splits, times = np.unique(rng.multinomial(n, [0.05, 0.05, 0.9], size=2000), axis=0, return_counts=True)
    shown = [stats.score_interval(int(higher), int(lower), n)[0] > -0.02 for higher, lower, _ in splits]
    # 2,000 studies estimate 80% to within 0.9 points.
    assert np.average(shown, weights=times) == pytest.approx(0.8, abs=0.03)


def test_a_pilot_without_any_change_still_has_a_spread():
    """Fifty equal documents are planned for as if one had changed, not as if none ever would."""
    scores = [0.0, 1.0] * 25
    assert stats.document_sd(stats.paired_difference(scores, scores)) == pytest.approx(50**-0.5)
    assert stats.document_sd(stats.paired_difference([2.0] * 9, [2.0] * 9)) is None
