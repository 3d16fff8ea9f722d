"""Study files of every format say the same, and every mistake in one is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmquant.errors import OptionError, RequestError, RequestErrors, UnknownNameError
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest
from llmquant.study.study import Study

STUDY = Study(
    (ModelRequest("./smollm2"), ModelRequest("org/name@main", trust_remote_code=True)),
    (Call("bf16_baseline"), Call("bnb_4bit", (), {"quant_type": "fp4", "double_quant": False})),
    (Call("lm_eval", ("coqa",), {"gen_kwargs": {"max_gen_toks": 32}}), Call("latency", (), {"prompt_tokens": [128]})),
    "bf16_baseline",
    None,
    7,
)


WRITTEN = {
    "toml": """
models = ["./smollm2", { source = "org/name@main", trust_remote_code = true }]
quantizers = ["bf16_baseline", { name = "bnb_4bit", quant_type = "fp4", double_quant = false }]
evaluators = ['lm_eval(coqa, gen_kwargs={"max_gen_toks": 32})', "latency(prompt_tokens=[128])"]
baseline = "bf16_baseline"
limit = "all"
seed = 7
""",
    "yaml": """
models: [./smollm2, {source: org/name@main, trust_remote_code: true}]
quantizers: [bf16_baseline, {name: bnb_4bit, quant_type: fp4, double_quant: false}]
evaluators:
- lm_eval(coqa, gen_kwargs={"max_gen_toks":32})
- latency(prompt_tokens=[128])
baseline: bf16_baseline
limit: all
seed: 7
""",
    "json": json.dumps(STUDY.to_json()),
}


@pytest.mark.parametrize("ending", ["toml", "yaml", "json"])
def test_every_format_says_the_same(tmp_path: Path, ending: str):
    """Every field is read, in every format; what `to_json` returns is such a file."""
    (tmp_path / f"study.{ending}").write_text(WRITTEN[ending])
    assert Study.from_file(tmp_path / f"study.{ending}") == STUDY


def test_tables_with_a_name_are_calls(tmp_path: Path):
    """A quantizer may be a table with its options."""
    file = tmp_path / "study.toml"
    file.write_text('models = ["./m"]\nquantizers = [{ name = "gptq_4bit_g128", calibration = "calib.txt" }]\n')
    assert Study.from_file(file).quantizers == (Call("gptq_4bit_g128", (), {"calibration": "calib.txt"}),)


def test_every_mistake_is_told_at_once():
    """A misspelt key, a wrong limit and a nameless quantizer come in one error."""
    with pytest.raises(RequestErrors) as caught:
        Study.from_json({"model": ["x"], "limit": "ten", "quantizers": [{"bits": 4}]})
    text = str(caught.value)
    assert "'models'" in text
    assert "limit" in text
    assert "bits" in text


def test_a_misspelt_key_gets_its_nearest_name():
    """One mistake is raised by itself."""
    with pytest.raises(UnknownNameError, match="evaluatrs") as caught:
        Study.from_json({"models": ["x"], "evaluatrs": []})
    assert "evaluators" in caught.value.hint


def test_yaml_tags_construct_nothing(tmp_path: Path):
    """The safe loader refuses Python objects."""
    file = tmp_path / "study.yaml"
    file.write_text("models: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(OptionError, match="cannot be parsed"):
        Study.from_file(file)


def test_an_unknown_ending_names_the_known_ones(tmp_path: Path):
    """A format is never guessed."""
    file = tmp_path / "study.ini"
    file.write_text("")
    with pytest.raises(OptionError) as caught:
        Study.from_file(file)
    assert ".toml" in caught.value.hint


# -- one meaning, or a refusal -----------------------------------------------------------------------------------------


def _study(tmp_path: Path, ending: str, text: str | bytes) -> Study:
    file = tmp_path / f"study.{ending}"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return Study.from_file(file)


@pytest.mark.parametrize("value", ['"false"', '"true"', "0", "1", "no", "[]", "null", "1.0", "off", "''", "FaLsE"])
@pytest.mark.parametrize("flag", ["trust_remote_code", "allow_pickle"])
def test_a_flag_that_runs_code_is_true_or_false(tmp_path: Path, flag: str, value: str):
    """A quoted "false", a number or YAML's no is refused by name and never taken for yes."""
    with pytest.raises(OptionError, match=rf"models\[0\]\.{flag} must be true or false, found") as caught:
        _study(tmp_path, "yaml", f"models:\n- source: ./m\n  {flag}: {value}\n")
    assert caught.value.hint == "Write true or false, without quotes."


