"""An installed package that is broken is one row that names the mistake, and nothing else is harmed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_SPEC = "PluginSpec('{kind}', '{name}', 'Mine.', '{options}', '{target}', {more})"
_HOOK = """
from llmquant import PluginSpec, hookimpl

@hookimpl
def llmquant_register({parameters}):
    {body}
"""
_OPTIONS = """
import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

class Color(enum.Enum):
    RED = 1

@dataclass(frozen=True)
class Inner:
    b: int = 1

@dataclass(frozen=True)
class Options:
    {fields}
"""
_HEAVY = """
from llmquant import Measurement, Result

class Heavy:
    def __init__(self, options): ...

    def evaluate(self, subject, ctx):
        yield Result("t", [Measurement("t", "m", 1.0)])
"""


def _spec(name: str, **changes: object) -> str:
    fields = {"kind": "evaluator", "options": "kept_options:Options", "target": "kept_heavy:Heavy", **changes}
    more = ", ".join(f"{key}={value!r}" for key, value in fields.items() if key not in ("kind", "options", "target"))
    return _SPEC.format(name=name, more=more, **fields)


def _hook(body: str, parameters: str = "") -> str:
    return _HOOK.format(body=body, parameters=parameters)


# The body of the hook by package, and the beginning of its row.
HOOKS = {
    "none": ("return None", "llmquant_register returned None"),
    "dictionary": (f"return {{'a': {_spec('a')}}}", "llmquant_register returned {'a': PluginSpec("),
    "cls": ("return PluginSpec", "llmquant_register returned <class"),
    "single": (f"return {_spec('a')}", "llmquant_register returned PluginSpec("),
    "kind": (f"return [{_spec('a', kind='quantiser')}]", "'a': kind is 'quantiser'. Did you mean 'quantizer'?"),
    "presets": (f"return [{_spec('a', presets=['b'])}]", "'a': presets must be a table, found ['b']"),
    "values": (f"return [{_spec('a', presets={'b': 3})}]", "'a': presets.b must be a table, found 3"),
    "requires": (f"return [{_spec('a', requires=['a b'])}]", "'a': requires has 'a b', which is not a valid requ"),
    "spaces": (f"return [{_spec('my plugin')}]", "'my plugin' is not a valid plugin name"),
    "flag": (f"return [{_spec('a', hardware='yes')}]", "'a': hardware must be true or false, found 'yes'"),
}
# Some of what the hook gives is good.
PARTLY = {
    "twice": (f"return [{_spec('twice')}] * 2", "evaluator 'twice' is offered twice by twice"),
    "hole": (f"return [None, {_spec('hole')}]", "llmquant_register returned None (NoneType), not PluginSpec"),
}
# A tuple, a generator, and names and presets that others have.
GOOD = {
    "tuples": f"return ({_spec('tuples')},)",
    "generator": f"yield {_spec('generator')}",
    "builtin": f"return [{_spec('perplexity')}]",
    "one": f"return [{_spec('same', presets={'shared': {}})}]",
    "two": f"return [{_spec('same', presets={'shared': {}})}]",
    "text": f"return [{_spec('text', requires='torch')}]",
}
# Entry point and source by package.
ENTRIES = {
    "gone": ("no_such_module_here", "", "ModuleNotFoundError: No module named 'no_such_module_here'"),
    "attribute": ("in_attribute:hooks", "hooks = 3", "in_attribute:hooks is 3, not a module"),
    "words": ("not a module", "", "the entry point 'not a module' is not a module"),
    "absent": ("in_absent:hooks", "", "AttributeError: module 'in_absent' has no attribute 'hooks'"),
    "exits": ("", "import sys; sys.exit(0)", "SystemExit: 0"),
    "circular": ("", "import circular_two", "ImportError: cannot import name 'llmquant_register' from partially"),
    "empty": ("", "", "in_empty implements no llmquant hook"),
    "argument": ("", _hook("return []", "known"), "PluginValidationError"),
}
# The fields of the options by plugin, and the beginning of what is wrong with them.
FIELDS = {
    "bare": ("a = 3", "a is not a field, and so not an option"),
    "lists": ("a: list[str] = ()", "a has type list[str]"),
    "dictionaries": ("a: dict = None", "a has type <class 'dict'>"),
    "paths": ("a: Path = Path()", "a has type <class 'pathlib.Path'>"),
    "nested": ("a: Inner = Inner()", "a has type <class"),
    "colors": ("a: Color = Color.RED", "a has type <enum"),
    "pairs": ("a: tuple[int, str] = (1, '')", "a has type tuple[int, str]"),
    "mutable": ("a: tuple[int, ...] = []", "cannot be imported: ValueError: mutable default"),
    "factory": ("a: tuple[int, ...] = field(default_factory=list)", "the default of a is []"),
    "raising": ("a: int = field(default_factory=lambda: 1 / 0)", "the default of a failed: ZeroDivisionError"),
    "wrong": ("a: int = 'many'", "the default of a must be a whole number, found 'many'"),
    "nowhere": ("a: 'Nowhere' = 3", "cannot be resolved: NameError: name 'Nowhere' is not defined"),
    "json": ("a: Any = 3", ""),
    "table": ("a: Mapping[str, int] = field(default_factory=dict)", ""),
    "optional": ("a: str | None = None", ""),
    "mixed": ("a: Literal[1, 'two', None] = 'two'", ""),
    "constant": ("KINDS: ClassVar[int] = 3\n    MORE = 4\n    a: int = 3", ""),
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a folder with all these packages, which a process finds as if they were installed."""

    def install(name: str, source: str, entry: str = "") -> None:
        (tmp_path / f"in_{name}.py").write_text(source)
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[llmquant]\nx = {entry or f'in_{name}'}\n")

    for name, (body, *_) in {**HOOKS, **PARTLY}.items():
        install(name, _hook(body))
    for name, body in GOOD.items():
        install(name, _hook(body))
    for name, (entry, source, _) in ENTRIES.items():
        install(name, source, entry)
    for name, (fields, _) in FIELDS.items():
        (tmp_path / f"options_{name}.py").write_text(_OPTIONS.format(fields=fields))
        install(name, _hook(f"return [{_spec(name, options=f'options_{name}:Options')}]"))
    targets = {"lost": {"target": "kept_heavy:Lost"}, "made": {"options": "kept_heavy:Heavy"}}
    targets["preset"] = {"presets": {"many": {"a": "many"}}}
    for name, changes in targets.items():
        install(name, _hook(f"return [{_spec(name, **changes)}]"))
    for kind in ("quantizer", "embedder", "executor"):
        install(f"{kind}s", _hook(f"return [{_spec(f'my_{kind}', kind=kind, options='options_wrong:Options')}]"))
        install(f"no_{kind}s", _hook("return None"))
    (tmp_path / "circular_two.py").write_text("from in_circular import llmquant_register")
    raising = "class Base(BaseException): ...\nraise Base('theirs')"
    asked = "class Asked(type):\n    def __getattribute__(cls, name): 1 / 0\nclass Options(metaclass=Asked): ..."
    for name, source in {"raises": raising, "asked": asked}.items():
        (tmp_path / f"options_{name}.py").write_text(source)
        install(name, _hook(f"return [{_spec(name, options=f'options_{name}:Options')}]"))
    install("damaged", "")
    (tmp_path / "damaged-1.dist-info" / "METADATA").write_bytes(b"Name: damaged\xff")
    (tmp_path / "kept_options.py").write_text(_OPTIONS.format(fields="a: int = 1"))
    (tmp_path / "kept_heavy.py").write_text(_HEAVY)
    return tmp_path


