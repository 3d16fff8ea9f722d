"""Versions of plugins whose source can change under one version number: editable installs and notebook modules."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import importlib.util
import json
from pathlib import Path

from llmquant.errors import PluginError
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
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError) as error:
        raise PluginError(f"{module} cannot be imported: {error}") from error
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise PluginError(
            f"{module} cannot be imported by a worker process",
            hint="Put it into a .py file beside the notebook, or into a package that is installed.",
        )
    return Path(found.origin)


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
