"""Loads plugins from entry points, each separately: a failure becomes a visible `Broken` row.

Pluggy's own loading of entry points drops the second of two packages with one entry name, stops at the first broken
package, and does not report a mistyped hook.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import inspect
import re
import traceback
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pluggy
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from llmquant.errors import OptionError, PluginError, describe, nearest
from llmquant.plugins.field_types import coerce, field_types
from llmquant.plugins.spec import Hooks, PluginSpec
from llmquant.study.reading import brief

GROUP = "llmquant"
_ACCEPTED = ("causal_lm", "embedder")


@dataclass(frozen=True)
class Plugin:
    """A spec and the package it came from.

    Attributes:
        package: the distribution's normalized name; ``registered`` for a plugin of a notebook or script.
        version: the distribution's version.
    """

    spec: PluginSpec
    package: str
    version: str

    @property
    def full_name(self) -> str:
        """The unambiguous name, ``package/name``."""
        return f"{self.package}/{self.spec.name}"

    @property
    def names(self) -> list[str]:
        """The plugin's name and its presets."""
        return list(dict.fromkeys([self.spec.name, *self.spec.presets]))


@dataclass(frozen=True)
class Broken:
    """An entry point whose plugins could not be loaded, and the reason.

    Attributes:
        package: ``distribution:entry``.
        traceback: the traceback of the error.
    """

    package: str
    reason: str
    traceback: str = ""


def load_entry_points(
    entry_points: Iterable[importlib.metadata.EntryPoint], disabled: Sequence[str]
) -> tuple[list[Plugin], list[Broken], pluggy.PluginManager]:
    """Load every entry point whose package is not disabled; llmquant's own come first.

    Returns:
        The plugins, the entry points that could not be loaded, and the loaded packages, for their observers.
    """
    hooks = pluggy.PluginManager(GROUP)
    hooks.add_hookspecs(Hooks)
    plugins: list[Plugin] = []
    broken: list[Broken] = []
    off = {canonicalize_name(name.strip()) for name in disabled}
    for entry in sorted(
        entry_points, key=lambda entry: (package_of(entry) != "llmquant", package_of(entry), entry.name)
    ):
        package = package_of(entry)
        if package in off:
            continue
        name = f"{package}:{entry.name}"
        try:
            version = str(entry.dist.version) if entry.dist else "0"
            found = _load(entry, name, hooks)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a third party's module may raise anything
            if hooks.has_plugin(name):
                hooks.unregister(name=name)
            broken.append(_broken(name, error))
            continue
        for spec in found:
            try:
                plugin = Plugin(checked_spec(spec), package, version)
                _check_names_are_new(plugin, plugins)
            except PluginError as error:
                broken.append(_broken(name, error))
            else:
                plugins.append(plugin)
    return plugins, broken, hooks


def package_of(entry: importlib.metadata.EntryPoint) -> str:
    """Name the distribution an entry point belongs to, normalized."""
    with contextlib.suppress(Exception):  # a damaged file of the package's metadata
        if entry.dist and entry.dist.name:
            return canonicalize_name(entry.dist.name)
    return "unknown"


def checked_spec(spec: Any) -> PluginSpec:  # Any: what a third party returned
    """Check every field of a spec.

    Returns:
        The spec, with lists converted to tuples.

    Raises:
        PluginError: if the object is not a spec, or a field is wrong.
    """
    if not isinstance(spec, PluginSpec):
        raise PluginError(f"llmquant_register returned {brief(spec)} ({type(spec).__name__}), not PluginSpec")
    values: dict[str, Any] = {}  # Any: the fields of PluginSpec
    for field, hint in field_types(PluginSpec).items():
        try:
            values[field] = coerce(getattr(spec, field), hint, f"{spec.name!r}: {field}")
        except OptionError as error:
            raise PluginError(error.message, hint=error.hint) from error
    checked: PluginSpec = dataclasses.replace(spec, **values)
    for name in (checked.name, *checked.presets):
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
            raise PluginError(f"{name!r} is not a valid plugin name", hint="Use letters, digits, '_', '-' and '.'.")
    for field in ("options", "target"):
        if not re.fullmatch(r"[\w.]+:\w+", values[field]):
            raise PluginError(f"{checked.name!r}: {field} is {values[field]!r}, not 'module:Class'")
    if not checked.summary.strip():
        raise PluginError(f"{checked.name!r}: summary is empty", hint="Describe the plugin in one sentence.")
    if not set(checked.accepts) <= set(_ACCEPTED):
        raise PluginError(f"{checked.name!r}: accepts is {checked.accepts}", hint=f"Use {' and '.join(_ACCEPTED)}.")
    for text in checked.requires:
        try:
            Requirement(text)
        except InvalidRequirement as error:
            raise PluginError(f"{checked.name!r}: requires has {text!r}, which is not a valid requirement") from error
    return checked


def _load(entry: importlib.metadata.EntryPoint, name: str, hooks: pluggy.PluginManager) -> list[Any]:
    """Import an entry point's module, register its hooks, and ask it for its specs."""
    if not entry.pattern.match(entry.value):
        raise PluginError(f"the entry point {entry.value!r} is not a module", hint="Write it as package.module.")
    module = entry.load()
    if not isinstance(module, types.ModuleType):
        raise PluginError(
            f"{entry.value} is {brief(module)}, not a module", hint="Write the entry point without the part after ':'."
        )
    known = [hook for hook, _ in inspect.getmembers(Hooks, inspect.isfunction) if hook.startswith("llmquant_")]
    for hook, value in list(vars(module).items()):
        if hook not in known and hasattr(value, f"{GROUP}_impl"):
            raise PluginError(f"unknown hook {hook!r}", hint=nearest(hook, known))
    hooks.register(module, name)
    own = hooks.get_hookcallers(module) or []
    if not own:
        raise PluginError(
            f"{entry.value} implements no llmquant hook", hint="Decorate llmquant_register with @hookimpl."
        )
    specs: list[Any] = []  # Any: what a third party returned
    for implementation in hooks.hook.llmquant_register.get_hookimpls():
        if implementation.plugin_name == name:
            returned = implementation.function()
            if not isinstance(returned, Iterable) or isinstance(returned, str | Mapping):
                raise PluginError(f"llmquant_register returned {brief(returned)}", hint="Return a list of PluginSpec.")
            specs += returned
    return specs


def _check_names_are_new(plugin: Plugin, plugins: Iterable[Plugin]) -> None:
    for other in plugins:
        if (other.package, other.spec.kind) == (plugin.package, plugin.spec.kind):
            for name in set(plugin.names) & set(other.names):
                raise PluginError(f"{plugin.spec.kind} {name!r} is offered twice by {plugin.package}")


def _broken(name: str, error: BaseException) -> Broken:
    try:
        text = "".join(traceback.format_exception(error))
    except Exception as another:  # a third party's exception may raise anything
        text = f"the traceback cannot be written: {describe(another)}"
    return Broken(name, describe(error).replace("\n", ". "), text)
