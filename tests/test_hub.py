"""The Hub, by a stand-in on this machine that speaks to the real client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest

from hub_server import COMMIT, Hub


@pytest.fixture
def hub(tiny_model):
    """Serve the tiny model as org/tiny, and as a gated one."""
    hub = Hub()
    hub.repos = {"org/tiny": tiny_model, "org/gated": tiny_model}
    hub.gated.add("org/gated")
    yield hub
    hub.close()


@pytest.fixture
def ask(tmp_path):
    """Return a function that inspects a model in a fresh process whose Hub is the stand-in."""

    def run(hub, source, *, then="", **environment):
        code = (
            "import sys; from pathlib import Path; from llmquant.storage.cache import Cache\n"
            "from llmquant.errors import ModelError; from llmquant.study.experiment import ModelRequest\n"
            "from llmquant.models.info import inspect_model\n"
            "try:\n"
            f"    info = inspect_model(ModelRequest({source!r}), Cache(Path({str(tmp_path / 'cache')!r})))\n"
            f"    print(info.digest, info.parameters, info.note)\n    {then or 'pass'}\n"
            "except ModelError as error: print(type(error).__name__, error)\n"
        )
        known = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf")}
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**clean, **known, **environment},
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        return done.stdout

    return run


def test_a_hub_model_is_known_by_its_commit_without_its_weights(hub, ask):
    """The header comes by a range request; the weights stay where they are."""
    assert ask(hub, "org/tiny").startswith(f"commit:{COMMIT} ")
    assert not any(line.startswith("HEAD") and "model.safetensors" in line for line in hub.requested)


def test_files_that_lack_what_their_index_says_are_refused_before_they_are_fetched(hub, ask, tiny_model, tmp_path):
    """Their headers come by range requests, and are compared with the index."""
    from safetensors.numpy import load_file, save_file

    folder = hub.repos["org/tiny"] = tmp_path / "sharded"
    shutil.copytree(tiny_model, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, folder / file)
    assert ask(hub, "org/tiny").startswith(f"commit:{COMMIT} ")
    index.write_text(json.dumps({"weight_map": {**files, "model.norm.bias": "model-1.safetensors"}}))
    said = ask(hub, "org/tiny", HF_HOME=str(tmp_path / "hf2"))
    assert "model.safetensors.index.json says that model-1.safetensors holds 'model.norm.bias'" in said
    save_file(tensors, folder / "model-1.safetensors")
    assert "both hold" in ask(hub, "org/tiny", HF_HOME=str(tmp_path / "hf3"))
    assert not list(tmp_path.glob("hf*/**/model-*.safetensors"))


def test_what_was_downloaded_works_offline(hub, ask):
    """After one download the cache answers when the Hub does not, and says so."""
    fetch = "from llmquant.models.hub import download; download(info.repo, info.commit, info.weight_files, code=False)"
    online = ask(hub, "org/tiny", then=fetch).split()
    hub.close()
    offline = ask(hub, "org/tiny")
    assert offline.split()[:2] == online[:2]
    assert "the Hub was not asked" in offline


def test_offline_without_a_copy_says_what_to_do(hub, ask):
    """The reason and the cure are in the message."""
    said = ask(hub, "org/tiny", HF_HUB_OFFLINE="1")
    assert said.startswith("ModelError")
    assert "not in the local Hugging Face cache" in said
    assert "Go online once" in said


def test_a_gated_model_names_the_login(hub, ask):
    """Who may not read it learns how to."""
    assert "hf auth login" in ask(hub, "org/gated")


def test_a_missing_model_is_said(hub, ask):
    """A misspelt name is no traceback."""
    assert "the Hub has no model 'org/missing'" in ask(hub, "org/missing")


def test_a_missing_revision_is_said(hub, ask):
    """The revision is named."""
    assert "has no branch, tag or commit 'nope'" in ask(hub, "org/tiny@nope")


def test_a_local_folder_of_the_same_name_is_pointed_at(hub, ask, tmp_path):
    """A bare name is a Hub id; the message says how to write a folder."""
    (tmp_path / "missing").mkdir()
    assert "write ./missing" in ask(hub, "missing")
