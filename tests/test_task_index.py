"""The index of lm-eval's tasks: every name it has, without importing it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmquant.catalogs import lm_eval as lm_eval_tasks
from llmquant.catalogs.lm_eval import Entry, installed_tasks, scan
from llmquant.catalogs.lm_eval_yaml import Function, read_task
from llmquant.errors import MissingDependencyError, UnknownNameError
from llmquant.storage.cache import Cache


@pytest.fixture(scope="session")
def index(tmp_path_factory):
    return installed_tasks(Cache(tmp_path_factory.mktemp("cache")))


def write(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return root


@pytest.mark.slow
def test_the_index_is_lm_evals_own(index):
    """Names, kinds, files and the members of tags are those of lm-eval's task manager, which parses everything."""
    from lm_eval.tasks import TaskManager

    theirs = {
        name: (
            entry.kind.name.removeprefix("PY_").lower(),
            entry.yaml_path.relative_to(index.root).as_posix() if entry.yaml_path else "",
            tuple(sorted(entry.tags)) if entry.kind.name == "TAG" else None,
        )
        for name, entry in TaskManager().task_index.items()
    }
    ours = {
        name: (entry.kind, entry.file, tuple(sorted(entry.members)) if entry.kind == "tag" else None)
        for name, entry in index.entries.items()
    }
    assert ours == theirs


def test_neither_lm_eval_nor_torch_is_imported():
    """A laptop without torch can check the name of a task."""
    code = """
import sys, tempfile
from pathlib import Path
from llmquant.storage.cache import Cache
from llmquant.catalogs.lm_eval import installed_tasks
assert "coqa" in installed_tasks(Cache(Path(tempfile.mkdtemp()))).entries
print([name for name in ("lm_eval", "torch", "transformers", "datasets") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_folder_is_read_once_a_version(tmp_path, monkeypatch):
    """The second time the index comes from the cache."""
    monkeypatch.setattr(lm_eval_tasks, "_known", {})
    first = installed_tasks(Cache(tmp_path))
    lm_eval_tasks._known.clear()
    monkeypatch.setattr(lm_eval_tasks, "scan", lambda root: pytest.fail("read again"))
    assert installed_tasks(Cache(tmp_path)) == first


def test_a_missing_lm_eval_is_said_with_its_install_line(tmp_path, monkeypatch):
    """Without lm-eval no name can be checked, and that is an error, not a pass."""
    monkeypatch.setattr(lm_eval_tasks.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r'pip install "llmquant\[local\]"'):
        installed_tasks(Cache(tmp_path))


def test_an_unknown_name_brings_the_nearest(index):
    """A typing mistake is answered with what was meant."""
    with pytest.raises(UnknownNameError, match="'coqa'"):
        index.find("cooqa")


def test_a_group_needs_the_files_of_all_its_members(index):
    """MMLU's 57 subjects are found through its four groups, and each has its file in the list."""
    assert len(index.leaves("mmlu")) == 57
    files = index.files("mmlu")
    assert files == sorted(files)
    assert {index.root / index.find(leaf).file for leaf in index.leaves("mmlu")} <= set(files)


def test_a_tag_stands_for_its_tasks(index):
    """A tag has no file of its own."""
    assert index.leaves("ai2_arc") == ["arc_challenge", "arc_easy"]
    assert {file.name for file in index.files("ai2_arc")} == {"arc_challenge.yaml", "arc_easy.yaml"}


def test_every_way_to_write_a_name_is_read(tmp_path):
    """Quoted or not, from an include, in a block list or in brackets, with comments."""
    root = write(
        tmp_path,
        {
            "_base": "tag: inherited\noutput_type: generate_until\n",
            "a.yaml": 'include: _base\n"task": "a"  # a comment\n',
            "b.yaml": "task: b\ntag:\n  # none\n  - one\n  - two\ndoc_to_text: |\n  task: not this\n",
            "c.yaml": "task: c\ntag: [one, 'three']\n",
            "d.yaml": "task: d\ninclude:\n- _base\ntag: own\n",
        },
    )
    entries = scan(root)
    assert {name for name, entry in entries.items() if entry.kind == "task"} == {"a", "b", "c", "d"}
    tags = {name: entry.members for name, entry in entries.items() if entry.kind == "tag"}
    assert tags == {"inherited": ("a",), "one": ("b", "c"), "two": ("b",), "three": ("c",), "own": ("d",)}


def test_groups_are_followed_into_groups_defined_on_the_spot(tmp_path):
    """Members may be words, tables with overrides, or groups inside the group."""
    text = "group: g\ntask:\n- a\n- task: b\n  num_fewshot: 3\n- group: inner\n  task:\n  - c\n  - task: d\n"
    assert scan(write(tmp_path, {"g.yaml": text}))["g"] == Entry("group", "g.yaml", ("a", "b", "inner", "c", "d"))


def test_the_first_file_with_a_name_has_it(tmp_path):
    """Of two files with one name lm-eval takes the first in the order of paths."""
    assert scan(write(tmp_path, {"b/x.yaml": "task: x\n", "a/x.yaml": "task: x\n"}))["x"].file == "a/x.yaml"


def test_what_cannot_be_read_is_left_out(tmp_path):
    """A broken YAML, an include that is not there and a circle of includes hide nothing else."""
    files = {
        "broken.yaml": "task: [\n",
        "gone.yaml": "include: nowhere\ntask: gone\n",
        "one.yaml": "include: two.yaml\ntask: one\n",
        "two.yaml": "include: one.yaml\ntask: two\n",
        "whole.yaml": "task: whole\n",
    }
    assert set(scan(write(tmp_path, files))) == {"whole"}


def test_functions_stay_names(index):
    """Reading a task's configuration runs no code of it."""
    configuration = read_task(index.files("coqa")[0])
    assert configuration["doc_to_text"] == Function("utils", "doc_to_text", index.root / "coqa")
    assert configuration["doc_to_text"].file.is_file()
