"""The command line takes what people type from habit, and names the nearest right thing otherwise."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

import llmquant
from llmquant.cli.announce import announcement
from llmquant.cli.app import app, main
from llmquant.cli.inspect import wrapped
from llmquant.cli.options import study_of
from llmquant.cli.plan_tables import size_tables
from llmquant.cli.study_list import study_tables
from llmquant.errors import ModelError, OptionError, StoreError
from llmquant.models.info import inspect_model
from llmquant.planning import defaults
from llmquant.planning.estimate import SizeEstimate, estimate_size
from llmquant.planning.resolve import resolve
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.counting import counted
from llmquant.study.experiment import InputFile, ModelRequest, VectorGrid
from llmquant.study.folders import near
from llmquant.study.record import StudyRecord
from llmquant.study.study import Study
from made_up import BASELINE, experiment

_NF4 = "bnb_4bit(quant_type=nf4, double_quant=false)"


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable:
    """Run the command line in this process, in a folder of its own; return its exit code, output and errors."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmquant", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return call


def _study(models=("m",), quantizers=None, evaluators=None, tasks=None) -> Study:
    rest = (VectorGrid(), "all", 0, None, None, False, False)
    return study_of(list(models), quantizers, evaluators, tasks, *rest)


def test_the_module_is_the_program():
    """`python -m llmquant --version` prints the version."""
    command = [sys.executable, "-m", "llmquant", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"llmquant {llmquant.__version__}\n"


@pytest.mark.parametrize("words", [("-h",), ("compare", "-h"), ("cache", "list", "-h")])
def test_h_is_help(cli: Callable, words):
    """Every command answers -h with its usage."""
    code, out, _ = cli(*words)
    assert code == 0
    assert "Usage: " in out


@pytest.mark.parametrize("words", [(), ("cache",), ("plugins",)])
def test_what_a_command_does_is_not_cut(cli: Callable, words):
    """Each line of a list of commands ends with its sentence."""
    _, out, _ = cli(*words, "--help")
    lines = out.partition("Commands:")[2].split("\n\n")[0].splitlines()
    described = list(filter(None, lines))
    assert described
    assert all(line.endswith(".") and not line.endswith("...") for line in described)


@pytest.mark.parametrize(
    ("option", "begun", "found"),
    [
        ("-q", "bnb_4bit_n", {"bnb_4bit_nf4"}),
        ("-q", "bf16_baseline,bnb_8", {"bf16_baseline,bnb_8bit"}),
        ("-e", "memo", {"memory"}),
        ("-t", "arc_e", {"arc_easy"}),
    ],
)
def test_a_shell_completes_names(option, begun, found, monkeypatch, tmp_path):
    """What bash is given for a name that was begun, alone or after a comma."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path))
    command = typer.main.get_command(app).commands["compare"]
    (taken,) = (each for each in command.params if option in each.opts)
    completions = taken.shell_complete(typer.Context(command), begun)
    assert found <= {each.value for each in completions}
    assert all(each.value.startswith(begun) for each in completions)


@pytest.mark.parametrize(
    ("words", "found"),
    [("report mine --study b", "b2"), ("report --study a", ""), ("attach --store mine a", "a1")],
)
def test_a_shell_completes_study_ids(words, found, tmp_path, monkeypatch, capsys):
    """Those of the store on the command line, or of the default one; nothing where there is no store."""
    record = StudyRecord("", "title", (experiment(BASELINE, "memory"),), {})
    for number in ("a1", "b2"):
        Store(tmp_path / "mine").write_study(number, replace(record, study_id=number).to_json())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_LLMQUANT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"llmquant {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    with pytest.raises(SystemExit):
        app(prog_name="llmquant", args=[])
    assert capsys.readouterr().out.strip() == found


def test_commas_outside_brackets_separate():
    """Values with commas between them are those of a repeated option; commas of a call's options stay."""
    once = _study(quantizers=[f"bf16_baseline,{_NF4}"], evaluators=["memory, latency"], tasks=["coqa,arc_easy"])
    again = _study(quantizers=["bf16_baseline", _NF4], evaluators=["memory", "latency"], tasks=["coqa", "arc_easy"])
    assert once == again
    assert once.quantizers[1].options == {"quant_type": "nf4", "double_quant": False}


@pytest.mark.parametrize("call", ["bnb_4bit_nf4", Call("bnb_4bit_nf4"), {"name": "bnb_4bit_nf4"}])
def test_one_plugin_is_a_list_of_one(call):
    """A string, a call or a table instead of a list counts as one."""
    assert Study.of("m", call, call) == Study.of(["m"], [call], [call])


@pytest.mark.parametrize(
    ("name", "option"), [("bnb_4bit_nf4", "-q"), (_NF4, "-q"), ("memory", "-e"), ("lm_eval(coqa)", "-e")]
)
def test_a_plugin_in_the_place_of_a_model_is_recognized(cli: Callable, name, option):
    """The message names the option that belongs before it."""
    code, _, err = cli("compare", name)
    assert code == 2
    assert f"Put {option} before it" in err


@pytest.mark.parametrize("model", [("--model", "./tiny"), ("--model=./tiny",), ("-m", "./tiny"), ("./tiny",)])
@pytest.mark.parametrize("task", [("--tasks", "coqa"), ("--tasks=coqa",), ("--task", "coqa"), ("-t", "coqa")])
def test_other_spellings_of_options_are_taken(model, task):
    """--model and --tasks mean what they mean elsewhere."""
    command = typer.main.get_command(app).commands["compare"]
    taken = command.make_context("compare", [*task, *model, "--store", "x"]).params
    assert (taken["models"], taken["task"], taken["store"]) == (["./tiny"], ["coqa"], "x")


def test_plurals_are_taken(cli: Callable):
    """--quantizers and --evaluators, as the arguments are called in Python."""
    command = typer.main.get_command(app).commands["compare"]
    taken = command.make_context("compare", ["m", "--quantizers", "a,b", "--evaluators=c"]).params
    assert (taken["quantizer"], taken["evaluator"]) == (["a,b"], ["c"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compare m --device cpu", 'there is no option --device\nWrite --on "local(device=cpu)".'),
        ("compare m --batch-size=4", "there is no option --batch-size\nWrite it in the evaluator"),
        ("plan m -o x", "there is no option -o\nWrite --store FOLDER"),
        ("compare m --seed abc", "seed is 'abc'\nGive a whole number."),
        ("compare m --timeout 10m", "timeout is '10m'\nGive a number of seconds."),
        ("compare m --budget nan", "budget is 'nan'\nGive a number of dollars."),
        ("cache prune --unused-days soon", "unused days is 'soon'\nGive a number of days."),
        ("demo --questions many", "questions is 'many'\nGive a whole number."),
        ("compare m -q ,", "an empty value stands between commas in ','"),
        ("compare https://huggingface.co/gpt2", "is an address\nWrite the Hub id: gpt2"),
    ],
)
def test_what_was_written_is_named(cli: Callable, words, message):
    """The message has what was found, and how the same is written here."""
    code, _, err = cli(*words.split())
    assert code == 2
    assert message in err


def test_an_empty_value_is_named(cli: Callable):
    """As a shell leaves it where a variable is empty."""
    for option in ("-q", "-e", "-t"):
        code, _, err = cli("compare", "m", option, "")
        assert (code, f"the value of {option} is empty" in err) == (2, True)


@pytest.mark.parametrize("words", [("help",), ("help", "compare"), ("help", "cache", "list")])
def test_help_and_version_are_commands_too(cli: Callable, words):
    """`help COMMAND` is `COMMAND --help`, and `version` is `--version`."""
    assert cli(*words) == cli(*words[1:], "--help")
    assert cli("version") == cli("--version")


def test_other_spellings_are_not_listed(cli: Callable):
    """--help shows one name for each option."""
    _, out, _ = cli("compare", "--help")
    assert "--tasks" not in out
    assert "--model " not in out


def _all_commands(group: Any, *path: str) -> Iterator[tuple[str, ...]]:  # Any: typer's own copy of click
    for name, command in group.commands.items():
        yield from _all_commands(command, *path, name) if hasattr(command, "commands") else [(*path, name)]


@pytest.mark.parametrize("words", [*_all_commands(typer.main.get_command(app))], ids=" ".join)
def test_help_names_values_by_their_meaning(cli: Callable, words):
    """No command's help shows a Python type or braces."""
    _, out, _ = cli(*words, "--help")
    assert not re.search(r"[<{}]|\[str|\b(TEXT|INTEGER|FLOAT)\b", out)


def test_near_paths_are_suggested(tmp_path):
    """For a missing model, file, store or study, and for a path whose folder is mistyped; not for one that is there."""
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "text.txt").touch()
    with pytest.raises(ModelError, match=f"Did you mean {tmp_path / 'results'}"):
        inspect_model(ModelRequest(str(tmp_path / "resluts")), Cache(tmp_path / "cache"))
    with pytest.raises(StoreError, match=f"Did you mean {tmp_path / 'results'}"):
        Store.existing(tmp_path / "result")
    with pytest.raises(OptionError, match=f"Did you mean {tmp_path / 'results' / 'text.txt'}"):
        InputFile.read(tmp_path / "results" / "tekst.txt")
    with pytest.raises(OptionError, match=f"Did you mean {tmp_path / 'results' / 'text.txt'}"):
        Study.from_file(tmp_path / "results" / "text.toml")
    assert near(tmp_path / "result" / "text.txt") == f"Did you mean {tmp_path / 'results'}?"
    assert near(tmp_path / "results") == ""
    assert near(tmp_path / "something else") == ""


