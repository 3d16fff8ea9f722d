"""The declarations of a plugin package: specs, returned by one pluggy hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pluggy

from llmquant.study.call import Json
from llmquant.study.experiment import PluginKind

hookspec = pluggy.HookspecMarker("llmquant")
hookimpl = pluggy.HookimplMarker("llmquant")


@dataclass(frozen=True)
class PluginSpec:
    """One plugin, described by strings, so that listing it imports nothing heavy.

    Attributes:
        kind: ``quantizer``, ``evaluator``, ``embedder`` or ``executor``.
        name: short and unique in its package; letters, digits, ``_``, ``-`` and ``.``.
        summary: one sentence for ``llmquant plugins``.
        options: ``module:Class`` of the light half, a frozen dataclass that checks itself.
        target: ``module:Class`` of the heavy half, imported on the worker and constructed with the options.
        presets: names for sets of options; they share one namespace with the plugins of this kind.
        accepts: kinds of model: ``causal_lm``, ``embedder``; empty for embedders and executors.
        checkpoints: for an embedder, Hub ids that select the embedder, for example ``vidore/colqwen2.5-*``.
        requires: distributions needed by the heavy half, as requirement strings.
        install: the command that installs these distributions.
        version: version of the plugin, raised when results change.
        hardware: whether results depend on the machine.
        reference: whether the evaluator needs the file from its run on the baseline.
        vectors: whether an evaluator of embedders depends on stored vectors, so that it runs per vector form.
        documents: whether the study's ``limit`` applies, so that it is part of the identity.
        checkpoint: ``prepare`` writes a quantized checkpoint. It runs once in a separate process, with seed 0; the
            checkpoint is cached and used by studies of every seed.
        row_independent: whether a quantizer's results are independent of the other items in a batch. If ``False``, a
            method ``row_independent()`` of the options may return ``True`` for these options.
    """

    kind: PluginKind
    name: str
    summary: str
    options: str
    target: str
    presets: Mapping[str, Mapping[str, Json]] = field(default_factory=dict)
    accepts: tuple[str, ...] = ("causal_lm",)
    checkpoints: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    install: str = ""
    version: str = "1"
    hardware: bool = False
    reference: bool = False
    documents: bool = False
    checkpoint: bool = False
    vectors: bool = False
    row_independent: bool = True


@dataclass(frozen=True)
class RunEvent:
    """The event for observers when a run starts or finishes.

    Attributes:
        status: ``started``, ``completed`` or ``failed``.
        message: message of a failure; empty otherwise.
    """

    study: str
    run_id: str
    model: str
    quantizer: str
    evaluator: str
    status: str
    message: str = ""


class Hooks(Protocol):
    """The hooks a plugin package may implement: functions of these names, decorated with ``@hookimpl``."""

    @hookspec
    def llmquant_register(self) -> Sequence[PluginSpec]:
        """Return the plugins of this package."""
        ...

    @hookspec
    def llmquant_run_started(self, event: RunEvent) -> None:
        """Observe that an experiment started."""

    @hookspec
    def llmquant_run_finished(self, event: RunEvent) -> None:
        """Observe that an experiment finished."""
