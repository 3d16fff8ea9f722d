"""The documentation: its commands exist, its plugins build, its code is the code that is tested."""

from __future__ import annotations

import doctest
import inspect
import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import MISSING, dataclass, fields
from fractions import Fraction
from itertools import pairwise
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import pytest
import typer

import llmquant as lq
from llmquant.cli.app import app, main
from llmquant.plugins.embedder import Embedder, OpenEmbedder
from llmquant.plugins.field_types import coerce, field_types
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import Hooks, RunEvent
from llmquant.results.report.summary import summary
from llmquant.results.rows import rows
from llmquant.stats import documents_needed, reachable_margin
from llmquant.stats.verdicts import Verdict
from llmquant.study.call import Call
from llmquant.study.embedding import EmbedderInfo
from llmquant.study.study import Study
from made_up import realistic_study, small_study, store_of

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")),
]
EXAMPLE = ROOT / "tests" / "plugins" / "llmquant-example"
OURS = [plugin for plugin in registry().plugins if plugin.package == "llmquant"]


def _blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return a page's blocks of a language: title and text."""
    found = re.findall(rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```$', page.read_text(), re.MULTILINE | re.DOTALL)
    return [(title, text) for title, text in found]


def _words() -> Iterator[tuple[str, list[str]]]:
    """Yield every command of every page, in words, without variables set for it."""
    for page in PAGES:
        for _, text in _blocks(page, "sh"):
            for part in re.split(r"\n|&&", text):
                words = shlex.split(part, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    del words[0]
                if words:
                    yield page.name, words


COMMANDS = [(page, words[1:]) for page, words in _words() if Path(words[0]).name == "llmquant"]
OTHERS = [(page, words) for page, words in _words() if Path(words[0]).name != "llmquant"]


UsageError = typer.BadParameter.__base__  # typer keeps click to itself


def _parse(words: list[str]) -> None:
    command, rest = typer.main.get_command(app), list(words)
    while rest and hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(" ".join(words), rest)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else None)
def test_commands_parse(page, words):
    """Every command, subcommand and option that a page shows is one that the program has."""
    _parse(words)


def test_every_command_has_a_section():
    """The page of the command line has a heading for each command."""
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "cli.md").read_text(), re.MULTILINE)
    assert set(typer.main.get_command(app).commands) <= {heading.lower() for heading in headings}


def test_every_option_of_a_command_is_on_the_page():
    """The page of the command line has each option, in its short or its long form."""
    page = (ROOT / "docs" / "cli.md").read_text()
    waiting = [("llmquant", typer.main.get_command(app))]
    for name, command in waiting:
        waiting += [(f"{name} {each}", below) for each, below in getattr(command, "commands", {}).items()]
        for option in command.params:
            shown = [spelling for spelling in option.opts if re.search(rf"(?<![\w-]){spelling}(?![\w-])", page)]
            assert shown or option.param_type_name == "argument" or option.hidden, (name, option.opts)


def _run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.argv", ["llmquant", *words])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def _runs_nothing(words: list[str]) -> bool:
    if words[0] == "plugins" and len(words) > 1:
        return words[-1] in registry().names("quantizer")  # not in a package that a tutorial makes
    return words[0] in ("report", "plugins", "cache", "doctor") or (words[0] == "plan" and "-t" not in words)


QUICK = {" ".join(words): words for _, words in COMMANDS if _runs_nothing(words)}


@pytest.mark.parametrize("words", QUICK.values(), ids=list(QUICK))
def test_commands_that_run_nothing_end_well(words, made_up_store, tiny_model, tmp_path, monkeypatch, capsys):
    """Each of these commands ends with code 0, with a tiny model and a made-up store in place of the reader's."""
    pytest.importorskip("pyarrow")
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    lq.Comparison.from_store("results").save_json("study.json")
    model = str(tiny_model)
    given = [model if word in ("MODEL", "./my-checkpoint", "meta-llama/Llama-3.2-1B") else word for word in words]
    assert _run(given, monkeypatch) == 0, capsys.readouterr().err


@pytest.mark.parametrize("words", ["compar ./model", "compare ./model --baselin x", "report a b c", "compare"])
def test_commands_that_the_program_does_not_have_are_found(words):
    """A wrong command, option or number of arguments does not parse."""
    with pytest.raises((KeyError, UsageError)):
        _parse(words.split())


def test_example_plugins_of_commands_build(tmp_path, monkeypatch):
    """Every built-in quantizer, evaluator and executor that a command names is accepted as it is written."""
    monkeypatch.chdir(tmp_path)
    known = {kind: registry().names(kind) for kind in ("quantizer", "evaluator", "executor")}
    seen = 0
    for _, words in COMMANDS:
        for flag, value in pairwise(words):
            kind = {"-q": "quantizer", "-e": "evaluator", "--on": "executor"}.get(flag)
            # The checkpoint that `prequantized` needs is the reader's own.
            if kind and Call.parse(value).name in {*known[kind]} - {"prequantized"}:
                seen += 1
                for name in re.findall(r"[\w./-]+\.(?:jsonl|txt)", value):
                    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / name).write_text("{}")
                for name in re.findall(r"\./(\w+)(?=[,)])", value):
                    (tmp_path / name).mkdir(exist_ok=True)
                    (tmp_path / name / "one.txt").write_text("a page")
                registry().choose(kind, Call.parse(value))
    assert seen > 10


def test_study_files_are_read():
    """Every study file that a page shows is one, and its plugins build."""
    studies = [tomllib.loads(text) for page in PAGES for title, text in _blocks(page, "toml") if "models" in text]
    assert studies
    for data in studies:
        study = Study.from_json(data)
        for kind, calls in (("quantizer", study.quantizers), ("evaluator", study.evaluators)):
            for call in calls:
                registry().choose(kind, call)


@pytest.mark.parametrize("plugin", OURS, ids=lambda plugin: plugin.full_name)
def test_every_plugin_preset_and_option_is_documented(plugin):
    """What can be asked for is on the page of its kind, with the option's default."""
    text = (ROOT / "docs" / f"{plugin.spec.kind}s.md").read_text()
    for name in plugin.names:
        assert f"`{name}`" in text or f"{name}(" in text
    section = text.split(f"\n## `{plugin.spec.name}`\n")[1].split("\n## ")[0]
    cls = registry().options_class(plugin)
    for option in fields(cls):
        (row,) = [line for line in section.splitlines() if line.startswith(f"| `{option.name}` |")]
        written = row.split("|")[2].strip().strip("`")
        if written:
            (value,) = Call.parse(f"x({written})").args
            assert coerce(value, field_types(cls)[option.name], option.name) == option.default
        else:
            assert option.default is MISSING


def test_presets_are_what_the_table_says():
    """The call beside each preset asks for the same thing as the preset."""
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+\))` \|", (ROOT / "docs" / "quantizers.md").read_text(), re.MULTILINE)
    assert len(rows) > 5
    for preset, call in rows:
        chosen = [registry().choose("quantizer", Call.parse(text)).use.identity() for text in (preset, call)]
        assert chosen[0] == chosen[1], preset


def test_the_tutorials_code_is_the_tested_package():
    """Each titled block of the plugin page is the file of that name, to the byte."""
    page = ROOT / "docs" / "plugins.md"
    blocks = {title: text for language in ("python", "toml") for title, text in _blocks(page, language) if title}
    sources = {str(file.relative_to(EXAMPLE)) for file in EXAMPLE.rglob("*.py") if file.name != "__init__.py"}
    assert set(blocks) == {*sources, "pyproject.toml"}
    for title, text in blocks.items():
        assert text == (EXAMPLE / title).read_text(), title


def test_every_hook_is_documented():
    """The plugin page shows each hook that a package may implement."""
    text = (ROOT / "docs" / "plugins.md").read_text()
    for name in vars(Hooks):
        if name.startswith("llmquant_"):
            assert f"def {name}(" in text


@pytest.mark.parametrize("page", [page for page in PAGES if _blocks(page, "pycon")], ids=lambda page: page.name)
def test_sessions_print_what_the_page_shows(page):
    """Each interactive session of a page, run from top to bottom, prints exactly what stands below each line."""
    session = "\n".join(text for _, text in _blocks(page, "pycon"))
    test = doctest.DocTestParser().get_doctest(session, {}, page.name, str(page), 0)
    assert doctest.DocTestRunner().run(test).failed == 0


def _stand_in(function: Callable[..., Any], answer: Callable[[], Any]) -> Callable[..., Any]:
    """Return a function that takes what `function` takes, checks names and options of plugins, and returns `answer`."""

    def called(*args: Any, **options: Any) -> Any:
        given = inspect.signature(function).bind(*args, **options).arguments
        for kind in ("quantizer", "evaluator", "executor"):
            wanted = given.get(kind, given.get(f"{kind}s", ()))
            for one in [wanted] if isinstance(wanted, str) else wanted if isinstance(wanted, list) else []:
                registry().choose(kind, Call.parse(one))
        return answer()

    return called


@pytest.fixture
def made_up_store(tmp_path, monkeypatch):
    """Make a study of two variants in the store `results` of the present folder."""
    monkeypatch.chdir(tmp_path)
    return store_of(small_study(), tmp_path / "results")


SOURCES = [page for page in PAGES if _blocks(page, "python") and page.name != "plugins.md"]


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: page.name)
def test_code_runs(page, made_up_store, monkeypatch):
    """Each page's Python code runs from top to bottom, where studies of real models are replaced by a made-up one."""
    pytest.importorskip("pandas")
    for name in ("compare", "import_results"):
        monkeypatch.setattr(lq, name, _stand_in(getattr(lq, name), lambda: lq.Comparison.from_store("results")))
    for name in ("load", "evaluate"):
        monkeypatch.setattr(lq, name, _stand_in(getattr(lq, name), list))
    monkeypatch.setattr("llmquant.executors.modal.executor.find_spec", bool)  # nothing is started on Modal
    names: dict[str, Any] = {}
    for _, text in _blocks(page, "python"):
        if ".plot()" in text:
            pytest.importorskip("matplotlib")
        exec(text, names)
    assert "lq" in names


def test_skeletons_of_plugins_run():
    """The skeleton of an embedder has the parts of the contract, and the hooks take the events that exist."""
    skeleton, hooks = [text for title, text in _blocks(ROOT / "docs" / "plugins.md", "python") if not title][3:]
    names: dict[str, Any] = {"dataclass": dataclass, "Literal": Literal}
    names |= {"Embedder": Embedder, "EmbedderInfo": EmbedderInfo}
    names["torch"] = SimpleNamespace(nn=SimpleNamespace(Module=object))
    exec(skeleton, names)
    info = names["MineOptions"]("").info(SimpleNamespace(config={"hidden_size": 8}))
    assert info.dims == (8, 4)
    for written, contract in ((names["Mine"], Embedder), (names["OpenMine"], OpenEmbedder)):
        for name, function in vars(written).items():
            if callable(function) and not name.startswith("__"):
                theirs = inspect.signature(getattr(contract, name)).parameters
                assert list(inspect.signature(function).parameters) == list(theirs), name
    exec(hooks, names)
    event = RunEvent("study", "run", "model", "quantizer", "evaluator", "completed")
    for name in ("llmquant_run_started", "llmquant_run_finished"):
        assert hasattr(Hooks, name)
        names[name](event)


def test_other_blocks_are_of_a_known_kind():
    """Every block is run, parsed or compared by a test; only drawings and output are text, except written calls."""
    text = [page.name for page in PAGES for _ in _blocks(page, "text")]
    assert Counter(text) == {
        "architecture.md": 2,  # drawings
        "cli.md": 1,  # calls, see below
        "plugins.md": 1,  # the package's files
        "store-and-results.md": 1,  # the store's files
        "README.md": 1,  # output of the demo
    }
    for page in PAGES:
        kinds = re.findall(r"^```(\w*)", page.read_text(), re.MULTILINE)
        assert {*kinds} <= {"sh", "python", "pycon", "toml", "json", "diff", "text", ""}, page.name
        for _, json_text in _blocks(page, "json"):
            json.loads(json_text)