def test_a_tab_in_yaml_is_named(tmp_path):
    """The message has the line, and what YAML wants."""
    file = tmp_path / "study.yaml"
    file.write_text("models:\n  - m\nquantizers:\n\t- bf16_baseline\n")
    with pytest.raises(OptionError, match=r"(?s)line 4, .*YAML indents with spaces"):
        Study.from_file(file)


def test_a_file_is_no_store(cli: Callable):
    """A CSV given to report, and a file given as a store to write to."""
    Path("rows.csv").write_text("model,variant\n")
    code, _, err = cli("report", "rows.csv")
    assert code == 2
    assert "rows.csv is a file, and a store is a folder" in err
    assert "--format json" in err
    with pytest.raises(StoreError, match="It is a file, and a store is a folder"):
        Store("rows.csv").write_study("a" * 12, {})


def test_a_damaged_study_is_listed_too(tmp_path):
    """`report --list` shows its id and what is wrong, beside the others."""
    (tmp_path / "studies" / "abc").mkdir(parents=True)
    (tmp_path / "studies" / "abc" / "study.json").write_text("{}")
    (table,) = study_tables(Store(tmp_path))
    ((name, *_, state),) = table.rows
    assert name == "abc"
    assert "study.json" in state


def test_every_place_names_the_defaults(cli: Callable):
    """What is compared and measured without -q and -e stands in the help, the documentation and the docstring."""
    _, out, _ = cli("compare", "--help")
    docs = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
    names = [name for name in vars(defaults) if name.endswith(("_QUANTIZERS", "_EVALUATORS"))]
    assert len(names) == 5
    for name in names:
        said = ", ".join(str(call).removeprefix("llmquant/") for call in getattr(defaults, name))
        assert all(said in " ".join(text.split()) for text in (out, docs, llmquant.compare.__doc__))
    assert "llmquant/bnb_8bit" in map(str, defaults.DEFAULT_QUANTIZERS)


