"""What llmquant requires of every evaluator, one line per check, and what only this evaluator promises."""

import pytest
from llmquant.testing import checks

from llmquant_repetition.evaluator import repeated
from llmquant_repetition.plugin import llmquant_register

(SPEC,) = llmquant_register()
test_contract = checks(SPEC, "repetition(tokens=16)", refused=["repetition(text=())", "repetition(tokens=2)"])


@pytest.mark.parametrize(("tokens", "share"), [(range(10), 0), ([1] * 10, 6 / 7), ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5)])
def test_the_share_is_that_of_sequences_seen_before(tokens, share):
    """No repetition is 0, one token all the time is nearly 1."""
    assert repeated(list(tokens)) == pytest.approx(share)
