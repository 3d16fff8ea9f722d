"""Checks an evaluator's results before they are stored as completed."""

from __future__ import annotations

import contextlib
import json
import math
import numbers
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from llmquant.errors import PluginError, RequestError
from llmquant.stats.samples import contradicts, scored_for
from llmquant.study.reading import LARGEST, brief, check_json, loads
from llmquant.study.run import Measurement, Result, Sample, finite_json

_ONE_PER_TASK = "Yield one Result per task."
_T = TypeVar("_T")


def checked_results(results: Any, plugin: str) -> Iterator[Result]:  # Any: what a third party returned
    """Check results one by one and yield them; numpy's numbers become Python's.

    Args:
        results: the return value of ``Evaluator.evaluate``.
        plugin: the plugin's name, for errors.

    Raises:
        PluginError: if a result or measurement is missing, a field has a wrong type, is not a number or not JSON,
            something is given twice, or `n` or a mean contradicts the samples. The message names the plugin, the task
            and the field of the first mistake.
    """
    ending: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if isinstance(results, Generator):  # closed in any case, so that it restores its changes before these are compared
        ending = contextlib.closing(results)
    elif not isinstance(results, Iterable):
        raise PluginError(f"{plugin}: evaluate returned {_written(results)}", hint=_ONE_PER_TASK)
    tasks: set[str] = set()
    given: set[str] = set()
    with ending:
        for result in results:
            if type(result) is not Result:
                raise PluginError(f"{plugin} yielded {_written(result)} instead of a Result", hint=_ONE_PER_TASK)
            checked = _checked(result, f"{plugin}, task {_written(result.task)}")
            _once([checked.task], tasks, plugin, "task")
            numbers_of = [f"{m.metric} of {m.task} at {dict(sorted(m.at.items()))}" for m in checked.measurements]
            _once(numbers_of, given, f"{plugin}, task {checked.task!r}", "number")
            yield checked
    if not tasks:
        raise PluginError(f"{plugin} yielded no result", hint=_ONE_PER_TASK)


def _checked(result: Result, where: str) -> Result:
    _check_fields(result, where)
    measurements = [_measurement(item, where) for item in _items(result.measurements, Measurement, where)]
    samples = [_sample(item, where) for item in _items(result.samples, Sample, where)]
    if not measurements:
        raise PluginError(f"{where}: there are no measurements", hint="Give at least one Measurement per Result.")
    _once([f"{sample.document} {sample.occurrence}" for sample in samples], set(), where, "sample")
    for measurement in measurements:
        _check_samples(measurement, samples, f"{where}, metric {measurement.metric!r}", result.not_means)
    if all(math.isfinite(measurement.value) for measurement in measurements):
        for sample in samples:
            for metric, score in sample.scores.items():
                if not math.isfinite(score):
                    raise PluginError(
                        f"{where}: score {metric!r} of document {sample.document!r} is {score} but the value is finite",
                        hint="Leave out a missing score of a document.",
                    )
    return replace(result, measurements=tuple(measurements), samples=tuple(samples))


def _measurement(found: Measurement, where: str) -> Measurement:
    _check_fields(found, f"{where}, metric {_written(found.metric)}")
    stderr = None if found.stderr is None else _python(found.stderr)
    n = None if found.n is None else int(found.n)
    if stderr is not None and math.isfinite(found.value) and not math.isfinite(stderr):
        where = f"{where}, metric {found.metric!r}"
        raise PluginError(
            f"{where}: stderr is {stderr}, but the value is finite", hint="Give None if there is no standard error."
        )
    return replace(found, value=_python(found.value), stderr=stderr, n=n, at=dict(found.at))


def _sample(found: Sample, where: str) -> Sample:
    _check_fields(found, f"{where}, a sample")
    return replace(
        found,
        scores={metric: float(score) for metric, score in found.scores.items()},
        occurrence=int(found.occurrence),
        generated=None if found.generated is None else int(found.generated),
    )


def _check_samples(measurement: Measurement, samples: list[Sample], where: str, not_means: Iterable[str]) -> None:
    """Compare `n` and the value with the samples that have a score of the metric, or with all if none has scores."""
    scored = scored_for(measurement, samples)
    counted = scored or ([] if any(sample.scores for sample in samples) else samples)
    if counted and measurement.n not in (None, len(counted)):
        raise PluginError(
            f"{where}: n is {measurement.n}, but there are {len(counted)} samples with this metric",
            hint="Give one Sample per document, or no samples.",
        )
    if scored and measurement.metric not in not_means and contradicts(measurement, scored):
        raise PluginError(
            f"{where}: value {measurement.value} is not the mean of its {len(scored)} samples' scores",
            hint="Add the metric to Result.not_means if the value is not a mean.",
        )