def _size(name: str, gibibytes: int | None, gpus: tuple[str, ...] = (), refused: str = "") -> SizeEstimate:
    size = None if gibibytes is None else gibibytes * 2**30
    return SizeEstimate(name, size, size, gpus, refused)


def test_a_reason_stands_once_with_all_that_it_excludes():
    """Predicted sizes are rows; what has none is named below, by reason."""
    sizes = [_size("a", 1), _size("b", None, refused="no"), _size("c", None, refused="no"), _size("d", None)]
    table, without = size_tables({"m": sizes})
    assert table.rows == (("a", "1,024.0", "1,024"),)
    assert without.footnotes == ("b, c: no.", "d: the size is not predicted by this quantizer.")


@pytest.mark.parametrize(("second", "columns"), [(("T4", "L4"), 3), (("L4",), 4)])
def test_gpus_are_a_column_where_they_differ(second, columns):
    """If every quantizer fits on the same GPUs, one line says so."""
    (table,) = size_tables({"m": [_size("a", 1, ("T4", "L4")), _size("b", 9, second)]})
    assert [len(row) for row in table.rows] == [columns] * 2 == [len(table.columns)] * 2
    assert ("Each fits on: T4, L4" in table.footnotes) == (columns == 3)


def test_plan_shows_the_size_of_the_file_where_it_differs(tiny_model: Path, tmp_path: Path):
    """Only what runs dequantized has a size of its own where it is served."""
    info = inspect_model(ModelRequest(str(tiny_model)), Cache(tmp_path))
    names = ("bf16_baseline", "gguf_q8_0", "compressed_w8a8")
    found = [estimate_size(info, registry().choose("quantizer", Call(name)), "cpu") for name in names]
    (table,) = size_tables({"m": found})
    assert table.columns[3] == "served MiB"
    assert [row[1] for row in table.rows][:2] == ["0.2", "0.2"]
    assert [row[3] for row in table.rows] == ["", "0.1", "0.1"]
    assert any("Served: " in note for note in table.footnotes)


