"""Checks of every plugin: its spec, its options and how it refuses."""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable
from typing import Any

from llmquant.errors import PluginError, RequestError, UnknownNameError
from llmquant.plugins.embedder import Embedder
from llmquant.plugins.evaluator import Evaluator
from llmquant.plugins.executor import Executor
from llmquant.plugins.options import build, dump, restore
from llmquant.plugins.quantizer import Quantizer
from llmquant.plugins.registry import Chosen
from llmquant.study.call import Call
from llmquant.testing.traces import constructed
from llmquant.testing.trial import NotApplicable, Trial, run_python

_HEAVY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gptqmodel",
    "lm_eval",
    "modal",
    "mteb",
    "ray",
    "torch",
    "transformers",
)
_CONTRACTS = {"quantizer": Quantizer, "evaluator": Evaluator, "embedder": Embedder, "executor": Executor}
_SIMILAR = 0.75  # of `difflib`: `after_loading` and `after_load` have 0.87, `replaced` and `prepare` 0.53


def spec_is_complete(trial: Trial) -> None:
    """Every field of the spec has its type, and both classes exist in their modules.

    To fix: compare the spec with the fields of `PluginSpec`; write classes as ``module:Class``.
    """
    _ = trial.complete


def listing_is_light(trial: Trial) -> None:
    """The options can be imported without torch or another heavy package, because listing plugins imports them.

    To fix: import heavy packages in the module of the target only, or under ``TYPE_CHECKING``.
    """
    module = trial.complete.options.split(":")[0]
    code = f"import sys, {module}; print('', *(name for name in {_HEAVY!r} if name in sys.modules))"
    done = run_python("-c", code)
    if done.returncode:
        text = f"{module} cannot be imported: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
        trial.done.setdefault("plugin", NotApplicable(f"an earlier check failed: {text}"))
        raise PluginError(text)
    heavy = done.stdout.splitlines()[-1].split()  # the module may print lines of its own
    if heavy:
        raise PluginError(f"{trial.spec.options} imports {', '.join(heavy)}")


def options_are_frozen(trial: Trial) -> None:
    """The options are a frozen dataclass whose fields and defaults have allowed types.

    To fix: decorate the class with ``@dataclass(frozen=True)``, and write ``tuple[str, ...]`` for ``list[str]``.
    """
    _ = trial.options_class


def methods_are_known(trial: Trial) -> None:
    """The target has the methods that llmquant calls, and no public method with almost the name of another one.

    To fix: rename the method as its contract says, or begin the name of a helper with ``_``.
    """
    made = constructed(trial)
    known = {name for name in dir(_CONTRACTS[trial.spec.kind]) if not name.startswith("_")}
    for name, _ in inspect.getmembers(type(made), inspect.isroutine):
        close = difflib.get_close_matches(name, known, n=1, cutoff=_SIMILAR)
        if not name.startswith("_") and name not in known and close and not hasattr(made, close[0]):
            raise PluginError(f"{trial.spec.target} has a method {name!r}, which is never called: is it {close[0]!r}?")


def packages_are_installed(trial: Trial) -> None:
    """The packages in ``requires`` are installed, so that the other checks can run.

    To fix: install them; ``install`` of the spec is the command that users see.
    """
    trial.require_packages()


def presets_build(trial: Trial) -> None:
    """Every preset gives options that stay the same as JSON.

    To fix: correct the preset's names and values in the spec.
    """
    if not trial.spec.presets:
        raise NotApplicable("the plugin has no presets")
    for name in trial.spec.presets:
        _check_json(trial.choose(name))


def options_survive_json(trial: Trial) -> None:
    """The options of the checked call stay the same as JSON: a worker gets them in this form.

    To fix: do not change fields in ``__post_init__``.
    """
    _check_json(trial.chosen)


def wrong_calls_are_refused(trial: Trial) -> None:
    """An unknown option is refused by its name, and so is every call in ``refused``, before anything is loaded.

    To fix: raise an `OptionError` in ``__post_init__``, or an `UnsupportedError` in ``check(model, device)``.
    """
    cls = trial.options_class
    _must_refuse(lambda: build(cls, Call(trial.spec.name, (), {"no_such_option": 1})), "an unknown option")
    for call in trial.refused:
        _must_refuse(lambda call=call: check_request(trial, trial.choose(call)), call)  # type: ignore[misc]  # bound early


def check_request(trial: Trial, chosen: Chosen) -> None:
    """Ask the options whether they can be used with the trial's model on a CPU, as planning does."""
    if trial.spec.kind != "executor":
        chosen.ask("check", trial.info, "cpu")


def _must_refuse(ask: Callable[[], object], what: str) -> None:
    try:
        ask()
    except (RequestError, UnknownNameError):
        return
    raise PluginError(f"{what} was not refused")


def _check_json(chosen: Chosen) -> None:
    sent: Any = dump(chosen.options)  # Any: a JSON value
    try:
        sent = json.loads(json.dumps(sent, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise PluginError(f"{chosen.use.label}: the options cannot be written as JSON: {error}") from error
    if restore(type(chosen.options), sent) != chosen.options:
        raise PluginError(f"{chosen.use.label}: the options differ after JSON, {sent}")


CHECKS = (
    spec_is_complete,
    listing_is_light,
    options_are_frozen,
    presets_build,
    options_survive_json,
    wrong_calls_are_refused,
    packages_are_installed,
    methods_are_known,
)