def _items(found: Any, kind: type[_T], where: str) -> Iterator[_T]:  # Any: what a third party gave
    name = kind.__name__
    if not isinstance(found, Iterable):
        raise PluginError(f"{where}: expected {name}s, found {_written(found)}", hint=f"Give a list of {name}s.")
    for item in found:
        if type(item) is not kind:  # an object with more fields could be stored, but not read again
            raise PluginError(f"{where}: expected only {name}s, found {_written(item)}", hint=f"Give {name}s only.")
        yield item


def _once(new: Iterable[str], given: set[str], where: str, what: str) -> None:
    for key in new:
        if key in given:
            raise PluginError(
                f"{where}: a {what} is given twice: {key}",
                hint="Numbers need different `at`, samples different `occurrence`, and each task has one Result.",
            )
        given.add(key)


def _check_fields(found: Any, where: str) -> None:  # Any: a Result, Measurement or Sample of a third party
    for name, (accepts, words) in _FIELDS[type(found)].items():
        if not accepts(getattr(found, name)):
            raise PluginError(f"{where}: {name} is {_written(getattr(found, name))}", hint=f"It must be {words}.")


def _written(value: object) -> str:
    return f"{brief(value)} ({type(value).__name__})"


def _python(number: float) -> float:
    """Convert numpy's number to Python's, and an integer too large to be read again to a float."""
    return number if isinstance(number, int) and abs(number) < LARGEST else float(number)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_filled(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_number(value: Any) -> bool:  # Any: a third party's value
    """Return whether a value is a number, NaN and infinity included; ``True`` and ``"0.5"`` are not."""
    try:
        return not isinstance(value, bool) and isinstance(value, numbers.Real) and isinstance(float(value), float)
    except OverflowError:
        return False


def _is_whole(value: Any, least: int) -> bool:  # Any: a third party's value
    return not isinstance(value, bool) and isinstance(value, numbers.Integral) and least <= int(value) < LARGEST


def _is_condition(value: Any) -> bool:  # Any: a third party's value
    if type(value) is int:
        return abs(value) < LARGEST
    return isinstance(value, str) or (type(value) is float and math.isfinite(value))


def _is_json(value: Any) -> bool:  # Any: a third party's value
    try:  # a written value must be readable again
        check_json(loads(json.dumps(finite_json(value), allow_nan=False)), "details")
    except (TypeError, ValueError, RecursionError, RequestError):
        return False
    return isinstance(value, Mapping) and all(map(_is_text, value))


_Check = tuple[Callable[[Any], bool], str]  # Any: a third party's value
_FILLED: _Check = (_is_filled, "a text that is not empty")
_TEXT: _Check = (_is_text, "a text")
_OPTIONAL_TEXT: _Check = (lambda v: v is None or isinstance(v, str), "a text, or None")
_OPTIONAL_FLAG: _Check = (lambda v: v is None or isinstance(v, bool), "True, False or None")
_FIELDS: Mapping[type, Mapping[str, _Check]] = {
    Result: {
        "task": _FILLED,
        "details": (
            _is_json,
            "JSON: a dictionary of Python's texts, numbers, lists and dictionaries, not of numpy's",
        ),
        "not_means": (
            lambda v: isinstance(v, Collection) and not isinstance(v, str) and all(map(_is_text, v)),
            "a list of metrics",
        ),
        "prompts": (
            lambda v: isinstance(v, Mapping) and all(map(_is_text, (*v, *v.values()))),
            "a dictionary of texts by hash",
        ),
    },
    Measurement: {
        "task": _FILLED,
        "metric": _FILLED,
        "value": (_is_number, "a number"),
        "unit": _TEXT,
        "higher_is_better": _OPTIONAL_FLAG,
        "stderr": (lambda v: v is None or (_is_number(v) and not v < 0), "a number from 0, or None"),
        "n": (lambda v: v is None or _is_whole(v, 1), "a whole number from 1, or None"),
        "at": (
            lambda v: isinstance(v, Mapping) and all(map(_is_filled, v)) and all(map(_is_condition, v.values())),
            "a dictionary; its values are texts, whole numbers or finite floats",
        ),
        "headline": (lambda v: isinstance(v, bool), "True or False"),
    },
    Sample: {
        "document": _FILLED,
        "prompt": _TEXT,
        "scores": (
            lambda v: isinstance(v, Mapping) and all(map(_is_filled, v)) and all(map(_is_number, v.values())),
            "a dictionary of numbers by metric",
        ),
        "answer": _OPTIONAL_TEXT,
        "target": _OPTIONAL_TEXT,
        "group": _TEXT,
        "occurrence": (lambda v: _is_whole(v, 0), "a whole number from 0"),
        "generated": (lambda v: v is None or _is_whole(v, 0), "a whole number from 0, or None"),
        "cut": _OPTIONAL_FLAG,
        "looping": _OPTIONAL_FLAG,
        "early": _OPTIONAL_FLAG,
        "decision_margin": (lambda v: v is None or _is_number(v), "a number, or None"),
    },
}
