"""Lists the installed plugins for people, and checks whether a plugin can run here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llmquant.errors import UnknownNameError, nearest
from llmquant.plugins.registry import Registry, registry
from llmquant.study.call import Call
from llmquant.study.experiment import PluginKind

_KINDS: tuple[PluginKind, ...] = ("quantizer", "evaluator", "embedder", "executor")


def plugin_rows(known: Registry) -> list[dict[str, Any]]:  # Any: JSON objects
    """List plugins by kind, each with its presets and its missing packages."""
    rows: list[dict[str, Any]] = []
    for kind in _KINDS:
        for plugin in known.plugins:
            if plugin.spec.kind == kind:
                missing = known.missing(plugin)
                rows.append(
                    {
                        "kind": kind,
                        "name": known.shown(plugin, plugin.spec.name),
                        "package": plugin.package,
                        "version": plugin.version,
                        "summary": plugin.spec.summary,
                        "presets": [known.shown(plugin, preset) for preset in plugin.spec.presets],
                        "missing": f"{missing.message}. {missing.hint}" if missing else "",
                    }
                )
    return rows


def check_plugin(name: str) -> Iterator[str]:
    """Look a plugin up, build its options, import its heavy half; yield one line per step.

    Raises:
        RequestError: if the plugin is unknown, or a package it needs is not installed.
        PluginError: if the plugin's own code fails.
    """
    known = registry()
    kinds = [kind for kind in _KINDS if known.offers(kind, name)]
    if not kinds:
        everything = [n for kind in _KINDS for n in known.names(kind)]
        raise UnknownNameError(f"no plugin is called {name!r}", hint=nearest(name, everything))
    for kind in kinds:
        plugin, preset = known.find(kind, name)
        yield f"{kind} {plugin.full_name} {plugin.version}: {plugin.spec.summary}"
        if preset:
            yield f"  preset {name}: {Call(plugin.spec.name, (), preset)}"
        yield f"  options {plugin.spec.options}: {known.options_class(plugin).__name__} imports"
        missing = known.missing(plugin)
        if missing:
            raise missing
        yield f"  target {plugin.spec.target}: {known.target(plugin).__name__} imports"
