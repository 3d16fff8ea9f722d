"""A stand-in of the Hugging Face Hub on 127.0.0.1: it serves folders as repositories to the real client."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """The Hub, as far as its client, `datasets`, lm-eval and mteb use it.

    Every repository has one commit, which is `COMMIT`, the branch main, or whatever commit is asked for.

    Attributes:
        repos: the folder of each repository; data sets' names begin with ``datasets/``.
        gated: names of repositories whose files nobody may read.
        requested: method and path of every request.
        url: the endpoint.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.gated: set[str] = set()
        self.requested: list[str] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Be unreachable from now on."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])).decode())

    def _answer(self, form: str = "") -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.requested.append(f"{self.command} {path}")
        about = path.startswith("/api/")
        wanted = path.removeprefix("/api").removeprefix("/models").strip("/")
        name = next((name for name in self.hub.repos if f"{wanted}/".startswith(f"{name}/")), None)
        if name is None:
            return self._refuse(404, "RepoNotFound")
        what, _, rest = wanted[len(name) + 1 :].partition("/")
        revision, _, file = rest.partition("/")
        if revision not in ("", "main") and not re.fullmatch("[0-9a-f]{40}", revision):
            return self._refuse(404, "RevisionNotFound")
        if not about and name in self.hub.gated:
            return self._refuse(403, "GatedRepo")
        folder = self.hub.repos[name]
        commit = COMMIT if revision in ("", "main") else revision
        if not about:
            return self._send_file(folder / file, commit)
        if what == "tree":
            return self._send_json(list(_tree(folder, file, recursive="recursive=true" in self.path.lower())))
        if what == "paths-info":
            paths = [folder / each for each in parse_qs(form)["paths"]]
            return self._send_json([_entry(folder, path) for path in paths if path.exists()])
        if what in ("", "revision"):
            files = [{"rfilename": e["path"], "size": e["size"]} for e in _tree(folder, "") if e["type"] == "file"]
            return self._send_json({"id": name.removeprefix("datasets/"), "sha": commit, "siblings": files})
        return self._refuse(404, "EntryNotFound")

    def _send_file(self, file: Path, commit: str) -> None:
        if not file.is_file():
            return self._refuse(404, "EntryNotFound")
        data, status = file.read_bytes(), 200
        headers = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": commit}
        if (span := self.headers.get("Range")) is not None:
            first, _, last = span.removeprefix("bytes=").partition("-")
            headers["Content-Range"] = f"bytes {first}-{last or len(data) - 1}/{len(data)}"
            data, status = data[int(first) : int(last or len(data)) + 1], 206
        return self._send(status, data, headers)

    def _send_json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str) -> None:
        self._send(status, b"{}", {"X-Error-Code": code})

    def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


def _tree(folder: Path, below: str, *, recursive: bool = True) -> Iterator[dict[str, object]]:
    top = folder / below
    for path in sorted(top.rglob("*") if recursive else top.glob("*")):
        yield _entry(folder, path)


def _entry(folder: Path, path: Path) -> dict[str, object]:
    name = str(path.relative_to(folder))
    kind, size = ("directory", 0) if path.is_dir() else ("file", path.stat().st_size)
    return {"type": kind, "path": name, "size": size, "oid": hashlib.sha1(name.encode()).hexdigest()}
