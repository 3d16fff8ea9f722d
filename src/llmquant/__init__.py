"""Which quantization should I ship, for this model, on this hardware, and is the loss real?

Public names are imported on first use, so ``import llmquant`` loads neither torch nor numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llmquant import errors as errors
    from llmquant import executors as executors
    from llmquant.api import Submitted as Submitted
    from llmquant.api import Ui as Ui
    from llmquant.api import attach as attach
    from llmquant.api import compare as compare
    from llmquant.api import register as register
    from llmquant.api import run_experiment as run_experiment
    from llmquant.api import run_study as run_study
    from llmquant.api import submit_study as submit_study
    from llmquant.evaluators.mteb.as_mteb import MtebModel as MtebModel
    from llmquant.evaluators.mteb.as_mteb import as_mteb as as_mteb
    from llmquant.importers.studies import import_results as import_results
    from llmquant.loading.replacing import ReplacesLinear as ReplacesLinear
    from llmquant.loading.replacing import replace_linear as replace_linear
    from llmquant.models.headers import TensorInfo as TensorInfo
    from llmquant.models.info import ModelInfo as ModelInfo
    from llmquant.planning.resolve import Planned as Planned
    from llmquant.plugins.context import Context as Context
    from llmquant.plugins.context import LoadKwargs as LoadKwargs
    from llmquant.plugins.embedder import Embedder as Embedder
    from llmquant.plugins.embedder import EmbedderOptions as EmbedderOptions
    from llmquant.plugins.embedder import OpenEmbedder as OpenEmbedder
    from llmquant.plugins.embedder import Prepared as Prepared
    from llmquant.plugins.evaluator import Cost as Cost
    from llmquant.plugins.evaluator import Evaluator as Evaluator
    from llmquant.plugins.evaluator import EvaluatorOptions as EvaluatorOptions
    from llmquant.plugins.evaluator import LoadedModel as LoadedModel
    from llmquant.plugins.executor import Executor as Executor
    from llmquant.plugins.executor import Offer as Offer
    from llmquant.plugins.quantizer import AppliedQuantization as AppliedQuantization
    from llmquant.plugins.quantizer import Quantizer as Quantizer
    from llmquant.plugins.quantizer import QuantizerOptions as QuantizerOptions
    from llmquant.plugins.quantizer import SingleFile as SingleFile
    from llmquant.plugins.registry import registry as registry
    from llmquant.plugins.spec import PluginSpec as PluginSpec
    from llmquant.plugins.spec import RunEvent as RunEvent
    from llmquant.plugins.spec import hookimpl as hookimpl
    from llmquant.quantizers.plain_weights import plain_bytes as plain_bytes
    from llmquant.results.changes import Change as Change
    from llmquant.results.changes import DocumentChange as DocumentChange
    from llmquant.results.comparison import Comparison as Comparison
    from llmquant.results.pareto import ParetoPoint as ParetoPoint
    from llmquant.results.recommend import Limits as Limits
    from llmquant.results.recommend import Recommendation as Recommendation
    from llmquant.results.row import Row as Row
    from llmquant.retrieval.index import Engine as Engine
    from llmquant.retrieval.items import Item as Item
    from llmquant.retrieval.loaded import LoadedEmbedder as LoadedEmbedder
    from llmquant.retrieval.vectors import Embeddings as Embeddings
    from llmquant.running.one_model import evaluate as evaluate
    from llmquant.running.one_model import load as load
    from llmquant.running.one_model import load_embedder as load_embedder
    from llmquant.running.one_model import quantize as quantize
    from llmquant.storage.store import Store as Store
    from llmquant.study.call import Call as Call
    from llmquant.study.call import Json as Json
    from llmquant.study.embedding import EmbedderInfo as EmbedderInfo
    from llmquant.study.embedding import Role as Role
    from llmquant.study.experiment import Digest as Digest
    from llmquant.study.experiment import Documents as Documents
    from llmquant.study.experiment import Experiment as Experiment
    from llmquant.study.experiment import InputFile as InputFile
    from llmquant.study.experiment import InputFolder as InputFolder
    from llmquant.study.experiment import ModelRequest as ModelRequest
    from llmquant.study.experiment import ModelUse as ModelUse
    from llmquant.study.experiment import RunId as RunId
    from llmquant.study.experiment import VectorForm as VectorForm
    from llmquant.study.experiment import VectorGrid as VectorGrid
    from llmquant.study.job import Device as Device
    from llmquant.study.job import Job as Job
    from llmquant.study.run import Measurement as Measurement
    from llmquant.study.run import Result as Result
    from llmquant.study.run import Run as Run
    from llmquant.study.run import Sample as Sample
    from llmquant.study.study import Model as Model
    from llmquant.study.study import Plugin as Plugin
    from llmquant.study.study import Study as Study

__version__ = "0.1.0"

_HOMES = {
    "api": "Submitted Ui attach compare register run_experiment run_study submit_study",
    "evaluators.mteb.as_mteb": "MtebModel as_mteb",
    "importers.studies": "import_results",
    "loading.replacing": "ReplacesLinear replace_linear",
    "models.headers": "TensorInfo",
    "models.info": "ModelInfo",
    "planning.resolve": "Planned",
    "plugins.context": "Context LoadKwargs",
    "plugins.embedder": "Embedder EmbedderOptions OpenEmbedder Prepared",
    "plugins.evaluator": "Cost Evaluator EvaluatorOptions LoadedModel",
    "plugins.executor": "Executor Offer",
    "plugins.quantizer": "AppliedQuantization Quantizer QuantizerOptions SingleFile",
    "plugins.registry": "registry",
    "plugins.spec": "PluginSpec RunEvent hookimpl",
    "quantizers.plain_weights": "plain_bytes",
    "results.changes": "Change DocumentChange",
    "results.comparison": "Comparison",
    "results.pareto": "ParetoPoint",
    "results.recommend": "Limits Recommendation",
    "results.row": "Row",
    "retrieval.index": "Engine",
    "retrieval.items": "Item",
    "retrieval.loaded": "LoadedEmbedder",
    "retrieval.vectors": "Embeddings",
    "running.one_model": "evaluate load load_embedder quantize",
    "storage.store": "Store",
    "study.call": "Call Json",
    "study.embedding": "EmbedderInfo Role",
    "study.experiment": "Digest Documents Experiment InputFile InputFolder ModelRequest ModelUse RunId VectorForm "
    "VectorGrid",
    "study.job": "Device Job",
    "study.run": "Measurement Result Run Sample",
    "study.study": "Model Plugin Study",
}
_HOME = {name: f"llmquant.{module}" for module, names in _HOMES.items() for name in names.split()}

__all__ = [*_HOME, "errors", "executors"]  # noqa: PLE0604 - the names are strings from one table


def __getattr__(name: str) -> Any:  # Any: public names are of every kind
    if name in ("errors", "executors"):
        return importlib.import_module(f"llmquant.{name}")
    if name not in _HOME:
        raise AttributeError(f"module 'llmquant' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(["__version__", *__all__])
