"""Which quantization should I ship, for this model, on this hardware, and is the loss real?

Public names are imported on first use, so ``import llmquant`` loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmquant import errors as errors
    from llmquant import executors as executors
    from llmquant.api import attach as attach
    from llmquant.api import compare as compare
    from llmquant.api import register as register
    from llmquant.api import run_experiment as run_experiment
    from llmquant.api import run_study as run_study
    from llmquant.api import submit_study as submit_study
    from llmquant.evaluators.mteb.as_mteb import as_mteb as as_mteb
    from llmquant.models.info import ModelInfo as ModelInfo
    from llmquant.plugins.context import Context as Context
    from llmquant.plugins.embedder import Embedder as Embedder
    from llmquant.plugins.embedder import EmbedderOptions as EmbedderOptions
    from llmquant.plugins.embedder import OpenEmbedder as OpenEmbedder
    from llmquant.plugins.embedder import Prepared as Prepared
    from llmquant.plugins.evaluator import Cost as Cost
    from llmquant.plugins.evaluator import Evaluator as Evaluator
    from llmquant.plugins.evaluator import EvaluatorOptions as EvaluatorOptions
    from llmquant.plugins.evaluator import LoadedModel as LoadedModel
    from llmquant.plugins.executor import Executor as Executor
    from llmquant.plugins.quantizer import AppliedQuantization as AppliedQuantization
    from llmquant.plugins.quantizer import Quantizer as Quantizer
    from llmquant.plugins.quantizer import QuantizerOptions as QuantizerOptions
    from llmquant.plugins.registry import registry as registry
    from llmquant.plugins.spec import PluginSpec as PluginSpec
    from llmquant.plugins.spec import RunEvent as RunEvent
    from llmquant.plugins.spec import hookimpl as hookimpl
    from llmquant.results.comparison import Comparison as Comparison
    from llmquant.retrieval.items import Item as Item
    from llmquant.retrieval.loaded import LoadedEmbedder as LoadedEmbedder
    from llmquant.retrieval.vectors import Embeddings as Embeddings
    from llmquant.running.one_model import load as load
    from llmquant.running.one_model import load_embedder as load_embedder
    from llmquant.running.one_model import quantize as quantize
    from llmquant.storage.store import Store as Store
    from llmquant.study.call import Call as Call
    from llmquant.study.embedding import EmbedderInfo as EmbedderInfo
    from llmquant.study.experiment import Experiment as Experiment
    from llmquant.study.experiment import InputFile as InputFile
    from llmquant.study.experiment import InputFolder as InputFolder
    from llmquant.study.experiment import ModelRequest as ModelRequest
    from llmquant.study.experiment import VectorForm as VectorForm
    from llmquant.study.experiment import VectorGrid as VectorGrid
    from llmquant.study.run import Measurement as Measurement
    from llmquant.study.run import Result as Result
    from llmquant.study.run import Run as Run
    from llmquant.study.run import Sample as Sample
    from llmquant.study.study import Study as Study

__version__ = "0.1.0"

_HOMES = {
    "llmquant.study.call": ("Call",),
    "llmquant.api": ("attach", "compare", "register", "run_experiment", "run_study", "submit_study"),
    "llmquant.evaluators.mteb.as_mteb": ("as_mteb",),
    "llmquant.study.embedding": ("EmbedderInfo",),
    "llmquant.study.experiment": ("Experiment", "InputFile", "InputFolder", "ModelRequest", "VectorForm", "VectorGrid"),
    "llmquant.models.info": ("ModelInfo",),
    "llmquant.running.one_model": ("load", "load_embedder", "quantize"),
    "llmquant.plugins.registry": ("registry",),
    "llmquant.plugins.spec": ("PluginSpec", "RunEvent", "hookimpl"),
    "llmquant.plugins.context": ("Context",),
    "llmquant.plugins.embedder": (
        "Embedder",
        "EmbedderOptions",
        "OpenEmbedder",
        "Prepared",
    ),
    "llmquant.plugins.evaluator": (
        "Cost",
        "Evaluator",
        "EvaluatorOptions",
        "LoadedModel",
    ),
    "llmquant.plugins.executor": ("Executor",),
    "llmquant.plugins.quantizer": (
        "AppliedQuantization",
        "Quantizer",
        "QuantizerOptions",
    ),
    "llmquant.retrieval.items": ("Item",),
    "llmquant.retrieval.loaded": ("LoadedEmbedder",),
    "llmquant.retrieval.vectors": ("Embeddings",),
    "llmquant.study.run": ("Measurement", "Result", "Run", "Sample"),
    "llmquant.storage.store": ("Store",),
    "llmquant.study.study": ("Study",),
    "llmquant.results.comparison": ("Comparison",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "errors", "executors"]  # noqa: PLE0604 - the names are strings from one table


def __getattr__(name: str) -> Any:  # Any: public names are of every kind
    if name in ("errors", "executors"):
        return importlib.import_module(f"llmquant.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'llmquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
