"""A place in which the documentation's commands run: a Hub, a Modal, an environment to install into, and folders."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(TESTS), str(TESTS / "on_modal")]

from hub_content import write_causal, write_repos  # noqa: E402 - found on the path above
from reader import write_folder  # noqa: E402

from hub_server import Hub  # noqa: E402

_SCRIPT = "#!{python}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"


@pytest.fixture(scope="session")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the language model behind most names."""
    return write_causal(tmp_path_factory.mktemp("causal") / "model")


@pytest.fixture(scope="session")
def hub(causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Serve all models and data sets of the pages."""
    hub = Hub()
    hub.repos = write_repos(tmp_path_factory.mktemp("hub"), causal)
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def modal(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """Start the stand-in of Modal, whose containers see the stand-in of the Hub; yield the account's variables."""
    if find_spec("modal") is None:
        yield {}
        return
    from modal_server import TOKEN, ModalServer, account

    room = tmp_path_factory.mktemp("modal")
    server = ModalServer(room).start()
    server.secrets["huggingface-secret"] = {"HF_TOKEN": "hf_nobody", "HF_ENDPOINT": hub.url}
    yield account(server.url, TOKEN, room)
    server.stop()


@pytest.fixture(scope="session")
def environment(hub: Hub, modal: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the variables of the reader's shell; its Python sees the packages here, and can install more."""
    room = tmp_path_factory.mktemp("reader")
    venv.create(room / "env", symlinks=True)
    scripts = room / "env" / "bin"
    (site,) = (room / "env").glob("lib/python*/site-packages")
    (site / "ours.pth").write_text("\n".join(path for path in sys.path if path.endswith("-packages")))
    for name in ("llmquant", "lm_eval", "pytest", "pip"):
        (entry,) = entry_points(group="console_scripts", name=name)
        (scripts / name).write_text(_SCRIPT.format(python=scripts / "python", module=entry.module, function=entry.attr))
        (scripts / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PIP_", "LLMQUANT_"))}
    return {
        **kept,
        **modal,
        "PATH": f"{scripts}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(room / "env"),
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(room / "hf"),
        "LLMQUANT_CACHE": str(room / "cache"),
        "PIP_NO_INDEX": "1",  # what the pages install is here already
        "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "RAY_AUTH_MODE": "disabled",
        "TOKENIZERS_PARALLELISM": "false",
    }


@pytest.fixture(scope="session")
def folder_of(hub: Hub, causal: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], Path]:
    """Return a function that gives each page the folder of its reader."""
    folders: dict[Path, Path] = {}
    store = tmp_path_factory.mktemp("store")
    models = {
        "causal": causal,
        "minilm": hub.repos["sentence-transformers/all-MiniLM-L6-v2"],
        "gemma": hub.repos["Cognitive-Lab/NetraEmbed"],
    }

    def folder(page: Path) -> Path:
        if page not in folders:
            folders[page] = tmp_path_factory.mktemp(page.stem)
            write_folder(folders[page], page, **models, store=store)
        return folders[page]

    return folder


@pytest.fixture
def run(environment: dict[str, str]) -> Callable[[Path, list[str]], subprocess.CompletedProcess[str]]:
    """Return a function that runs a program in a reader's folder."""

    def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=folder,
            env={**environment, "HOME": str(folder)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=3600,
        )

    return run
