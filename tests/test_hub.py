"""The Hub, by a stand-in on this machine that speaks to the real client."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = None
    requested = ()

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def _answer(self, *, body):
        path = self.path.partition("?")[0]
        self.requested.append(f"{self.command} {path}")
        if "/missing" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body=body)
        if "/nope" in path:
            return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body=body)
        if path.startswith("/api/models/org/"):
            files = [{"rfilename": file.name, "size": file.stat().st_size} for file in self._files()]
            tree = [{"type": "file", "path": f["rfilename"], "size": f["size"], "oid": f["rfilename"]} for f in files]
            found = tree if "/tree/" in path else {"id": "org/tiny", "sha": COMMIT, "siblings": files}
            return self._send(200, json.dumps(found).encode(), {}, body=body)
        if "/gated/" in path:
            return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"}, body=body)
        file = self.folder / path.rpartition("/")[2]
        if not file.exists():
            return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body=body)
        data, status = file.read_bytes(), 200
        if (span := self.headers.get("Range")) is not None:
            first, _, last = span.removeprefix("bytes=").partition("-")
            data, status = data[int(first) : int(last or len(data)) + 1], 206
        return self._send(status, data, {"ETag": f'"{file.name}"', "X-Repo-Commit": COMMIT}, body=body)

    def _files(self):
        return sorted(self.folder.iterdir())

    def _send(self, status, data, headers, *, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tiny_model):
    """Serve the tiny model as org/tiny."""
    handler = type("Handler", (_Hub,), {"folder": tiny_model, "requested": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server, handler
    server.shutdown()
    server.server_close()


@pytest.fixture
def ask(tmp_path):
    """Return a function that inspects a model in a fresh process whose Hub is the stand-in."""

    def run(server, source, *, then="", **environment):
        code = (
            "import sys; from pathlib import Path; from llmquant.storage.cache import Cache\n"
            "from llmquant.errors import ModelError; from llmquant.study.experiment import ModelRequest\n"
            "from llmquant.models.info import inspect_model\n"
            "try:\n"
            f"    info = inspect_model(ModelRequest({source!r}), Cache(Path({str(tmp_path / 'cache')!r})))\n"
            f"    print(info.digest, info.parameters, info.note)\n    {then or 'pass'}\n"
            "except ModelError as error: print(type(error).__name__, error)\n"
        )
        known = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(tmp_path / "hf")}
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
    server, handler = hub
    assert ask(server, "org/tiny").startswith(f"commit:{COMMIT} ")
    assert not any(line.startswith("HEAD") and "model.safetensors" in line for line in handler.requested)


def test_files_that_lack_what_their_index_says_are_refused_before_they_are_fetched(hub, ask, tiny_model, tmp_path):
    """Their headers come by range requests, and are compared with the index."""
    from safetensors.numpy import load_file, save_file

    server, handler = hub
    handler.folder = tmp_path / "sharded"
    shutil.copytree(tiny_model, handler.folder)
    tensors = load_file(handler.folder / "model.safetensors")
    (handler.folder / "model.safetensors").unlink()
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(tensors)}
    index = handler.folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for file in set(files.values()):
        save_file({name: tensors[name] for name in tensors if files[name] == file}, handler.folder / file)
    assert ask(server, "org/tiny").startswith(f"commit:{COMMIT} ")
    index.write_text(json.dumps({"weight_map": {**files, "model.norm.bias": "model-1.safetensors"}}))
    said = ask(server, "org/tiny", HF_HOME=str(tmp_path / "hf2"))
    assert "model.safetensors.index.json says that model-1.safetensors holds 'model.norm.bias'" in said
    save_file(tensors, handler.folder / "model-1.safetensors")
    assert "both hold" in ask(server, "org/tiny", HF_HOME=str(tmp_path / "hf3"))
    assert not list(tmp_path.glob("hf*/**/model-*.safetensors"))


def test_what_was_downloaded_works_offline(hub, ask):
    """After one download the cache answers when the Hub does not, and says so."""
    server, _ = hub
    fetch = "from llmquant.models.hub import download; download(info.repo, info.commit, info.weight_files, code=False)"
    online = ask(server, "org/tiny", then=fetch).split()
    server.shutdown()
    server.server_close()
    offline = ask(server, "org/tiny")
    assert offline.split()[:2] == online[:2]
    assert "the Hub was not asked" in offline


def test_offline_without_a_copy_says_what_to_do(hub, ask):
    """The reason and the cure are in the message."""
    server, _ = hub
    said = ask(server, "org/tiny", HF_HUB_OFFLINE="1")
    assert said.startswith("ModelError")
    assert "not in the local Hugging Face cache" in said
    assert "Go online once" in said


def test_a_gated_model_names_the_login(hub, ask):
    """Who may not read it learns how to."""
    server, _ = hub
    assert "hf auth login" in ask(server, "org/gated")


def test_a_missing_model_is_said(hub, ask):
    """A misspelt name is no traceback."""
    server, _ = hub
    assert "the Hub has no model 'org/missing'" in ask(server, "org/missing")


def test_a_missing_revision_is_said(hub, ask):
    """The revision is named."""
    server, _ = hub
    assert "has no branch, tag or commit 'nope'" in ask(server, "org/tiny@nope")


def test_a_local_folder_of_the_same_name_is_pointed_at(hub, ask, tmp_path):
    """A bare name is a Hub id; the message says how to write a folder."""
    server, _ = hub
    (tmp_path / "missing").mkdir()
    assert "write ./missing" in ask(server, "missing")