@pytest.mark.parametrize("ending", ["toml", "json"])
def test_a_quoted_false_is_refused_in_every_format(tmp_path: Path, ending: str):
    """What YAML refuses, TOML and JSON refuse."""
    text = {
        "toml": 'models = [{ source = "m", trust_remote_code = "false" }]',
        "json": '{"models": [{"source": "m", "trust_remote_code": "false"}]}',
    }[ending]
    with pytest.raises(OptionError, match=r"models\[0\]\.trust_remote_code must be true or false, found 'false'"):
        _study(tmp_path, ending, text)


@pytest.mark.parametrize("flag", ["trust_remote_code", "allow_pickle"])
@pytest.mark.parametrize("value", ["false", 0, 1, None])
def test_a_flag_is_checked_in_python_too(flag: str, value):
    """The same object is made from Python, with the same check."""
    with pytest.raises(OptionError, match="must be true or false"):
        ModelRequest("m", **{flag: value})


@pytest.mark.parametrize(
    "text",
    [
        "limit = true",
        "limit = 1.0",
        'limit = "100"',
        "limit = 1e2",
        "limit = 2019-05-01",
        "limit = [1]",
        "limit = 10000000000000000000000",
        "seed = true",
        "seed = 0.0",
        'seed = "0"',
        "seed = nan",
        "seed = 12:30:00",
        "baseline = 1",
        "baseline = true",
        "models = 'm'",
        "models = [1]",
        "models = [[]]",
        "models = [{ source = 1 }]",
        "models = [{ trust_remote_code = true }]",
        "quantizers = 'a'",
        "quantizers = [1]",
        "quantizers = [{ bits = 4 }]",
        "quantizers = [{ name = 'a', since = 2019-05-01 }]",
        "quantizers = [{ name = 'a', rate = inf }]",
        "evaluators = { a = 1 }",
        "vectors = 3",
        "vectors = { dims = 3 }",
        "vectors = { dims = [true] }",
        "vectors = { dims = [1.0] }",
        "vectors = { dims = [0] }",
        "vectors = { rescores = [-1] }",
        "vectors = { codecs = ['int7'] }",
        "vectors = { codecs = [8] }",
        "vectors = { dim = [3] }",
        "schema = true",
        "schema = 1.0",
        "schema = 2",
        "[executor]\nname = 'local'",
    ],
)
def test_a_value_of_another_type_is_refused_by_name(tmp_path: Path, text: str):
    """Nothing is converted: each field of a study, nested ones too, is of its type or named with what was found."""
    models = "" if text.startswith("models") else "models = ['m']\n"
    with pytest.raises(RequestError) as caught:
        _study(tmp_path, "toml", models + text)
    assert text.partition(" =")[0].strip("[").partition("]")[0].rstrip("s") in str(caught.value)


@pytest.mark.parametrize(
    "written", ["no", "on", "12:30", "0x10", "010", "0o7", "1_000", "2019-05-01", ".5", "+1", "<<"]
)
def test_what_only_some_yaml_takes_for_something_else_is_text(tmp_path: Path, written: str):
    """A bare word is what was written, and where a number or a flag belongs it is refused."""
    study = _study(tmp_path, "yaml", f"models: [m]\nquantizers: [{{name: x, option: {written}}}]\n")
    assert study.quantizers[0].options == {"option": written}
    with pytest.raises(OptionError, match="limit must be a whole number"):
        _study(tmp_path, "yaml", f"models: [m]\nlimit: {written}\n")


@pytest.mark.parametrize(
    ("ending", "text"),
    [
        ("yaml", "models: [m]\nlimit: 3\nlimit: 4\n"),
        ("yaml", "models: [{source: m, source: n}]\n"),
        ("json", '{"models": ["m"], "limit": 3, "limit": 4}'),
        ("json", '{"models": [{"source": "m", "source": "n"}]}'),
        ("toml", "models = ['m']\nlimit = 3\nlimit = 4\n"),
        ("json", '{"models": ["m"], "quantizers": ["x(a={\\"b\\": 1, \\"b\\": 2})"]}'),
    ],
)
def test_a_key_given_twice_is_refused(tmp_path: Path, ending: str, text: str):
    """The second value never silently wins."""
    with pytest.raises(OptionError, match=r"twice|overwrite"):
        _study(tmp_path, ending, text)


