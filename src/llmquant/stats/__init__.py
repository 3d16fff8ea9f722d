"""Compare two systems on the same documents: differences with intervals, tests, and sample sizes.

It needs numpy and scipy only, and scores from anywhere, one per document:

    from llmquant import stats

    difference = stats.paired_difference(variant=[1, 0, 1, 1], baseline=[1, 1, 1, 1])
    print(difference.value, difference.low, difference.high, difference.p)

`paired_difference` chooses the interval by the kind of the scores, see `llmquant.stats.paired`; `mean_difference`
averages the differences of several tasks. `judge` turns a difference and a margin into a verdict. `mcnemar_exact` and
`mcnemar_mid_p` test right and wrong answers; `holm` and `sidak_level` allow for several comparisons at once.
`document_sd`, `documents_needed` and `reachable_margin` plan a study. `betting_interval` and `sequential_difference`
stay valid however often one looks.
"""

from llmquant.stats.means import mean_difference, mean_stderr, scaled
from llmquant.stats.paired import (
    MIN_CHANGED,
    PairedDifference,
    paired_difference,
)
from llmquant.stats.planning import document_sd, documents_needed, reachable_margin
from llmquant.stats.proportions import adjusted_interval, score_interval
from llmquant.stats.sequences import betting_interval, log_capital, sequential_difference
from llmquant.stats.significance import holm, mcnemar_exact, mcnemar_mid_p, sidak_level
from llmquant.stats.verdicts import Judgement, judge

__all__ = [
    "MIN_CHANGED",
    "Judgement",
    "PairedDifference",
    "adjusted_interval",
    "betting_interval",
    "document_sd",
    "documents_needed",
    "holm",
    "judge",
    "log_capital",
    "mcnemar_exact",
    "mcnemar_mid_p",
    "mean_difference",
    "mean_stderr",
    "paired_difference",
    "reachable_margin",
    "scaled",
    "score_interval",
    "sequential_difference",
    "sidak_level",
]
