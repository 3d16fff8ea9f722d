"""Runs: what is written is what is read."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmquant.errors import StoreError
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, Variant
from llmquant.study.reading import read_as
from llmquant.study.run import SCHEMA_VERSION, Failure, Measurement, Run

_FINITE = st.floats(allow_nan=False)  # infinities included
_MEASUREMENTS = st.builds(
    Measurement,
    task=st.text(),
    metric=st.text(),
    value=_FINITE | st.integers(-(2**60), 2**60),
    unit=st.text(),
    higher_is_better=st.none() | st.booleans(),
    stderr=st.none() | st.floats(0),
    n=st.none() | st.integers(0, 2**60),
    at=st.dictionaries(st.text(), st.integers(-(2**60), 2**60) | st.text(), max_size=2),
)
_RUN = Run(
    Experiment(
        Variant(ModelUse("m", "commit:1"), PluginUse("llmquant/baseline", "1", {"dtype": "bfloat16"}, "bf16_baseline")),
        PluginUse("llmquant/perplexity", "1", {}, "perplexity"),
        Documents(8),
        0,
    ),
    "completed",
    (Measurement("wiki", "perplexity", 30.0, higher_is_better=False, stderr=0.5, n=8),),
    {"code": "bfloat16", "layers_left": []},
    {"torch": "2.13.0"},
    "2026-01-01T00:00:00+00:00",
    "2026-01-01T00:01:00+00:00",
    {"wiki": {"tokens": 2040}},
)
_FAILED = replace(
    _RUN,
    status="failed",
    measurements=(),
    applied=None,
    failure=Failure("out_of_memory", "too large", "log"),
    attempt=2,
)


def _sent(data):
    """Send through strict JSON, as the store does."""
    return json.loads(json.dumps(data, allow_nan=False))


@given(_MEASUREMENTS)
def test_a_measurement_survives_json(measurement):
    """Every value, infinite ones included, is read as it was written."""
    assert read_as(Measurement, _sent(measurement.to_json())) == measurement


def test_not_a_number_survives_json():
    """NaN is kept as NaN: a metric that could not be computed is not a metric of 0."""
    read = read_as(Measurement, _sent(Measurement("t", "m", math.nan, stderr=math.nan).to_json()))
    assert math.isnan(read.value)
    assert read.stderr is not None
    assert math.isnan(read.stderr)


@pytest.mark.parametrize("value", [np.float32(1.5), np.float64(1.5), np.array(1.5)])
def test_numpy_scalars_can_be_measured(value):
    """Evaluators need not convert what numpy gives them."""
    assert read_as(Measurement, _sent(Measurement("t", "m", value, stderr=value).to_json())).value == 1.5


@pytest.mark.parametrize("run", [_RUN, _FAILED], ids=["completed", "failed"])
def test_a_run_survives_json(run):
    """Written and read, a run is equal."""
    assert Run.from_json(_sent(run.to_json())) == run


def test_details_that_are_not_finite_do_not_lose_a_run():
    """NaN in what an evaluator leaves beside its numbers is written as a text."""
    run = replace(_RUN, details={"t": {"loss": [math.nan, -math.inf, 1.0]}})
    assert Run.from_json(_sent(run.to_json())).details == {"t": {"loss": ["nan", "-inf", 1.0]}}


def test_a_newer_version_is_refused():
    """A run of a newer llmquant is not guessed at; the line that upgrades is given."""
    newer = {**_RUN.to_json(), "schema_version": SCHEMA_VERSION + 1}
    with pytest.raises(StoreError, match="pip install --upgrade llmquant"):
        Run.from_json(newer)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        [],
        {"schema_version": SCHEMA_VERSION},
        {**_RUN.to_json(), "measurements": [{"value": 1}]},
        {**_RUN.to_json(), "measurements": [{**_RUN.measurements[0].to_json(), "value": "many"}]},
        {**_RUN.to_json(), "failure": {"nope": 1}},
    ],
)
def test_what_is_no_run_is_refused(broken):
    """A file that is no run, or a damaged one, is an error of the store."""
    with pytest.raises(StoreError):
        Run.from_json(broken)
