"""Margins for scores that a study does not measure."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.errors import OptionError
from llmquant.plugins.registry import Chosen
from llmquant.study.margins import DEFAULT, Margins, without_score


def unknown_margins(margins: Margins, evaluators: Sequence[Chosen]) -> list[OptionError]:
    """Return errors for margins whose score no evaluator has, as far as that is known before the study runs."""
    if not margins.keys() - DEFAULT.keys():
        return []
    asked = [each.ask("metrics") for each in evaluators if not each.plugin.spec.hardware]
    return [] if None in asked else without_score(margins, {str(name) for names in asked for name in names})