def test_written_calls_name_plugins_that_exist(tmp_path, monkeypatch):
    """The calls on the page of the command line build."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("a text")
    ((_, text),) = _blocks(ROOT / "docs" / "cli.md", "text")
    for call in map(Call.parse, text.splitlines()):
        kinds = [kind for kind in ("quantizer", "evaluator") if call.name in registry().names(kind)]
        assert len(kinds) == 1, call.name
        registry().choose(kinds[0], call)


def test_other_commands_name_what_exists():
    """Extras that are installed are declared, scripts that are run exist, and every other program is a known one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {
        "git",
        "cd",
        ".",
        "vllm",
        "modal",
        "jupyter",
        "lm_eval",
        "llama-perplexity",
        "llama-server",
        "pytest",
        "nox",
        "patch",
    }
    for page, words in OTHERS:
        program = Path(words[0]).name or words[0]
        if program == "pip":
            for extras in re.findall(r"(?<![\w-])llmquant\[([\w,]+)\]", " ".join(words)):
                assert {*extras.split(",")} <= {*project["optional-dependencies"]}, page
        elif program.startswith("python"):
            assert words[1] == "-m" or (ROOT / words[1]).is_file(), page
        else:
            assert program in known, (page, program)


def test_the_words_of_a_report_are_in_the_glossary():
    """Every verdict is a term of the glossary, and so is every word of a report's headings."""
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    study = realistic_study()
    tables = summary(rows(study.record, study.runs, study.read), study.record)
    titles = [table.column(place).title for table in tables for place in range(len(table.columns))]
    assert len(titles) > 10
    for term in get_args(Verdict):
        assert f"\n| {term} |" in glossary
    for word in {word for title in titles for word in re.findall(r"[a-z]{2,}", title.lower())}:
        assert word in glossary.lower(), word


