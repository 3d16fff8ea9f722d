"""One plugin under test: its options, a tiny model and folders of its own, shared by all checks."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from llmquant.errors import LlmquantError, PluginError, describe
from llmquant.models.info import ModelInfo
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.context import Context
from llmquant.plugins.discovery import Plugin, checked_spec
from llmquant.plugins.options import input_files
from llmquant.plugins.registry import Chosen, registry
from llmquant.plugins.sources import check_target
from llmquant.plugins.spec import PluginSpec
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, ModelRequest
from llmquant.testing.models import tiny_causal_lm, tiny_embedder

Maker = Callable[[Path], object]
"""Writes a checkpoint into a folder."""

_T = TypeVar("_T")


def run_python(
    *arguments: str, timeout_s: float | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python in a new process, which finds the same modules as this one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False, cwd=cwd
    )


class NotApplicable(Exception):
    """A check does not apply, or an earlier check has found that it cannot run; the text says which."""


class Trial:
    """A plugin with one set of options under test.

    Args:
        spec: the plugin's spec.
        call: a call, with ``{model}`` for the folder of the checkpoint; empty for the first preset or the name.
        model: folder of a checkpoint, a function that writes one, or an embedder's call; ``None`` for a tiny one.
        refused: calls that the plugin must refuse.

    Attributes:
        done: computed values by name.
        cleanups: what `close` calls.
    """

    def __init__(
        self, spec: PluginSpec, call: str = "", *, model: Path | Maker | str | None = None, refused: Sequence[str] = ()
    ) -> None:
        self.spec, self.refused = spec, refused
        self.done: dict[str, Any] = {}  # Any: each step's own
        self.cleanups = contextlib.ExitStack()
        self._call, self._model = call, model
        self._folder = tempfile.TemporaryDirectory(prefix="llmquant-checks-", ignore_cleanup_errors=True)
        self.folder = Path(self._folder.name)
        self.cache = Cache(self.folder / "cache")
        self._contexts = 0

    def close(self) -> None:
        """Close what checks have opened, and delete the folders."""
        self.cleanups.close()
        self.done.clear()
        self._folder.cleanup()

    def once(self, name: str, make: Callable[[], _T]) -> _T:
        """Compute a value for all checks; if this fails, the first check reports the failure, and later ones skip."""
        if name not in self.done:
            try:
                self.done[name] = make()
            except NotApplicable:
                raise
            except (Exception, SystemExit) as error:  # a plugin may raise anything
                text = error.message if isinstance(error, LlmquantError) else describe(error)
                self.done[name] = NotApplicable(f"an earlier check failed: {text}")
                raise
        if isinstance(self.done[name], NotApplicable):
            raise self.done[name]
        value: _T = self.done[name]
        return value

    @property
    def call(self) -> str:
        """The plugin's call, as a user writes it."""
        text = self._call or next(iter(self.spec.presets), self.spec.name)
        return text.replace("{model}", str(self.model)) if "{model}" in text else text

    @property
    def model(self) -> Path | str:
        """The folder of the checkpoint; for an evaluator of embedders perhaps an embedder's call."""

        def make() -> Path | str:
            if isinstance(self._model, str | Path):
                return self._model
            embeds = self.spec.kind == "embedder" or self.spec.accepts == ("embedder",)
            write = self._model or (tiny_embedder if embeds else _wide)
            write(self.folder / "model")
            return self.folder / "model"

        return self.once("model", make)

    @property
    def complete(self) -> PluginSpec:
        """The spec, after a check of its fields and of both classes."""

        def check() -> PluginSpec:
            for text in ((spec := checked_spec(self.spec)).options, spec.target):
                check_target(text)
            return spec

        return self.once("spec", check)

    @property
    def plugin(self) -> Plugin:
        """The installed plugin, or the spec registered for this process."""

        def find() -> Plugin:
            known, spec = registry(), self.complete
            if spec not in [plugin.spec for plugin in known.plugins]:
                known.register(spec)
            return next(plugin for plugin in reversed(known.plugins) if plugin.spec == spec)

        return self.once("plugin", find)

    @property
    def options_class(self) -> type[Any]:  # Any: a third party's dataclass
        """The class of the options, after a check of its fields and methods."""
        return self.once("options", lambda: registry().options_class(self.plugin))

    def require_packages(self) -> None:
        """Raise for a missing package of the plugin, once; what needs the packages is skipped then."""

        def check() -> None:
            if missing := registry().missing(self.plugin):
                raise missing

        self.once("packages", check)

    @property
    def chosen(self) -> Chosen:
        """The plugin with its options."""
        return self.choose(self.call)

    @property
    def info(self) -> ModelInfo:
        """The description of the checkpoint."""
        return self.once("info", lambda: inspect_subject(ModelRequest(str(self.model)), registry(), self.cache))

    def choose(self, call: str) -> Chosen:
        """Build the options of a call of this plugin, once."""

        def build() -> Chosen:
            parsed = Call.parse(call)
            name = parsed.name.rpartition("/")[2]
            if name not in self.plugin.names:
                raise PluginError(f"{call} is not a call of {self.spec.name!r}", hint=f"Known: {self.plugin.names}")
            return registry().choose(self.spec.kind, replace(parsed, name=f"{self.plugin.package}/{name}"))

        _ = self.options_class
        return self.once(f"the call {call}", build)

    def context(self, chosen: Chosen | None = None, documents: Documents | None = None) -> Context:
        """Return a context with an empty folder for files, on the CPU, with seed 0."""
        self._contexts += 1
        files = self.folder / "files" / str(self._contexts)
        files.mkdir(parents=True)
        inputs = input_files(chosen.options) if chosen else {}
        return Context("cpu", 0, documents or Documents(), self.cache, inputs, None, files, lambda done, total: None)


def _wide(folder: Path) -> Path:
    return tiny_causal_lm(folder, width=128)  # the usual group sizes divide it


def contents(folder: Path) -> dict[str, bytes]:
    """Read every file of a folder."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
