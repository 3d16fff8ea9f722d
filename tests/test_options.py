"""Options: from what somebody wrote to a checked dataclass, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmquant.errors import OptionError, PluginError, RequestErrors, UnknownNameError
from llmquant.plugins.options import build, dump, input_files, restore
from llmquant.study.call import Call
from llmquant.study.experiment import InputFile

if TYPE_CHECKING:
    from llmquant.study.call import Json


@dataclass(frozen=True)
class Options:
    """One field of each type that options may have."""

    tasks: tuple[str, ...] = ("coqa",)
    bits: Literal[2, 3, 4, 8] = 4
    mode: Literal["fast", "exact", "1"] = "fast"
    damp: float = 0.1
    count: int | None = None
    batch: int | Literal["auto"] = "auto"
    text: str = ""
    fast: bool = False
    settings: Mapping[str, Json] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    calibration: InputFile | None = None


@dataclass(frozen=True)
class Careful:
    """Options that check themselves."""

    even: int

    def __post_init__(self) -> None:
        if self.even % 2:
            raise ValueError(f"even must be even, found {self.even}")
        if self.even == 666:
            raise RuntimeError("a bug")


_WORDS = st.text(max_size=8)
_NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


@given(
    st.builds(
        Options,
        tasks=st.lists(_WORDS, max_size=3).map(tuple),
        bits=st.sampled_from([2, 3, 4, 8]),
        mode=st.sampled_from(["fast", "exact", "1"]),
        damp=_NUMBERS,
        count=st.none() | st.integers(),
        batch=st.integers() | st.just("auto"),
        text=_WORDS,
        fast=st.booleans(),
        settings=st.dictionaries(_WORDS, st.integers() | _WORDS | st.none() | st.lists(st.booleans()), max_size=2),
        rates=st.dictionaries(_WORDS, _NUMBERS, max_size=2),
    )
)
def test_options_survive_the_way_to_a_worker(options):
    """Dumped, sent as JSON and restored, options are equal to what they were."""
    assert restore(Options, json.loads(json.dumps(dump(options)))) == options


@given(
    st.dictionaries(
        st.sampled_from(sorted(Options.__dataclass_fields__)), st.none() | st.integers() | _WORDS | _NUMBERS
    )
)
def test_any_value_is_accepted_or_refused_clearly(given_options):
    """Whatever is written, the outcome is options or a mistake of the request."""
    try:
        options = build(Options, Call("x", (), given_options))
    except (OptionError, RequestErrors):
        return
    assert build(Options, Call("x", (), dump(options))) == options


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("x(coqa)", "tasks", ("coqa",)),
        ("x(coqa, arc_easy)", "tasks", ("coqa", "arc_easy")),
        ("x([coqa, arc_easy])", "tasks", ("coqa", "arc_easy")),
        ("x(tasks=coqa)", "tasks", ("coqa",)),
        ("x(damp=1)", "damp", 1.0),
        ("x(count=null)", "count", None),
        ("x(batch=8)", "batch", 8),
        ("x(text=12)", "text", "12"),
        ("x(mode=1)", "mode", "1"),
        ('x(settings={"a": {"b": [1]}})', "settings", {"a": {"b": [1]}}),
    ],
)
def test_values_become_the_fields_type(text, name, value):
    """Positional values go to the first field; scalars, lists and bare words become what the field holds."""
    assert getattr(build(Options, Call.parse(text)), name) == value


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x(bits=5)", "bits is 5"),
        ("x(bits=4.0)", "bits is 4.0"),
        ("x(bits=true)", "bits is True"),
        ("x(fast=1)", "must be true or false, found 1"),
        ("x(count=1.5)", "must be a whole number"),
        ("x(count=true)", "must be a whole number"),
        ("x(damp=NaN)", "must be a finite number"),
        ("x(damp=1e999)", "must be a finite number"),
        ("x(text=1.10)", "in double quotes"),
        ("x(settings=3)", "must be a table"),
        ('x(rates={"a": "b"})', "rates.a must be a finite number"),
        ("x(calibration=no/such/file)", "cannot read"),
        ("x(calibration=~nobody-here/file)", "cannot read ~nobody-here/file"),
        ("x(batch=some)", "batch is 'some'"),
        ("x(coqa, tasks=coqa)", "given twice"),
    ],
)
def test_wrong_values_are_named(text, complaint):
    """A value that does not fit is refused, with the option's name and what was found."""
    with pytest.raises(OptionError, match=complaint):
        build(Options, Call.parse(text))


