"""What plugins must leave unchanged, compared by the worker's own code."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llmquant.errors import PluginError
from llmquant.models.info import ModelInfo
from llmquant.plugins.registry import registry
from llmquant.testing.trial import NotApplicable, Trial, run_python

_SHOWN = 4  # a training mode changes every layer
# Compares a process before and after an import.
_IMPORT = """
import importlib, json, sys
import transformers.modeling_utils
from llmquant.loading import causal_lm, embedder
from llmquant.running.guard import Snapshot
before = Snapshot.take(None)
importlib.import_module(sys.argv[1])
print()
print(json.dumps([change.what for change in before.undo(loading=True)]))
"""


def constructed(trial: Trial) -> Any:  # Any: a third party's Quantizer, Evaluator, Embedder or Executor
    """Construct the plugin's target, once, and record what its first import changes."""

    def make() -> Any:  # Any: see above
        chosen = trial.chosen
        trial.require_packages()
        if trial.spec.kind == "executor":  # it is not imported where models are
            return registry().construct(chosen)
        if trial.spec.target.partition(":")[0] in sys.modules:
            # llmquant's own modules are imported wherever models are loaded.
            trial.done["imported before"] = trial.plugin.package != "llmquant"
            return registry().construct(chosen)
        with recorded(trial, loading=trial.spec.kind != "evaluator"):
            return registry().construct(chosen)

    return trial.once("constructed", make)


@contextmanager
def recorded(trial: Trial, subject: Any = None, *, loading: bool = False) -> Iterator[None]:  # Any: a loaded model
    """Restore what the block changes in the process and in the subject, and record the changes.

    Args:
        subject: the model that is evaluated; ``None`` while a model is loaded.
        loading: as for `Snapshot.undo`.
    """
    # Their imports change settings, once.
    import transformers.modeling_utils  # noqa: F401

    from llmquant.loading import causal_lm, embedder  # noqa: F401
    from llmquant.running.guard import Snapshot

    if not gc.get_freeze_count():
        gc.freeze()  # as in a worker: what was imported is left out of each comparison's collections
    snapshot = Snapshot.take(subject)
    try:
        yield
    finally:
        changes: list[str] = trial.done.setdefault("changes", [])
        changes += [change.what for change in snapshot.undo(loading=loading)]


def load_recorded(
    trial: Trial, load: Callable[[], Any], info: ModelInfo
) -> Any:  # Any: a LoadedModel or LoadedEmbedder
    """Load as a worker does, and record what this changes."""
    from llmquant.running.guard import load_guarded

    constructed(trial)
    subject = load_guarded(load, info, trial.cache)
    trial.done.setdefault("changes", []).extend(subject.load.changed)
    return subject


def refuse_changes(trial: Trial) -> None:
    """Raise a `PluginError` that names what was recorded; skip if nothing ran."""
    if "changes" not in trial.done:
        raise NotApplicable("an earlier check failed: nothing ran")
    changes = [*(_changed_by_import(trial) if trial.done.get("imported before") else ()), *trial.done["changes"]]
    if changes:
        more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
        raise PluginError(f"it changed {' and '.join(changes[:_SHOWN])}{more}")


def _changed_by_import(trial: Trial) -> list[str]:
    """Import the target's module in a new process, because it was imported here before anything was compared."""
    done = run_python("-c", _IMPORT, trial.spec.target.partition(":")[0])
    if done.returncode:
        raise PluginError(f"its module cannot be imported in a new process: {(done.stderr.splitlines() or [''])[-1]}")
    changes: list[str] = json.loads(done.stdout.splitlines()[-1])
    return changes
