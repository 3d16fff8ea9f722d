"""The notes of a plan: variants left out, and calibration on evaluated text."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from llmquant.errors import foreign
from llmquant.models.info import ModelInfo
from llmquant.planning.overlap import shared_share
from llmquant.plugins.registry import Chosen
from llmquant.study.experiment import VectorGrid
from llmquant.study.study import Study

BASELINE = "llmquant/baseline"
# Shared stock phrases stay below this share of the evaluation text.
_OVERLAP = 0.005


def applicable(info: ModelInfo, quantizers: Sequence[Chosen], baseline: Chosen | None) -> list[Chosen]:
    """Keep only the baselines of a model without weights, such as ``random``."""
    if info.kind != "none":
        return list(quantizers)
    return [chosen for chosen in quantizers if chosen is baseline or chosen.plugin.full_name == BASELINE]


def left_out(
    study: Study,
    infos: Sequence[ModelInfo],
    quantizers: Sequence[Chosen],
    baseline: Chosen | None,
    parts: Sequence[Chosen],
) -> list[str]:
    """List the explicitly requested variants that a study leaves out."""
    notes = []
    for info in infos if study.quantizers else ():
        kept = applicable(info, quantizers, baseline)
        left = [chosen.use.label for chosen in quantizers if chosen not in kept]
        if left:
            notes.append(f"{info.use().name}: {', '.join(left)} left out, because the model has no weights to quantize")
    if study.vectors != VectorGrid() and not any(part.plugin.spec.vectors for part in parts):
        notes.append(
            "dims, codecs, pools and rescores are ignored, because none of the evaluators depends on them; retrieval "
            "and mteb do"
        )
    return notes


def overlaps(quantizers: Sequence[Chosen], evaluators: Sequence[Chosen]) -> list[str]:
    """Warn about quantizers calibrated on evaluated text, if the texts are local files."""
    notes = []
    for quantizer, evaluator in itertools.product(quantizers, evaluators):
        evaluated, calibrated = evaluator.ask("texts"), quantizer.ask("texts")
        if evaluated is not None and calibrated is not None:
            with foreign(f"the texts of {quantizer.use.label} and {evaluator.use.label} cannot be read"):
                share = shared_share(evaluated, calibrated)
            if share >= _OVERLAP:
                notes.append(
                    f"{quantizer.use.label} is calibrated on {share:.0%} of the text of {evaluator.use.label}: "
                    "its measured loss is too small"
                )
    return notes
