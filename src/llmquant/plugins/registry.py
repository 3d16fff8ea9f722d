"""Looks up plugins by name, chooses their options and constructs them."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
import logging
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any, get_args

import pluggy
from packaging.requirements import Requirement

from llmquant.errors import (
    AmbiguousNameError,
    MissingDependencyError,
    PluginError,
    UnknownNameError,
    foreign,
    nearest,
)
from llmquant.machine.packages import installed_version
from llmquant.machine.streams import stdout_to_stderr
from llmquant.plugins import options as option_types
from llmquant.plugins.discovery import GROUP, Broken, Plugin, checked_spec, load_entry_points
from llmquant.plugins.embedder import EmbedderOptions
from llmquant.plugins.evaluator import Cost, EvaluatorOptions
from llmquant.plugins.quantizer import QuantizerOptions, SingleFile
from llmquant.plugins.sources import check_target, plugin_version
from llmquant.plugins.spec import PluginSpec, RunEvent
from llmquant.study.call import Call, Json
from llmquant.study.embedding import EmbedderInfo
from llmquant.study.experiment import PluginKind, PluginUse
from llmquant.study.reading import LARGEST, brief

DISABLE = "LLMQUANT_DISABLE_PLUGINS"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """A plugin with its options, looked up for a name in a study.

    Attributes:
        options: the plugin's light half.
        use: plugin and options as pure data, for an experiment.
    """

    plugin: Plugin
    options: Any  # Any: plugins bring their own dataclasses
    use: PluginUse

    def ask(self, method: str, *args: Any) -> Any:  # Any: each method's own, see the contracts beside this module
        """Call a method that the options may define; ``None`` where they do not.

        Raises:
            PluginError: if it raises anything but an error of llmquant's, or returns a wrong type.
        """
        function = getattr(self.options, method, None)
        if function is None:
            return None
        with foreign(f"{self.plugin.full_name}: {method} failed"):
            found = function(*args)
        kind, words = _ANSWERS.get(method, (object, ""))
        own = {"parts": found, "for_dims": [found]}.get(method, [])
        if found is not None and not (_is_answer(found, kind) and all(type(o) is type(self.options) for o in own)):
            raise PluginError(
                f"{self.plugin.full_name}: {method} returned {brief(found)} ({type(found).__name__})",
                hint=f"It must return {words}.",
            )
        return found

    @property
    def row_independent(self) -> bool:
        """Whether a quantizer's results are independent of the other items in a batch."""
        return self.plugin.spec.row_independent or bool(self.ask("row_independent"))


