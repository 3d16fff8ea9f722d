"""What a plugin package declares: specs, behind one pluggy hook."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import pluggy

from llmquant.study.call import Json
from llmquant.study.experiment import PluginKind

hookspec = pluggy.HookspecMarker("llmquant")
hookimpl = pluggy.HookimplMarker("llmquant")

_TUPLES = ("accepts", "checkpoints", "requires")


@dataclass(frozen=True)
class PluginSpec:
    """One plugin, described by strings: nothing heavy is imported to know it.

    Attributes:
        name: short and unique in its package; letters, digits, ``_``, ``-`` and ``.``.
        summary: one sentence for ``llmquant plugins``.
        options: ``module:Class`` of the light half, a frozen dataclass that checks itself.
        target: ``module:Class`` of the heavy half, imported on the worker and constructed with the options.
        presets: names for sets of options; they share one namespace with the plugins of this kind.
        accepts: kinds of model: ``causal_lm``, ``embedder``; nothing for embedders and executors.
        checkpoints: of an embedder, Hub ids that mean it by themselves: ``vidore/colqwen2.5-*``.
        requires: distributions the heavy half needs, as requirement strings.
        install: the line that installs them.
        version: raised when results change.
        hardware: the numbers depend on the machine.
        reference: needs the file that it leaves when it runs on the baseline.
        vectors: of an evaluator of embedders: how vectors are kept matters, so it runs for each of the study's forms.
        documents: uses a limited number of documents, so the study's ``limit`` is part of the identity.
        checkpoint: ``prepare`` writes a quantized checkpoint. It runs in a process of its own, once, with seed 0: the
            checkpoint is kept in the cache and serves studies of every seed.
        row_independent: of a quantizer: what else is in a batch changes no result. Where it is ``False``, a method
            ``row_independent()`` of the options may say that it is true of these options.
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
    """What observers get when a run starts or finishes.

    Attributes:
        status: ``started``, ``completed`` or ``failed``.
        message: of the failure; empty otherwise.
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


def spec_to_json(spec: PluginSpec) -> dict[str, Any]:  # Any: a JSON object
    """Return a spec as a JSON object: how a job record carries plugins that were added with ``register``."""
    presets = {name: dict(options) for name, options in spec.presets.items()}
    lists = {name: list(getattr(spec, name)) for name in _TUPLES}
    return {**vars(spec), "presets": presets, **lists}


def spec_from_json(data: Mapping[str, Any]) -> PluginSpec:  # Any: a JSON object
    """Read what `spec_to_json` wrote."""
    return PluginSpec(**{**data, **{name: tuple(data[name]) for name in _TUPLES}})
