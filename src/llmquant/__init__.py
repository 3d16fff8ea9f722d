"""Which quantization should I ship, for this model, on this hardware, and is the loss real?

Public names are imported when they are first used, so that ``import llmquant`` loads neither torch nor numpy.
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
    from llmquant.call import Call as Call
    from llmquant.evaluators.mteb_model import as_mteb as as_mteb
    from llmquant.experiment import Experiment as Experiment
    from llmquant.experiment import InputFile as InputFile
    from llmquant.experiment import InputFolder as InputFolder
    from llmquant.experiment import ModelRequest as ModelRequest
    from llmquant.experiment import VectorForm as VectorForm
    from llmquant.experiment import VectorGrid as VectorGrid
    from llmquant.models import ModelInfo as ModelInfo
    from llmquant.one_model import load as load
    from llmquant.one_model import load_embedder as load_embedder
    from llmquant.one_model import quantize as quantize
    from llmquant.plugins.registry import registry as registry
    from llmquant.plugins.spec import PluginSpec as PluginSpec
    from llmquant.plugins.spec import RunEvent as RunEvent
    from llmquant.plugins.spec import hookimpl as hookimpl
    from llmquant.protocols import AppliedQuantization as AppliedQuantization
    from llmquant.protocols import Context as Context
    from llmquant.protocols import Cost as Cost
    from llmquant.protocols import Embedder as Embedder
    from llmquant.protocols import EmbedderInfo as EmbedderInfo
    from llmquant.protocols import Evaluator as Evaluator
    from llmquant.protocols import Executor as Executor
    from llmquant.protocols import LoadedModel as LoadedModel
    from llmquant.protocols import OpenEmbedder as OpenEmbedder
    from llmquant.protocols import Prepared as Prepared
    from llmquant.protocols import Quantizer as Quantizer
    from llmquant.retrieval.items import Item as Item
    from llmquant.retrieval.loaded import LoadedEmbedder as LoadedEmbedder
    from llmquant.retrieval.vectors import Embeddings as Embeddings
    from llmquant.run import Measurement as Measurement
    from llmquant.run import Result as Result
    from llmquant.run import Run as Run
    from llmquant.run import Sample as Sample
    from llmquant.store import Store as Store
    from llmquant.study import Study as Study
    from llmquant.study_results import Comparison as Comparison

__version__ = "0.1.0"

_HOMES = {
    "llmquant.call": ("Call",),
    "llmquant.api": ("attach", "compare", "register", "run_experiment", "run_study", "submit_study"),
    "llmquant.evaluators.mteb_model": ("as_mteb",),
    "llmquant.experiment": ("Experiment", "InputFile", "InputFolder", "ModelRequest", "VectorForm", "VectorGrid"),
    "llmquant.models": ("ModelInfo",),
    "llmquant.one_model": ("load", "load_embedder", "quantize"),
    "llmquant.plugins.registry": ("registry",),
    "llmquant.plugins.spec": ("PluginSpec", "RunEvent", "hookimpl"),
    "llmquant.protocols": (
        "AppliedQuantization",
        "Context",
        "Cost",
        "Embedder",
        "EmbedderInfo",
        "Evaluator",
        "Executor",
        "LoadedModel",
        "OpenEmbedder",
        "Prepared",
        "Quantizer",
    ),
    "llmquant.retrieval.items": ("Item",),
    "llmquant.retrieval.loaded": ("LoadedEmbedder",),
    "llmquant.retrieval.vectors": ("Embeddings",),
    "llmquant.run": ("Measurement", "Result", "Run", "Sample"),
    "llmquant.store": ("Store",),
    "llmquant.study": ("Study",),
    "llmquant.study_results": ("Comparison",),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [*_HOME, "errors", "executors"]  # noqa: PLE0604 - the names are strings, one table says where they live


def __getattr__(name: str) -> Any:  # Any: public names are of every kind
    if name in ("errors", "executors"):
        return importlib.import_module(f"llmquant.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'llmquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
