"""The grammar of plugin strings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzzing import JSON_VALUES
from llmquant.errors import OptionError
from llmquant.study.call import Call

_NAMES = st.from_regex(r"[A-Za-z0-9][\w.-]{0,12}(/[A-Za-z0-9][\w.-]{0,12})?", fullmatch=True)
_KEYS = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
_ARGS = st.lists(JSON_VALUES, max_size=3).map(tuple)
_CALLS = st.builds(Call, _NAMES, _ARGS, st.dictionaries(_KEYS, JSON_VALUES, max_size=3))


@given(_CALLS)
def test_what_a_call_writes_it_reads(call):
    """Every name, value and option survives being written as a string."""
    assert Call.parse(str(call)) == call


@given(st.text())
def test_any_text_is_a_call_or_a_clear_error(text):
    """No text makes the parser fail in any other way than by `OptionError`."""
    try:
        call = Call.parse(text)
    except OptionError:
        return
    assert Call.parse(str(call)) == call


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("bf16_baseline", Call("bf16_baseline")),
        ("latency()", Call("latency")),
        (" lm_eval( coqa , num_fewshot = 2 ) ", Call("lm_eval", ("coqa",), {"num_fewshot": 2})),
        (
            "bnb_4bit(quant_type=fp4, double_quant=false)",
            Call("bnb_4bit", (), {"quant_type": "fp4", "double_quant": False}),
        ),
        ("mteb(ViDoRe(v1))", Call("mteb", ("ViDoRe(v1)",))),
        ("latency(prompt_tokens=[128, 512])", Call("latency", (), {"prompt_tokens": [128, 512]})),
        ("lm_eval([coqa, arc_easy])", Call("lm_eval", (["coqa", "arc_easy"],))),
        ('x(a={"b": [1, "),"]})', Call("x", (), {"a": {"b": [1, "),"]}})),
        (r'x("ends with \\", b=1)', Call("x", ("ends with \\",), {"b": 1})),
        ("x(NaN, 1e999)", Call("x", ("NaN", "1e999"))),
    ],
)
def test_strings_mean_what_they_look_like(text, call):
    """Names, JSON, bare words and nested brackets are read as written."""
    assert Call.parse(text) == call


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "has no plugin name"),
        ("(coqa)", "has no plugin name"),
        ("lm_eval)", "has no plugin name"),
        ("a=b", "has no plugin name"),
        ("lm_eval(coqa", "does not end with"),
        ("lm_eval(coqa) x", "does not end with"),
        ("lm_eval(coqa))", "do not balance"),
        ("x([1)", "do not balance"),
        ('x("open)', "do not balance"),
        ("x(1,,2)", "empty value"),
        ("x(1,)", "empty value"),
        ("x(a=1, 2)", "follows a named value"),
        ("x(a=1, a=2)", "given twice"),
        ("x(a=)", "has no value"),
        ("x(a='Be brief.')", "single quotes, which would be part of the text"),
        ("x(['a', 'b'])", "single quotes"),
    ],
)
def test_mistakes_are_named(text, complaint):
    """What cannot be read is refused with what is wrong about it."""
    with pytest.raises(OptionError, match=complaint):
        Call.parse(text)


def test_a_table_of_a_study_file_is_a_call():
    """A table's name may itself be a call; its other keys are options."""
    table = {"name": "lm_eval(coqa)", "num_fewshot": 2}
    assert Call.of(table) == Call.of("lm_eval(coqa, num_fewshot=2)")


@pytest.mark.parametrize("table", [{"tasks": ["coqa"]}, {"name": 3}, 7, {"name": "x(a=1)", "a": 2}])
def test_tables_that_are_no_call_are_refused(table):
    """A table without a name, or with an option twice, is an error."""
    with pytest.raises(OptionError):
        Call.of(table)
