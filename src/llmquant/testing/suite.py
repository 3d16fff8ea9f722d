"""The checks of a plugin as a list: as a pytest function with one line per check, and for the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmquant.errors import LlmquantError, PluginError, describe, nearest
from llmquant.plugins.spec import PluginSpec
from llmquant.study.experiment import PluginKind
from llmquant.testing import embedders, evaluators, executors, quantizers, specs
from llmquant.testing.trial import Maker, NotApplicable, Trial


@dataclass(frozen=True)
class Check:
    """One promise of a plugin.

    Attributes:
        function: raises for a plugin that breaks the promise; its docstring says what the promise means, and after
            ``To fix:`` what to do.
    """

    function: Callable[[Trial], None]

    @property
    def name(self) -> str:
        """The check's name, as in ``expected_failures``."""
        return self.function.__name__

    @property
    def meaning(self) -> str:
        """What the plugin promises."""
        return self._docstring[0]

    @property
    def fix(self) -> str:
        """What to do if the check fails."""
        return self._docstring[1]

    @property
    def _docstring(self) -> tuple[str, str]:
        meaning, _, fix = " ".join((self.function.__doc__ or "").replace("``", "`").split()).partition("To fix: ")
        return meaning.strip(), fix[:1].upper() + fix[1:]

    def run(self, trial: Trial) -> None:
        """Run the check.

        Raises:
            NotApplicable: if the check does not apply to this plugin.
            PluginError: if the plugin breaks the promise, or its code raises anything.
        """
        __tracebackhide__ = True
        try:
            self.function(trial)
        except NotApplicable:
            raise
        except (Exception, SystemExit) as error:  # the plugin's code may raise anything
            message, hint = (error.message, error.hint) if isinstance(error, LlmquantError) else (describe(error), "")
            raise PluginError(f"{self.where(trial)}{message}", hint=f"{hint}\n{self.fix}".strip()) from error

    def where(self, trial: Trial) -> str:
        """Return the beginning of a failure's message: the plugin and the check."""
        return f"{trial.spec.kind} {trial.spec.name!r}, {self.name}: "


CHECKS: Mapping[PluginKind, Sequence[Check]] = {
    "quantizer": tuple(map(Check, (*specs.CHECKS, *quantizers.CHECKS))),
    "evaluator": tuple(map(Check, (*specs.CHECKS, *evaluators.CHECKS))),
    "embedder": tuple(map(Check, (*specs.CHECKS, *embedders.CHECKS))),
    "executor": tuple(map(Check, (*specs.CHECKS, *executors.CHECKS))),
}
"""All checks by kind of plugin, in the order in which they run."""


@dataclass(frozen=True)
class Outcome:
    """The outcome of a check.

    Attributes:
        text: why the check failed or was skipped; empty if it passed.
        error: the failure, with the plugin's own exception as its cause.
    """

    check: Check
    status: Literal["pass", "fail", "skip"]
    text: str = ""
    error: PluginError | None = None


def checks(
    spec: PluginSpec,
    call: str = "",
    *,
    model: Path | Maker | str | None = None,
    refused: Sequence[str] = (),
    expected_failures: Mapping[str, str] | None = None,
) -> Callable[..., None]:
    """Return a test function for pytest with one line per check of a plugin.

    ::

        test_rtn = checks(RTN, "rtn(bits=3)", refused=["rtn(group_size=48)"])

    Args:
        spec: the plugin's spec.
        call: preset or call to check, with ``{model}`` for the folder of the checkpoint, as in ``mine({model})``; empty
            for the first preset, or the plugin's name.
        model: folder of a small checkpoint, or a function that writes one into a folder; for evaluators of embedders
            also an embedder's call. ``None`` is `tiny_causal_lm`, or `tiny_embedder` for plugins of embedders.
        refused: calls that must be refused before anything is loaded.
        expected_failures: reasons by name of a check; a check that passes unexpectedly fails.

    Raises:
        PluginError: if `expected_failures` names a check that does not exist.
    """
    import pytest

    every = CHECKS[spec.kind]
    expected = dict(expected_failures or {})
    for name in expected.keys() - {check.name for check in every}:
        raise PluginError(f"no check is called {name!r}", hint=nearest(name, (check.name for check in every)))
    trial: list[Trial] = []

    def parameter(check: Check) -> Any:  # Any: pytest's parameter sets
        reason = expected.get(check.name)
        marks = () if reason is None else pytest.mark.xfail(reason=reason, strict=True, raises=PluginError)
        return pytest.param(check, id=check.name, marks=marks)

    def conforms(check: Check, request: pytest.FixtureRequest) -> None:
        __tracebackhide__ = True
        if not trial:
            trial.append(Trial(spec, call, model=model, refused=refused))
            module = request.node.getparent(pytest.Module)
            module.addfinalizer(lambda: trial.pop().close())
        try:
            check.run(trial[0])
        except NotApplicable as reason:
            pytest.skip(str(reason))

    conforms.__doc__ = f"The {spec.kind} {spec.name!r} keeps its contract."
    parametrized: Callable[..., None] = pytest.mark.parametrize("check", [*map(parameter, every)])(conforms)
    return parametrized


def outcomes(spec: PluginSpec, call: str = "", *, model: Path | Maker | str | None = None) -> Iterator[Outcome]:
    """Run all checks of a plugin, without pytest.

    Args:
        spec: as for `checks`; likewise `call` and `model`.

    Yields:
        The outcome of each check.
    """
    trial = Trial(spec, call, model=model)
    try:
        for check in CHECKS[spec.kind]:
            try:
                check.run(trial)
            except NotApplicable as reason:
                yield Outcome(check, "skip", str(reason))
            except PluginError as error:
                yield Outcome(check, "fail", str(error).removeprefix(check.where(trial)), error)
            else:
                yield Outcome(check, "pass")
    finally:
        trial.close()
