"""What appears in the signature of a public function can be imported from llmquant."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmquant as lq


def _imported(module: str) -> dict[str, str]:
    """Return the names that a module takes from llmquant, under TYPE_CHECKING too, and where from."""
    tree = ast.parse(Path(sys.modules[module].__file__).read_text())
    return {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmquant.")
        for alias in node.names
    }


def _defined(module: str) -> set[str]:
    tree = ast.parse(Path(sys.modules[module].__file__).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def _functions(public: object) -> Iterator[object]:
    if inspect.isclass(public):
        yield from (
            value for name, value in vars(public).items() if inspect.isfunction(value) and not name.startswith("_")
        )
    elif inspect.isfunction(public):
        yield public


@pytest.mark.parametrize("name", [name for name in lq.__all__ if name not in ("errors", "executors")])
def test_what_a_public_function_takes_and_returns_is_exported(name):
    """So that a caller can annotate their own code, and make the arguments."""
    for function in _functions(getattr(lq, name)):
        known = {**_imported(function.__module__), **dict.fromkeys(_defined(function.__module__), function.__module__)}
        for annotation in map(str, function.__annotations__.values()):
            for node in ast.walk(ast.parse(annotation, mode="eval")):
                if isinstance(node, ast.Name) and node.id in known and not node.id.startswith("_"):
                    assert node.id in lq.__all__, f"{function.__qualname__}: {annotation}"
