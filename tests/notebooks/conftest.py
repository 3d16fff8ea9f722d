"""Where notebooks run, and the stand-in of Modal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "on_modal")]


@pytest.fixture(scope="session")
def folder() -> Path:
    """Return the folder that is every notebook's own, so that one reuses the runs of another; pages stay there."""
    folder = Path(__file__).parents[2] / "site" / "examples"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def modal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Start the stand-in of Modal; kernels that start meanwhile take it for Modal."""
    from modal_server import TOKEN, ModalServer, account

    server = ModalServer(tmp_path).start()
    for name, value in account(server.url, TOKEN, tmp_path).items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()
