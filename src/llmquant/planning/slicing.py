"""Which evaluators of a study run in slices of their documents until their verdicts are sure, and which run whole."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.errors import OptionError
from llmquant.plugins.registry import Chosen
from llmquant.study.experiment import Documents
from llmquant.study.slices import slices
from llmquant.study.study import Study


def documents_of(study: Study, evaluator: Chosen) -> list[Documents | None]:
    """Return the documents of each of an evaluator's experiments on one variant."""
    if not evaluator.plugin.spec.documents:
        return [None]
    if study.until_sure and not _why_whole(evaluator):
        return [Documents(slice=each) for each in slices(study.limit)]
    return [Documents(study.limit)]


def runs_whole(study: Study, evaluators: Sequence[Chosen]) -> list[str]:
    """Note which scores are measured on all documents although the study stops when its verdicts are sure.

    Raises:
        OptionError: if no evaluator can stop.
    """
    if not study.until_sure:
        return []
    reasons = {each.use.label: _why_whole(each) for each in evaluators if not each.plugin.spec.hardware}
    if evaluators and all(reasons.values()):
        found = "; ".join(f"{label}: {reason}" for label, reason in reasons.items()) or "all measure hardware"
        raise OptionError(
            f"until_sure needs an evaluator that scores documents in slices, found none ({found})",
            hint="Leave out until_sure, or add an lm_eval task, for example lm_eval(coqa).",
        )
    return [f"{label} runs whole, not until sure: {reason}" for label, reason in reasons.items() if reason]


def _why_whole(evaluator: Chosen) -> str:
    if not evaluator.plugin.spec.documents:
        return "it has no documents"
    if evaluator.plugin.spec.reference:
        return "it compares with one file of the baseline"
    reason = evaluator.ask("whole")
    return "it does not support slices of documents" if reason is None else str(reason)
