"""Versions of plugins whose source can change under one version number: editable installs and notebook modules."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

from llmquant.errors import PluginError, foreign, nearest
from llmquant.plugins.discovery import Plugin


def plugin_version(plugin: Plugin) -> str:
    """Return the spec's version; a digest of the sources is added where these can change without it."""
    # llmquant's own authors raise `version`; a checkout of it is always editable.
    if plugin.package == "llmquant" or not (plugin.package == "registered" or _is_editable(plugin.package)):
        return plugin.spec.version
    modules = (plugin.spec.options.split(":")[0], plugin.spec.target.split(":")[0])
    return f"{plugin.spec.version}+{_digest(modules)}"


def find_source(module: str) -> Path:
    """Return the file of a module, or of a package's ``__init__``, without importing it.

    Raises:
        PluginError: if there is no such file, so that no worker process could import it.
    """
    with foreign(f"{module} cannot be imported"):  # this imports the packages above the module
        found = importlib.util.find_spec(module)
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise PluginError(
            f"{module} cannot be imported by a worker process",
            hint="Move the code into a .py file next to the notebook, or into an installed package.",
        )
    return Path(found.origin)


def check_target(text: str) -> None:
    """Check that ``module:Class`` exists, without importing it: its imports may be heavy or not installed.

    Raises:
        PluginError: if the class is missing. A module that is not Python source, or takes names from others by ``*`` or
            ``__getattr__``, may define any.
    """
    module, _, name = text.partition(":")
    source = find_source(module)
    if source.suffix != ".py":
        return
    try:
        defined = set(_defined(ast.parse(source.read_bytes())))
    except (SyntaxError, ValueError) as error:
        raise PluginError(f"{text} cannot be imported: {error}") from error
    if not defined & {name, "*", "__getattr__"}:
        raise PluginError(f"{text} cannot be imported: {source.name} defines no {name!r}", hint=nearest(name, defined))


def _defined(node: ast.AST) -> Iterator[str]:
    """Yield the names that a module defines, including those under conditions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef | ast.FunctionDef):
            yield child.name
        elif isinstance(child, ast.Import | ast.ImportFrom):
            yield from (alias.asname or alias.name for alias in child.names)
        elif isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
        else:
            yield from _defined(child)


@functools.cache
def _is_editable(package: str) -> bool:
    try:
        text = importlib.metadata.distribution(package).read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        return False
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


@functools.cache
def _digest(modules: tuple[str, ...]) -> str:
    """Digest every source file of the modules' top-level packages."""
    digest = hashlib.sha256()
    for top in sorted({module.split(".")[0] for module in modules}):
        origin = find_source(top)
        files = sorted(origin.parent.rglob("*.py")) if origin.name == "__init__.py" else [origin]
        for file in files:
            digest.update(f"{file.relative_to(origin.parent)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:12]