_LAUGHS = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" if i else "a0: &a0 [lol]" for i in range(12))


@pytest.mark.parametrize(
    ("ending", "text", "reason"),
    [
        ("yaml", _LAUGHS, "anchors and aliases are not read"),
        ("yaml", "models: &a [*a]\n", "anchors and aliases are not read"),
        ("yaml", "models: " + "[" * 60_000, "nested too deeply"),
        ("yaml", "".join(" " * i + "a:\n" for i in range(200)), "nested too deeply"),
        ("yaml", "- " * 5000, "nested too deeply"),
        ("yaml", "? " * 5000, "nested too deeply|must be a text"),
        ("yaml", "models: [" + "a, " * 100_000 + "]", "larger than"),
        ("yaml", "models: [m]\n---\nmodels: [n]\n", "more than one document"),
        ("yaml", "models: !!set {m}\n", "the tag tag:yaml.org,2002:set is not read"),
        ("yaml", "", "empty"),
        ("json", "[" * 60_000, "nested too deeply"),
        ("json", '{"models": ' + '{"a":' * 10_000, "nested too deeply"),
        ("json", '{"limit": NaN}', "NaN is not a number"),
        ("json", '{"limit": 1e999}', "too large"),
        ("toml", "models = " + "[" * 60_000, "nested too deeply"),
        ("toml", "models." + "a." * 20_000 + "b = 1", "nested too deeply"),
        ("toml", "[" + "'a' . " * 10_000 + "b]", "nested too deeply"),
        ("toml", b"models = ['\xff']", "cannot be parsed"),
        ("json", b"\xff\xfe", "cannot be parsed"),
    ],
)
def test_a_file_that_is_a_bomb_or_ambiguous_is_one_error(tmp_path: Path, ending: str, text: str | bytes, reason: str):
    """Aliases, nesting, size, tags, second documents and numbers without end are refused at once."""
    with pytest.raises(OptionError, match=reason):
        _study(tmp_path, ending, text)


def test_a_byte_order_mark_is_no_part_of_a_study(tmp_path: Path):
    """Editors on Windows write one."""
    for ending, text in (("toml", "models = ['m']"), ("yaml", "models: [m]"), ("json", '{"models": ["m"]}')):
        assert _study(tmp_path, ending, b"\xef\xbb\xbf" + text.encode()).models == (ModelRequest("m"),)


@pytest.mark.parametrize(
    "source", ["no", "1e5", "12:30", "0x10", "1_000", "null", "~", "2019-05-01", "é\n ü", "*a", ""]
)
def test_texts_that_look_like_something_else_survive(tmp_path: Path, source: str):
    """In quotes, a model of any name is read as that name."""
    quoted = json.dumps(source)
    texts = {"toml": f"models = [{quoted}]", "yaml": f"models: [{quoted}]", "json": f'{{"models": [{quoted}]}}'}
    for ending, text in texts.items():
        assert _study(tmp_path, ending, text.encode()).models == (ModelRequest(source),)


@pytest.mark.parametrize("wrong", [{"limit": True}, {"limit": 1.0}, {"limit": "3"}, {"seed": None}, {"baseline": 3}])
def test_python_gets_the_same_refusals(wrong):
    """`llmquant.compare` makes the same object, and so the same checks."""
    with pytest.raises(OptionError, match=f"{next(iter(wrong))} must be"):
        Study.of("m", **wrong)


@pytest.mark.parametrize(
    "text", ["x(a=" + "[" * 100 + "]" * 100 + ")", "x(" + "a" * 70_000 + ")", "x(\ud800)", 'x(a="\\ud800")']
)
def test_a_call_without_end_or_with_half_a_character_is_refused(text: str):
    """Deep brackets, long texts and what cannot be written again."""
    with pytest.raises(OptionError):
        Call.parse(text)


def test_python_tells_every_mistake_at_once():
    """What is not a model, a call and a number come in one error, as from a file."""
    with pytest.raises(RequestErrors) as caught:
        Study.of([3], [{"bits": 4}], limit=1.5)
    assert [word in str(caught.value) for word in ("models[0]", "quantizers[0]", "limit")] == [True] * 3
