"""Experiments: what names a run, and what does not."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmquant.errors import StoreError
from llmquant.study.experiment import (
    Digest,
    Documents,
    Experiment,
    InputFile,
    ModelUse,
    PluginUse,
    Variant,
    canonical_json,
    digest_of,
)

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
_OPTIONS = st.dictionaries(st.text(), _JSON, max_size=4)
_PLUGINS = st.builds(PluginUse, plugin=st.text(), version=st.text(), options=_OPTIONS, label=st.text())
_EXPERIMENTS = st.builds(
    Experiment,
    variant=st.builds(
        Variant,
        model=st.builds(ModelUse, source=st.text(), digest=st.text(), flags=st.lists(st.text(), max_size=2).map(tuple)),
        quantizer=_PLUGINS,
    ),
    evaluator=_PLUGINS,
    documents=st.none() | st.builds(Documents, limit=st.none() | st.integers(1, 2**62)),
    seed=st.integers(0, 2**62),
    hardware=st.none() | st.text(),
    reference=st.none() | st.builds(Digest, st.text()),
)

_EXPERIMENT = Experiment(
    Variant(
        ModelUse("org/model", "commit:abc", ("trust_remote_code",)),
        PluginUse("llmquant/bnb_4bit", "1", {"quant_type": "nf4", "double_quant": True}, "bnb_4bit_nf4"),
    ),
    PluginUse(
        "llmquant/lm_eval", "1", {"tasks": ["coqa"], "text": {"digest": "sha256:1", "name": "a.txt"}}, "lm_eval(coqa)"
    ),
    Documents(100),
    seed=0,
    hardware="L40S",
    reference=Digest("sha256:2"),
)


def _with_evaluator(**changes) -> Experiment:
    return replace(_EXPERIMENT, evaluator=replace(_EXPERIMENT.evaluator, **changes))


def _with_model(**changes) -> Experiment:
    model = replace(_EXPERIMENT.variant.model, **changes)
    return replace(_EXPERIMENT, variant=replace(_EXPERIMENT.variant, model=model))


def _with_quantizer(**changes) -> Experiment:
    quantizer = replace(_EXPERIMENT.variant.quantizer, **changes)
    return replace(_EXPERIMENT, variant=replace(_EXPERIMENT.variant, quantizer=quantizer))


@given(_EXPERIMENTS)
def test_an_experiment_survives_json(experiment):
    """Written and read, it is equal and names the same run."""
    read = Experiment.from_json(json.loads(json.dumps(experiment.to_json())))
    assert read == experiment
    assert read.run_id == experiment.run_id


@given(_OPTIONS)
def test_the_order_of_options_does_not_matter(options):
    """Two ways to list the same options are one experiment."""
    backwards = dict(reversed(options.items()))
    assert _with_evaluator(options=options).run_id == _with_evaluator(options=backwards).run_id


@pytest.mark.parametrize(
    "other",
    [
        _with_model(source="./a/copy/of/model"),
        _with_quantizer(label="bnb_4bit(quant_type=nf4)"),
        _with_evaluator(label="coqa"),
        _with_evaluator(options={"text": {"digest": "sha256:1", "name": "moved.txt"}, "tasks": ["coqa"]}),
    ],
)
def test_names_and_paths_are_no_part_of_identity(other):
    """What things are called, and where they lie, asks for the same run."""
    assert other.run_id == _EXPERIMENT.run_id


@pytest.mark.parametrize(
    "other",
    [
        _with_model(digest="commit:def"),
        _with_model(flags=()),
        _with_quantizer(plugin="other/bnb_4bit"),
        _with_quantizer(version="2"),
        _with_quantizer(options={"quant_type": "fp4", "double_quant": True}),
        _with_evaluator(options={"tasks": ["coqa"], "text": {"digest": "sha256:9", "name": "a.txt"}}),
        _with_evaluator(options={**_EXPERIMENT.evaluator.options, "num_fewshot": 0}),
        replace(_EXPERIMENT, documents=Documents(101)),
        replace(_EXPERIMENT, documents=Documents(None)),
        replace(_EXPERIMENT, documents=None),
        replace(_EXPERIMENT, seed=1),
        replace(_EXPERIMENT, hardware="A100"),
        replace(_EXPERIMENT, hardware=None),
        replace(_EXPERIMENT, reference=None),
    ],
)
def test_what_changes_results_changes_the_run(other):
    """Another model, version, option, document set, seed, machine or reference is another run."""
    assert other.run_id != _EXPERIMENT.run_id


def test_flags_are_a_set():
    """The order in which settings are on does not matter."""
    assert _with_model(flags=("a", "b")).run_id == _with_model(flags=("b", "a")).run_id


def test_a_run_id_is_a_file_name():
    """It is 20 hexadecimal digits, equal in every process and version: stores depend on it."""
    assert re.fullmatch(r"[0-9a-f]{20}", _EXPERIMENT.run_id)
    assert _EXPERIMENT.run_id == "a61854f23a4f4b49c2f2"


@given(_JSON, _JSON)
def test_equal_values_have_equal_digests(one, other):
    """Digests are equal exactly when the canonical JSON is."""
    assert (digest_of(one) == digest_of(other)) == (canonical_json(one) == canonical_json(other))


def test_nan_has_no_digest():
    """A number that equals nothing can name nothing."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of(float("nan"))


def test_a_file_is_its_content(tmp_path):
    """Two files of equal content are one input; another byte makes another."""
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    a, b, c = (InputFile.read(tmp_path / name) for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("broken", [{}, {"model": None}, {**_EXPERIMENT.to_json(), "evaluator": {"nope": 1}}, []])
def test_what_is_no_experiment_is_refused(broken):
    """A record with a field missing or unknown is an error of the store."""
    with pytest.raises(StoreError, match="an experiment cannot be read"):
        Experiment.from_json(broken)