class Registry:
    """All available plugins.

    Attributes:
        plugins: plugins in the order of discovery.
        broken: packages that could not be loaded; other packages still work.
    """

    def __init__(self, plugins: list[Plugin], broken: list[Broken], hooks: pluggy.PluginManager) -> None:
        self.plugins = plugins
        self.broken = broken
        self._hooks = hooks

    def names(self, kind: PluginKind) -> list[str]:
        """List the short names of plugins and presets."""
        return [name for plugin in self.plugins if plugin.spec.kind == kind for name in plugin.names]

    def ready(self, kind: PluginKind) -> list[tuple[Plugin, str]]:
        """List the names that need no options: presets, and plugins without presets and required options.

        Returns:
            Each plugin with its name, as `shown` writes it.
        """
        found: list[tuple[Plugin, str]] = []
        for plugin in self.plugins:
            if plugin.spec.kind == kind and plugin.spec.presets:
                found += [(plugin, self.shown(plugin, name)) for name in plugin.spec.presets]
            elif plugin.spec.kind == kind and not self._needs_options(plugin):
                found.append((plugin, self.shown(plugin, plugin.spec.name)))
        return found

    def packages(self) -> dict[str, str]:
        """Map every package that a plugin needs to the line that installs it."""
        found: dict[str, str] = {}
        for plugin in self.plugins:
            for text in plugin.spec.requires:
                found.setdefault(Requirement(text).name, plugin.spec.install or f'pip install "{text}"')
        return found

    def offers(self, kind: PluginKind, name: str) -> bool:
        """Return whether a short name, full name or preset is known."""
        return bool(self._offering(kind, name))

    def shown(self, plugin: Plugin, name: str) -> str:
        """Write a plugin's name or preset; with its package if several packages offer the name."""
        return f"{plugin.package}/{name}" if len(self._offering(plugin.spec.kind, name)) > 1 else name

    def find(self, kind: PluginKind, name: str) -> tuple[Plugin, dict[str, Json]]:
        """Find a plugin by short or full name or by preset.

        Returns:
            The plugin, and the preset's options (empty for a plugin's own name).

        Raises:
            UnknownNameError: if the name is unknown; the hint has the nearest names and the broken packages.
            AmbiguousNameError: if several packages offer the short name.
        """
        short = name.rpartition("/")[2]
        found = self._offering(kind, name)
        if not found:
            raise UnknownNameError(f"no {kind} is called {name!r}", hint=self._hint(kind, name))
        if len(found) > 1:
            raise AmbiguousNameError(
                f"{kind} {name!r} is offered by {' and '.join(p.package for p in found)}",
                hint=f"Write {' or '.join(f'{p.package}/{short}' for p in found)}, or set {DISABLE}.",
            )
        return found[0], dict(found[0].spec.presets.get(short, {}))

    def choose(self, kind: PluginKind, call: Call) -> Chosen:
        """Look a call up and build its options.

        Raises:
            RequestError: for an unknown name or option, or a wrong value.
        """
        plugin, preset = self.find(kind, call.name)
        options = option_types.build(self.options_class(plugin), call, preset)
        shown = replace(call, name=self.shown(plugin, call.name.rpartition("/")[2]))
        return self.chosen(plugin, options, label=option_types.label(shown, options))

    def chosen(self, plugin: Plugin, options: Any, *, label: str) -> Chosen:  # Any: see Chosen
        """Combine a plugin with existing options."""
        dumped = option_types.dump(options)
        return Chosen(plugin, options, PluginUse(plugin.full_name, plugin_version(plugin), dumped, label))

    def restore(self, kind: PluginKind, use: PluginUse) -> Chosen:
        """Rebuild the result of `choose` on a worker.

        Raises:
            RequestError: if the plugin is not installed here.
            PluginError: if the plugin has another version here.
        """
        plugin, _ = self.find(kind, use.plugin)
        version = plugin_version(plugin)
        if version != use.version:
            raise PluginError(
                f"{use.plugin} has version {version} here, and the experiment was planned with {use.version}",
                hint="Run the command again to plan the experiment with the installed version.",
            )
        return Chosen(plugin, option_types.restore(self.options_class(plugin), use.options), use)

    def options_class(self, plugin: Plugin) -> type[Any]:  # Any: plugins bring their own dataclasses
        """Import a plugin's light half.

        Raises:
            PluginError: if it cannot be imported, is not a frozen dataclass with supported types and defaults, or has a
                public method that nothing calls.
        """
        cls: type[Any] = _import(plugin, plugin.spec.options)  # Any: see above
        with foreign(f"{plugin.full_name}: {plugin.spec.options} cannot be read"):
            try:
                option_types.check_class(cls)
            except PluginError as error:
                raise PluginError(f"{plugin.full_name}: {error.message}", hint=error.hint) from error
            _check_methods(cls, plugin)
        if plugin.spec.kind == "embedder" and not ("checkpoint" in cls.__dataclass_fields__ and hasattr(cls, "info")):
            raise PluginError(
                f"{plugin.full_name}: {plugin.spec.options} has no field checkpoint or no method info",
                hint="See llmquant.EmbedderOptions.",
            )
        return cls

    def target(self, plugin: Plugin) -> Any:  # Any: a class of a third party
        """Import a plugin's heavy half.

        Raises:
            PluginError: if it cannot be imported.
        """
        return _import(plugin, plugin.spec.target)

    def construct(self, chosen: Chosen) -> Any:  # Any: a Quantizer, Evaluator, Embedder or Executor
        """Import a plugin's heavy half and construct it with its options.

        Raises:
            MissingDependencyError: if a package it needs is not installed.
            PluginError: if its own code fails, or the object lacks a method of its contract.
        """
        missing = self.missing(chosen.plugin)
        if missing:
            raise missing
        methods = _REQUIRED[chosen.plugin.spec.kind]
        with foreign(f"{chosen.plugin.full_name} failed while it was constructed"):
            made = self.target(chosen.plugin)(chosen.options)
            lacks = [method for method in methods if not callable(getattr(made, method, None))]
        if lacks:
            raise PluginError(
                f"{chosen.plugin.full_name}: {chosen.plugin.spec.target} has no method {' and no method '.join(lacks)}",
                hint=f"See llmquant.{chosen.plugin.spec.kind.capitalize()} for the methods.",
            )
        return made

    def missing(self, plugin: Plugin) -> MissingDependencyError | None:
        """Return the error for a missing package of this plugin; ``None`` if none is missing."""
        for text in plugin.spec.requires:
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            version = installed_version(requirement.name)
            if version is not None and requirement.specifier.contains(version, prereleases=True):
                continue
            found = "is not installed" if version is None else f"has version {version}"
            line = plugin.spec.install or f'pip install "{requirement}"'
            return MissingDependencyError(
                f"{plugin.spec.kind} {plugin.spec.name!r} needs {requirement}, which {found}", hint=f"Run: {line}"
            )
        return None

    def register(self, spec: PluginSpec) -> None:
        """Add a plugin from a notebook or script; a registered plugin of the same name is replaced.

        Raises:
            PluginError: if its classes are in ``__main__``, where no worker can import them, or are missing.
        """
        plugin = Plugin(checked_spec(spec), "registered", spec.version)
        for text in (spec.options, spec.target):
            if text.partition(":")[0] == "__main__":
                raise PluginError(
                    f"{text} is in __main__, which a worker process cannot import",
                    hint="Move the class into a module (for example a .py file next to the notebook).",
                )
            check_target(text)
        self.options_class(plugin)
        others = [p for p in self.plugins if p.full_name != plugin.full_name or p.spec.kind != spec.kind]
        self.plugins = [*others, plugin]

    def notify(self, event: RunEvent) -> None:
        """Call every observer; an observer's exception is logged and does not fail the run."""
        hooks = self._hooks.hook
        hook = hooks.llmquant_run_started if event.status == "started" else hooks.llmquant_run_finished
        for implementation in hook.get_hookimpls():
            try:
                implementation.function(**({"event": event} if "event" in implementation.argnames else {}))
            except KeyboardInterrupt:
                raise
            except BaseException:  # a third party's observer must not fail a run, not even with sys.exit
                _log.exception("observer %s failed", implementation.plugin_name)

    def _needs_options(self, plugin: Plugin) -> bool:
        try:
            return bool(option_types.required(self.options_class(plugin)))
        except PluginError:  # reported when the plugin is used
            return False

    def _offering(self, kind: PluginKind, name: str) -> list[Plugin]:
        package, slash, short = name.rpartition("/")
        return [
            plugin
            for plugin in self.plugins
            if plugin.spec.kind == kind and short in plugin.names and (not slash or plugin.package == package)
        ]

    def _hint(self, kind: PluginKind, name: str) -> str:
        """Suggest names for an unknown name."""
        known = [plugin for plugin in self.plugins if plugin.spec.kind == kind]
        full = [f"{plugin.package}/{short}" for plugin in known for short in plugin.names]
        others = [other for other in get_args(PluginKind) if name in self.names(other)]
        if name in _REPLACED:
            hint = _REPLACED[name]
        elif others:
            hint = f"It is an {others[0]}." if others[0][0] in "aeiou" else f"It is a {others[0]}."
        else:
            hint = nearest(name, full if "/" in name else self.names(kind))
        if self.broken:
            hint += f" These could not be loaded: {', '.join(b.package for b in self.broken)} (see: llmquant plugins)."
        return hint