@pytest.mark.parametrize("command", ["demo", "plan"])
def test_the_words_of_output_are_in_the_glossary(command, tiny_model, monkeypatch, capsys):
    """Every word of the headings in a command's output, without names of variants and texts, is in the glossary."""
    glossary = (ROOT / "docs" / "glossary.md").read_text().lower()
    ((_, output),) = _blocks(ROOT / "README.md", "text")
    if command == "plan":
        assert _run(["plan", str(tiny_model), "-q", "bf16_baseline", "-e", "memory"], monkeypatch) == 0
        output = capsys.readouterr().out
    tables = [part.split("──")[0] for part in output.split("\n\n") if "──" in part]
    headings = re.sub(r"\S+[._-]\S+", "", " ".join([*tables, "Recommendation"]))  # no names of variants and texts
    words = set(re.findall(r"[a-z/]{2,}", headings.lower()))
    assert len(words) > 8
    assert [word for word in sorted(words) if not re.search(rf"\b{re.escape(word)}", glossary)] == []


# Names of makers, models and packages in the texts of plugins.
_PROPER = {
    "AMD",
    "EPYC",
    "EleutherAI",
    "GPTQModel",
    "GME",
    "Qwen2",
    "VL",
    "CLIP",
    "SigLIP",
    "NetraEmbed",
    "ColNetraEmbed",
}


