"""A stand-in of Modal for the whole session, and what this project's tests keep beside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

if TYPE_CHECKING:
    from modal_server import ModalServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModalServer]:
    """Start the stand-in; this process and its children take it for Modal."""
    pytest.importorskip("modal", reason='needs Modal\'s client: pip install "llmquant[modal]"')
    from modal_server import TOKEN, ModalServer, account

    room = tmp_path_factory.mktemp("modal")
    found = ModalServer(room).start()
    found.secrets["huggingface-secret"] = {"HUGGINGFACE_TOKEN": "hf_fromthesecretonmodal"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in account(found.url, TOKEN, room).items():
            patch.setenv(name, value)
        yield found
        found.stop()