def _llmquant(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    environment["LLMQUANT_CACHE"] = str(site / "cache")
    command = [sys.executable, "-m", "llmquant.cli.app", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_every_broken_package_is_a_row_and_the_others_are_listed(site: Path):
    """Hooks, entry points, specs and options of every kind of plugin: each row names the plugin and the field."""
    listed = json.loads(_llmquant(site, "plugins", "--json").stdout)
    rows = {row["package"]: row for row in listed["plugins"] if row["package"] != "llmquant"}
    broken = {row["package"].removesuffix(":x"): row["reason"] for row in listed["broken"]}
    expected = {name: reason for name, (_, reason) in {**HOOKS, **PARTLY}.items()}
    expected |= {name: reason for name, (*_, reason) in ENTRIES.items()}
    expected |= {f"no-{kind}s": "llmquant_register returned None" for kind in ("quantizer", "embedder", "executor")}
    expected["unknown"] = "UnicodeDecodeError: 'utf-8' codec can't decode byte 0xff"  # its name cannot be read
    assert broken.keys() == expected.keys()
    assert {name: broken[name][: len(reason)] for name, reason in expected.items()} == expected
    for name in (*GOOD, *PARTLY, *(name for name, (_, wrong) in FIELDS.items() if not wrong)):
        assert rows[name]["broken"] == "", name
    assert {rows[name]["name"] for name in ("builtin", "one", "two")} == {"builtin/perplexity", "one/same", "two/same"}
    assert (rows["one"]["presets"], rows["two"]["presets"]) == (["one/shared"], ["two/shared"])
    wrong = {name: words for name, (_, words) in FIELDS.items() if words}
    for kind in ("quantizer", "embedder", "executor"):
        wrong[f"{kind}s"] = f"{kind}s/my_{kind}: options_wrong:Options: the default of a must"
    wrong |= {"lost": "kept_heavy:Lost cannot be imported: kept_heavy.py defines no 'Lost'"}
    wrong |= {"raises": "cannot be imported: Base: theirs", "asked": "cannot be read: ZeroDivisionError"}
    wrong |= {"made": "made/made: kept_heavy:Heavy is not a dataclass"}
    wrong |= {"preset": "preset many: a must be a whole number, found 'many'"}
    for name, words in wrong.items():
        assert words in rows[name]["broken"], name


def test_a_check_prints_its_lines_and_nothing_else(site: Path):
    """What other code prints is in a file that standard error names; a broken package is the row of the list."""
    shown = _llmquant(site, "plugins", "check", "none")
    assert (shown.returncode, shown.stderr) == (1, "")
    assert shown.stdout == "broken: none:x: llmquant_register returned None. Return a list of PluginSpec.\n"
    shown = _llmquant(site, "plugins", "check", "my_executor")
    assert shown.returncode == 1
    first, *lines, last = shown.stdout.splitlines()
    assert first == "executor executors/my_executor 1: Mine."
    assert " 1 failed, " in last  # what depends on the options is skipped
    assert all(re.match("  (pass|skip|FAIL)  |        ", line) for line in lines)
    assert re.fullmatch(r"(messages of other libraries: \S+\n)?", shown.stderr)


def test_a_study_runs_unharmed_beside_every_broken_package(site: Path, tiny_model: Path):
    """A built-in evaluator and one of a good package among them run in a worker, with nothing about the others."""
    where = ("--store", str(site / "store"), "--on", "local(device=cpu, threads=1)", "--json", "--quiet")
    done = _llmquant(site, "compare", str(tiny_model), "-q", "fp32_baseline", "-e", "memory", "-e", "tuples", *where)
    assert (done.returncode, done.stderr) == (0, "")
    rows = json.loads(done.stdout)["rows"]
    assert {row["status"] for row in rows} == {"completed"}
    assert {row["metric"]: row["value"] for row in rows}["m"] == 1.0
