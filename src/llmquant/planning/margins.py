"""Margins for scores that a study does not measure."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.errors import OptionError, nearest
from llmquant.plugins.registry import Chosen
from llmquant.study.margins import DEFAULT, Margins


def unknown_margins(margins: Margins, evaluators: Sequence[Chosen]) -> list[OptionError]:
    """Return errors for margins whose score no evaluator has, as far as that is known before the study runs."""
    wanted = margins.keys() - DEFAULT.keys()
    asked = [each.ask("metrics") for each in evaluators if wanted and not each.plugin.spec.hardware]
    known = {name for names in asked for name in names or ()}
    return [
        OptionError(
            f"margin is for {name!r}, which this study does not measure",
            hint=nearest(name, known) if known else "Add an evaluator of quality, such as perplexity.",
        )
        for name in sorted(wanted - known if None not in asked else ())
    ]
