"""Data before weights: what a job's experiments read is fetched before its model is loaded, and fails in seconds."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from llmquant.planning.hub_rows import missing_rows, refuse_missing_rows, unreachable
from llmquant.plugins.context import Context
from llmquant.plugins.options import verify_inputs
from llmquant.plugins.registry import Chosen, registry
from llmquant.study.experiment import Documents, Experiment, RunId

_log = logging.getLogger(__name__)


def fetch(experiments: Sequence[Experiment], context: Context) -> dict[RunId, BaseException]:
    """Fetch what experiments of one variant read, and return why that failed, by experiment.

    Raises:
        RequestError: if the calibration text is missing and cannot be fetched, so that no experiment can run.
    """
    if not experiments:
        return {}
    quantizer = registry().restore("quantizer", experiments[0].variant.quantizer)
    evaluators = [registry().restore("evaluator", experiment.evaluator) for experiment in experiments]
    if any(each.ask("hub_rows") for each in (quantizer, *evaluators)) and unreachable():
        _work_offline()
    refuse_missing_rows([quantizer], context.cache)
    failures: dict[RunId, BaseException] = {}
    for experiment, evaluator in zip(experiments, evaluators, strict=True):
        documents = experiment.documents or Documents()
        try:
            _fetch(evaluator, replace(context, seed=experiment.seed, documents=documents))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a task's own code, and what fetches its rows, may raise anything
            _log.exception("the data of %s is not available", evaluator.use.label)
            failures[experiment.run_id] = error
    return failures


def _fetch(evaluator: Chosen, context: Context) -> None:
    if evaluator.ask("hub_rows") and not missing_rows(evaluator):
        return  # `evaluate` reads the local cache
    refuse_missing_rows([evaluator], context.cache)
    verify_inputs(evaluator.options, context.inputs)
    registry().construct(evaluator).fetch(context)


def _work_offline() -> None:
    """Let no client try to reach the Hub, which takes half a minute per data set; rows in the local cache are read."""
    from huggingface_hub import constants

    _log.warning("the Hub cannot be reached; only local files are read")
    os.environ["HF_HUB_OFFLINE"] = "1"  # `datasets` reads it on import, and so do child processes
    constants.HF_HUB_OFFLINE = True
