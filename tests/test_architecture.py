"""The shape of the code: five files from the command to the metric, rooms with names, modules of one subject."""

from __future__ import annotations

import ast
from itertools import pairwise
from pathlib import Path

import pytest

import llmquant

ROOT = Path(llmquant.__file__).parent
# Each with the function that the one before calls, and what of the next one it names: a call, or a string where a
# process or a plugin begins.
SPINE = {
    "cli/app.py": "compare",
    "api.py": "run_study",
    "running/scheduler.py": "run",
    "running/worker.py": "work",
    "evaluators/lm_eval/evaluator.py": "evaluate",
}
METRIC = "simple_evaluate"
# Where a process begins, a module is named as a string; where a plugin begins, a spec does.
BY_STRING = {
    "running/scheduler.py": ("submit", "executors/worker_process.py", "llmquant.running.worker"),
    "running/worker.py": ("construct", "builtin.py", "llmquant.evaluators.lm_eval.evaluator:LmEval"),
}


def functions(file: str) -> dict[str, list[ast.AST]]:
    """Return a file's functions and methods by name."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.FunctionDef):
            found.setdefault(node.name, []).append(node)
    return found


def reached(file: str, start: str) -> set[str]:
    """Return the names that a function and those of the same file that it calls use."""
    known, names, waiting = functions(file), set[str](), [start]
    while waiting:
        for body in known[waiting.pop()]:
            for node in ast.walk(body):
                name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None)
                if name is not None and name not in names:
                    names.add(name)
                    waiting += [name] if name in known else []
    return names


def imports(file: str) -> set[str]:
    """Return the modules of the package that a file imports, also inside functions."""
    tree = ast.parse((ROOT / file).read_text())
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize(("file", "following"), list(pairwise(SPINE)))
def test_each_file_of_the_spine_calls_the_next(file: str, following: str):
    """By a call, or by a string where a process or a plugin begins."""
    names = reached(file, SPINE[file])
    if file in BY_STRING:
        call, place, text = BY_STRING[file]
        assert call in names
        assert text in (ROOT / place).read_text()
    else:
        assert SPINE[following] in names


def test_the_spine_ends_at_the_metric():
    """The evaluator itself calls lm-eval."""
    assert METRIC in reached("evaluators/lm_eval/evaluator.py", "evaluate")


def test_nothing_returns_to_a_file_that_was_left():
    """No file of the spine imports one above it."""
    files = list(SPINE)
    for place, file in enumerate(files):
        above = {"llmquant." + other.removesuffix(".py").replace("/", ".") for other in files[:place]}
        assert not above & imports(file), file


def test_the_top_holds_few_modules():
    """What is not the entrance is in a room."""
    assert sorted(path.stem for path in ROOT.glob("*.py")) == [
        "__init__",
        "__main__",
        "api",
        "builtin",
        "builtin_embedders",
        "errors",
    ]


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_a_module_fits_in_a_head(file: Path):
    """It has at most 400 lines, and its name does not repeat the room's."""
    assert len(file.read_text().splitlines()) <= 400
    assert not file.stem.startswith(f"{file.parent.name}_")