def test_a_value_that_is_not_json_is_refused():
    """A date, as TOML and YAML have them, cannot be part of an identity."""
    import datetime

    with pytest.raises(OptionError, match="must be JSON"):
        build(Options, Call("x", (), {"settings": {"since": datetime.date(2026, 1, 1)}}))


def test_an_unknown_option_names_the_nearest():
    """A mistyped option is refused with the one that was meant."""
    with pytest.raises(UnknownNameError, match=r"has no option 'bitz'\nDid you mean 'bits'"):
        build(Options, Call.parse("x(bitz=4)"))


def test_all_mistakes_are_told_at_once():
    """Several wrong options are one error that holds them all."""
    with pytest.raises(RequestErrors) as caught:
        build(Options, Call.parse("x(bits=5, nope=1, damp=high)"))
    assert len(caught.value.errors) == 3


def test_a_missing_option_is_named():
    """An option without a default has to be given."""
    with pytest.raises(OptionError, match="x needs a value for 'even'"):
        build(Careful, Call.parse("x"))


def test_what_a_class_refuses_is_a_mistake_of_the_request():
    """A `ValueError` of the options' own check is reported as an option error."""
    with pytest.raises(OptionError, match="x: even must be even, found 3"):
        build(Careful, Call.parse("x(3)"))


def test_a_bug_in_an_options_class_is_the_plugins():
    """Any other exception of the options' own check is the plugin's fault, not the request's."""
    with pytest.raises(PluginError, match="a bug"):
        build(Careful, Call.parse("x(666)"))


def test_several_values_for_one_are_refused():
    """A field that holds one value takes one positional value."""
    with pytest.raises(OptionError, match=r"takes one positional value \(even\), found 2"):
        build(Careful, Call.parse("x(2, 4)"))


def test_a_plugin_whose_options_have_another_type_is_told():
    """A field type that no string can become is an error of the plugin, with the types that can."""

    @dataclass(frozen=True)
    class Wrong:
        where: Path

    with pytest.raises(PluginError, match=r"where has type .*Path"):
        build(Wrong, Call("x"))


def test_a_presets_options_are_defaults():
    """What is written goes over the preset; what is not is the preset's."""
    options = build(Options, Call.parse("x(bits=8)"), {"bits": 2, "fast": True})
    assert (options.bits, options.fast) == (8, True)


def test_a_file_is_known_by_content(tmp_path):
    """A file option holds its digest; its path stays on this machine."""
    file = tmp_path / "calib.txt"
    file.write_text("text")
    options = build(Options, Call("x", (), {"calibration": str(file)}))
    dumped = dump(options)["calibration"]
    assert input_files(options) == {dumped["digest"]: file}
    assert dumped == {"digest": dumped["digest"], "name": "calib.txt"}
    assert restore(Options, dump(options)) == options


def test_an_empty_file_is_refused(tmp_path):
    """A file with nothing in it is surely a mistake."""
    (tmp_path / "empty.txt").touch()
    with pytest.raises(OptionError, match="is empty"):
        build(Options, Call("x", (), {"calibration": str(tmp_path / "empty.txt")}))


@dataclass(frozen=True)
class _Exits:
    rate: float = float("nan")
    leave: str = ""

    def __post_init__(self) -> None:
        if self.leave:
            raise {"exit": SystemExit, "generator": GeneratorExit, "any": BaseException}[self.leave](0)


def test_a_class_that_exits_or_has_a_default_of_nan_is_the_plugins_fault():
    """Neither ends the program: as with success, or where the run is named."""
    for how in ("exit", "generator", "any"):
        with pytest.raises(PluginError, match="_Exits failed on"):
            build(_Exits, Call("x", (), {"leave": how}))
    with pytest.raises(PluginError, match="an option is nan"):
        dump(build(_Exits, Call("x")))
