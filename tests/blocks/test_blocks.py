"""Every command and every Python block of the documentation runs as it is written, in the order of its page."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from llmquant.machine.hardware import nvidia_gpus

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "examples" / "README.md"]
# What is not run here, by its first words, and why not. A command of any other kind is run.
NOT_RUN = {
    r"jupyter lab|cd examples": "a server for a person; `nox -s examples` runs the notebooks",
    r"vllm serve|llama-server|llama-perplexity": "another project's program, which the package index does not have",
    r"modal (token|secret|app)": "needs an account at Modal",
    r"llmquant demo|python3 -m venv .*llmquant demo": "`nox -s demo` runs it",
    r"python3 -m venv .*nox$": "runs all required sessions",
    r"@dataclass.*\nclass MineOptions|from llmquant import hookimpl": "a skeleton, which tests/test_docs.py runs",
}
# What a command or a block needs, and what the program says where that is missing.
NEEDS = {
    r"colqwen2\.5": ("colpali_engine", r'pip install "llmquant\[colpali\]"'),
    r"--on modal|--on \"modal|executor=\"modal|ModalExecutor|deploy": ("modal", r'pip install "llmquant\[modal\]"'),
    r"--on ray": ("ray", r'pip install "llmquant\[ray\]"'),
    r"llmquant\[local,notebook\]": ("jupyterlab", "No matching distribution found for"),
    r"quantize .*-q gguf": ("tokenizer that llama.cpp knows", "pre-tokenizer is none of those known from llama.cpp"),
    r"attach|--gpu [A-Z]|gpu=\S*[A-Z]|gpus_per_job": ("GPU", "no CUDA GPU|finds no GPU"),
}
# With it, the command ends with code 4, as the few documents here decide nothing.
UNDECIDED = "--fail-on undecided"


def _is_here(what: str) -> bool:
    return bool(nvidia_gpus()) if what == "GPU" else what.isidentifier() and find_spec(what) is not None


class Block(NamedTuple):
    """A command, or a block of Python.

    Attributes:
        before: the Python blocks before it on its page, whose names it uses.
    """

    page: Path
    line: int
    text: str
    before: str = ""
    python: bool = False


def _not_run(text: str) -> str:
    return next((reason for pattern, reason in NOT_RUN.items() if re.match(pattern, text)), "")


def _blocks(page: Path) -> list[Block]:
    found, before = [], ""
    for match in re.finditer(r"^```(sh|python)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        line = page.read_text()[: match.start(2)].count("\n") + 1
        if match[1] == "python":
            found.append(Block(page, line, match[2], before, python=True))
            before += "" if _not_run(match[2]) else match[2]
        elif match[2].startswith("#!"):
            found.append(Block(page, line, match[2]))
        else:
            found += [Block(page, line + n, text) for n, text in enumerate(match[2].splitlines())]
    return found


def _parameter(block: Block) -> object:
    name = f"{block.page.relative_to(ROOT)}:{block.line} {'python' if block.python else block.text}"
    # pytest-xdist keeps a page's blocks in one process.
    return pytest.param(block, id=name, marks=pytest.mark.xdist_group(block.page.name))


BLOCKS = [block for page in PAGES for block in _blocks(page)]


@pytest.mark.parametrize("block", map(_parameter, BLOCKS))
def test_blocks_run(block: Block, folder_of, run):
    """The block ends with code 0, or says what is missing here."""
    if reason := _not_run(block.text):
        pytest.skip(reason)
    folder = folder_of(block.page)
    if "llmquant attach" in block.text:  # the page has some study's id
        newest = max((folder / "results" / "studies").iterdir(), key=lambda study: study.stat().st_mtime)
        block = block._replace(text=re.sub(r"attach \w+", f"attach {newest.name}", block.text))
    command = ["python", "-c", block.before + block.text] if block.python else ["bash", "-e", "-c", block.text]
    done = run(folder, command)
    said = f"{done.stdout}\n{done.stderr}"
    print(said)
    for pattern, (what, message) in NEEDS.items():
        if done.returncode in (1, 2) and re.search(pattern, block.text) and not _is_here(what):
            assert re.search(message, " ".join(said.split()))
            pytest.skip(f"ends as it should where there is no {what}")
    assert done.returncode == (4 if UNDECIDED in block.text else 0)
    assert "Traceback" not in said


def test_every_reason_is_of_a_block():
    """A block that has left the documentation leaves no reason behind."""
    assert all(any(re.match(pattern, block.text) for block in BLOCKS) for pattern in NOT_RUN)
    assert all(any(re.search(pattern, block.text) for block in BLOCKS) for pattern in NEEDS)