def test_a_study_names_what_it_compares(tiny_model: Path, tmp_path: Path):
    """The first lines have every variant and every evaluator, with one word for one."""
    study = Study.of(tiny_model, ["bnb_4bit_nf4", "bf16_baseline"], "memory")
    with open_executor("local(device=cpu)") as executor:
        planned = resolve(study, registry(), Cache(tmp_path), executor)
        lines = announcement(planned, executor, str(tmp_path / "results"))
    assert lines[0].startswith("2 experiments on ")
    assert lines[1:3] == ["2 variants: bf16_baseline, bnb_4bit_nf4", "1 evaluator: memory"]


def test_messages_wrap_between_words_and_commands_stay_whole():
    """In a terminal a long line is broken at spaces and indented on; a command at its end is not broken."""
    words = "note: several words with-a-hyphen and ./a/path/that/is/longer/than/a/line/of/the/terminal"
    assert wrapped(words, 30).splitlines() == [
        "note: several words",
        "with-a-hyphen and",
        "./a/path/that/is/longer/than/a/line/of/the/terminal",
    ]
    assert wrapped("  - one two three", 12).splitlines() == ["  - one two", "  three"]
    command = 'pip install "llmquant[local]" and more words'
    assert wrapped(f"gguf is not installed. Run: {command}", 25).splitlines() == [
        "gguf is not installed.",
        f"Run: {command}",
    ]
    assert wrapped("", 30) == ""


def test_quantize_refuses_a_gguf_file_that_llama_cpp_could_not_read(cli: Callable, tiny_model: Path, tmp_path: Path):
    """A tokenizer of the model's own is the reason; neither a file nor a folder is left."""
    for out in (tmp_path / "out", tmp_path / "out.gguf"):
        code, _, err = cli("quantize", tiny_model, "-q", "gguf_q4_0", "-o", out, "--device", "cpu")
        assert code == 2
        assert "its pre-tokenizer is none of those known from llama.cpp" in " ".join(err.split())
        assert not out.exists()


@pytest.mark.parametrize(("number", "text"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers"), (1200, "1,200 layers")])
def test_a_count_agrees_with_its_noun(number, text):
    """One thing has no s."""
    assert counted(number, "layer") == text