@pytest.mark.parametrize("command", ["demo", "report", "plan", "plugins"])
def test_the_terms_of_output_are_in_the_glossary(command, tiny_model, monkeypatch, capsys):
    """Abbreviations, number formats, and what a footnote explains before a colon, without names of variants."""
    glossary = (ROOT / "docs" / "glossary.md").read_text()
    ((_, output),) = _blocks(ROOT / "README.md", "text")
    if command == "report":
        study = realistic_study()
        output = lq.Comparison(study.record, study.runs, study.read).to_text(explain=True)
    elif command != "demo":
        asked = {"plan": ["plan", str(tiny_model), "-q", "bnb_4bit_nf4", "-e", "memory"], "plugins": ["plugins"]}
        assert _run(asked[command], monkeypatch) == 0
        output = capsys.readouterr().out
    text = re.sub(r"presets:.*|\S*[_/(=]\S*|\S+-\S*\d\S*|\w+Error|Each fits on: .*", "", output)
    short = re.findall(r"\b(?:\w*[A-Z]\w*[A-Z]\w*|(?:int|float|nf|fp|p)\d+)\b", text)
    notes = [line[2:] for line in re.sub(r"\n  +", " ", text).splitlines() if line.startswith(("· ", "- "))]
    explained = [term for note in notes for term in re.findall(r"(?:^|[;.] )([A-Za-z][a-z ]{1,25}):", note)]
    assert short or explained
    missing = {term for term in {*short} - _PROPER if not re.search(rf"\b{re.escape(term)}\b", glossary)}
    assert missing | {term for term in explained if term.lower() not in glossary.lower()} == set()