@functools.cache
def registry() -> Registry:
    """Discover all plugins, once per process."""
    disabled = [name for name in os.environ.get(DISABLE, "").split(",") if name.strip()]
    return discover(importlib.metadata.entry_points(group=GROUP), disabled=disabled)


def discover(entry_points: Iterable[importlib.metadata.EntryPoint], *, disabled: Sequence[str] = ()) -> Registry:
    """Load each entry point separately; a failure becomes a `Broken` row."""
    with stdout_to_stderr():
        return Registry(*load_entry_points(entry_points, disabled))


def _import(plugin: Plugin, text: str) -> Any:  # Any: a class of a third party
    module, _, name = text.partition(":")
    with foreign(f"{plugin.full_name}: {text} cannot be imported"), stdout_to_stderr():
        return getattr(importlib.import_module(module), name)


def _check_methods(cls: Any, plugin: Plugin) -> None:  # Any: a third party's class
    """Refuse a public method that nothing calls: ``request`` for ``requests`` would switch a check off unseen."""
    known = {name for name in dir(_LIGHT.get(plugin.spec.kind)) if not name.startswith("_")}
    for name, _ in inspect.getmembers(cls, inspect.isroutine):
        if not name.startswith("_") and name not in {*known, *getattr(cls, "__dataclass_fields__", ())}:
            raise PluginError(
                f"{plugin.full_name}: {plugin.spec.options} has a method {name!r}, which is never called",
                hint=f"{nearest(name, known) if known else ''} The name of a helper begins with '_'.".strip(),
            )


