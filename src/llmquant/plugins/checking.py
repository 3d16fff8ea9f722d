"""Lists and finds the installed plugins for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from packaging.utils import canonicalize_name

from llmquant.errors import LlmquantError, UnknownNameError, nearest
from llmquant.plugins.discovery import Broken, Plugin
from llmquant.plugins.options import build
from llmquant.plugins.registry import Registry
from llmquant.plugins.sources import check_target
from llmquant.study.call import Call
from llmquant.study.experiment import PluginKind

_KINDS: tuple[PluginKind, ...] = ("quantizer", "evaluator", "embedder", "executor")


def plugin_rows(known: Registry) -> list[dict[str, Any]]:  # Any: JSON objects
    """List plugins by kind, each with its presets, its missing packages and what is broken."""
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
                        "broken": _broken(known, plugin),
                        "missing": f"{missing.message}. {missing.hint}" if missing else "",
                    }
                )
    return rows


def matching(known: Registry, text: str) -> tuple[list[tuple[Plugin, str]], list[Broken]]:
    """Find the plugins that a name, preset, call, ``kind:name`` or package stands for.

    Returns:
        Each plugin with the call to check (empty for the first preset or the name), and broken entry points.

    Raises:
        RequestError: if nothing has this name, or several packages offer it.
    """
    before, _, after = text.partition(":")
    kinds: Sequence[PluginKind]
    kinds, name = ([kind for kind in _KINDS if kind == before], after) if before in _KINDS else (_KINDS, text)
    package = canonicalize_name(name)
    broken = [item for item in known.broken if name in (item.package, item.package.partition(":")[0])]
    found = [(plugin, "") for plugin in known.plugins if plugin.package == package and plugin.spec.kind in kinds]
    if not (found or broken):
        call = Call.parse(name)
        found = [(known.find(kind, call.name)[0], name) for kind in kinds if known.offers(kind, call.name)]
        if not found:
            everything = [n for kind in kinds for n in known.names(kind)]
            raise UnknownNameError(f"no plugin is called {name!r}", hint=nearest(call.name, everything))
    return found, broken


def _broken(known: Registry, plugin: Plugin) -> str:
    """Return why a plugin cannot work, as far as can be seen without its heavy half."""
    try:
        cls = known.options_class(plugin)
        check_target(plugin.spec.target)
        for name, values in plugin.spec.presets.items():
            build(cls, Call(f"preset {name}"), values)
    except LlmquantError as error:
        return f"{error.message}. {error.hint}".strip()
    return ""