def test_numbers_in_tables_are_right():
    """Sums of bits per weight are right, and the tables of documents and margins are what the program computes."""
    sums = re.findall(r"([\d.]+ \+ [\d/+ .]*\d) = ([\d.]*\d)", (ROOT / "docs" / "quantized-weights.md").read_text())
    assert len(sums) > 5
    for left, right in sums:
        total = sum(float(Fraction(part.strip())) for part in left.split("+"))
        assert round(total, len(right.partition(".")[2])) == float(right), left
    page = (ROOT / "docs" / "documents-needed.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    first, second = (place for place, row in enumerate(rows) if row[0].startswith("answers"))
    for place, row in enumerate(rows):
        if row[0].endswith("%"):
            spread = sqrt(float(row[0][:-1]) / 100)
            for head, cell in zip(rows[second if place > second else first][1:], row[1:], strict=True):
                number = float(re.sub(r"[^\d.]", "", head))
                if place > second:
                    assert float(cell) == round(100 * reachable_margin(int(number), spread, largest=1), 1)
                else:
                    assert int(cell.replace(",", "")) == documents_needed(number / 100, spread, largest=1)


def test_every_page_is_in_the_navigation_and_on_the_home_page():
    """No page of the documentation is reached only by chance."""
    navigation, home = (ROOT / "mkdocs.yml").read_text(), (ROOT / "docs" / "index.md").read_text()
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert f": {page.name}\n" in navigation, page.name
        assert page.name == "index.md" or f"]({page.name})" in home, page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Relative links name files, and headings of pages, that exist."""
    for target, heading in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        file = page.parent / target if target else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}, heading


def test_the_ten_line_plugins_run_as_written(tiny_model, tmp_path, monkeypatch, capsys):
    """A quantizer and an evaluator of at most ten lines each, saved and run as the page says, on a tiny model."""
    quantizer, evaluator, notebook = [text for title, text in _blocks(ROOT / "docs" / "plugins.md", "python")][:3]
    for name, text in (("my_rtn", quantizer), ("my_loss", evaluator)):
        assert len([line for line in text.splitlines() if line]) <= 10
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry(), "plugins", list(registry().plugins))
    exec(notebook.replace("HuggingFaceTB/SmolLM2-135M", str(tiny_model)), {})
    (plain, layers, loss), (method, replaced, worse) = map(str.split, capsys.readouterr().out.splitlines())
    assert (plain, layers, method, replaced) == ("none", "0", "roundtonearest", "14")
    assert float(worse) != float(loss)