def _is_answer(found: Any, kind: type) -> bool:  # Any: what a third party returned
    if kind is Integral:
        return not isinstance(found, bool) and isinstance(found, Integral) and 0 <= int(found) < LARGEST
    return isinstance(found, kind)


# What llmquant calls of options, by kind of plugin; of an executor's it calls nothing.
_LIGHT = {"quantizer": QuantizerOptions, "evaluator": EvaluatorOptions, "embedder": EmbedderOptions}
_BYTES = (Integral, "a whole number of bytes, or None")
_NOTHING = (type(None), "None; raise an UnsupportedError to refuse")
_TEXT = (str, "a text, or None")
# What methods of options return; `None` stands for nothing.
_ANSWERS: Mapping[str, tuple[type, str]] = {
    "cached_tokens": (Integral, "a whole number of tokens, or None"),
    "check": _NOTHING,
    "check_export": _NOTHING,
    "check_save": _NOTHING,
    "cost": (Cost, "a Cost, or None"),
    "for_dims": (object, "options of the same class, or None"),
    "hub_rows": (Mapping, "a dictionary, or None"),
    "info": (EmbedderInfo, "an EmbedderInfo"),
    "metrics": (Collection, "a list of metrics, or None"),
    "parts": (Sequence, "a list of options of the same class, or None"),
    "row_independent": (bool, "True or False"),
    "served_bytes": _BYTES,
    "serving": _TEXT,
    "single_file": (SingleFile, "a SingleFile, or None"),
    "texts": (Iterable, "a list of texts"),
    "weight_bytes": _BYTES,
    "whole": _TEXT,
}
# The methods that every target must have.
_REQUIRED: Mapping[PluginKind, tuple[str, ...]] = {
    "quantizer": ("load_kwargs", "applied"),
    "evaluator": ("evaluate",),
    "embedder": ("open",),
    "executor": ("check", "submit", "collect", "why_lost", "dollars", "cancel", "leave", "recall", "close"),
}

# Names of well-known packages that no longer work.
_GPTQ = "auto-gptq is archived and does not import today; use gptq_4bit_g128, which GPTQModel runs."
_AWQ = "autoawq is archived; use awq_4bit_g128, which GPTQModel runs."
_REPLACED = {
    **dict.fromkeys(("auto-gptq", "auto_gptq", "autogptq"), _GPTQ),
    **dict.fromkeys(("autoawq", "auto-awq", "auto_awq"), _AWQ),
}
