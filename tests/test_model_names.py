"""Models of one name are told apart wherever a study names its models."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from llmquant.cli.announce import announcement
from llmquant.cli.plan_tables import plan_tables
from llmquant.planning.resolve import resolve
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.results.preview import preview
from llmquant.results.rows import rows
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelUse
from llmquant.study.model_names import model_names
from llmquant.study.study import Study


@pytest.mark.parametrize(
    ("sources", "names"),
    [
        (["./a/model", "./b/other"], ["model", "other"]),
        (["./a/model", "./b/model"], ["a/model", "b/model"]),
        (["/x/a/1/model", "/x/b/1/model", "./c/d"], ["a/1/model", "b/1/model", "d"]),
        (["model", "old/model"], ["model", "old/model"]),
        (["model", "org/model"], ["model", "org/model"]),
    ],
)
def test_a_name_has_as_many_folders_as_tell_it_apart(sources: list[str], names: list[str]):
    """The last part of a path alone where it is unique; a Hub id as it is."""
    models = [ModelUse(source, f"sha256:{number}") for number, source in enumerate(sources)]
    assert list(model_names(models).values()) == names


def test_a_hub_id_keeps_its_name():
    """Only folders and files are named by parts of their paths."""
    models = [ModelUse("org/model", "commit:1"), ModelUse("./x/model", "sha256:2")]
    assert list(model_names(models).values()) == ["org/model", "model"]


def test_a_study_of_two_models_of_one_name_names_both(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """In the lines before it, the plan, predicted sizes, its title and the rows of its tables."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    folders = [shutil.copytree(tiny_model, tmp_path / name / "model") for name in "ab"]
    (folders[1] / "generation_config.json").unlink()
    study = Study.of(folders, "bf16_baseline", "memory")
    with open_executor("local(device=cpu)") as executor:
        planned = resolve(study, registry(), Cache(tmp_path / "cache"), executor)
        lines = announcement(planned, executor, str(tmp_path / "results"))
    record = planned.record
    for name in ("a/model", "b/model"):
        assert any(line.startswith(f"{name}: weights") for line in lines)
    assert record.title == "a/model, b/model"
    assert [row.model for row in rows(record, {}, None)] == ["a/model", "b/model"]
    assert [table.heading for table in plan_tables(record, {}, None) if table.rows] == ["a/model", "b/model"]
    assert list(preview(study, executor="local(device=cpu)", store=tmp_path / "s").sizes) == ["a/model", "b/model"]
