"""The package is light until something is loaded."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "transformers", "numpy", "scipy", "pyarrow", "pandas", "modal", "ray", "lm_eval", "bitsandbytes")

_SLOW = ("torch", "transformers", "pandas", "datasets", "modal", "ray", "lm_eval", "mteb", "bitsandbytes")


@pytest.mark.parametrize(
    "code",
    [
        "import llmquant",
        "import sys; sys.argv = ['llmquant', '--help']; from llmquant.cli.app import main; main()",
        "import sys; sys.argv = ['llmquant', 'compare', '--help']; from llmquant.cli.app import main; main()",
        "import sys; sys.argv = ['llmquant', 'plugins']; from llmquant.cli.app import main; main()",
    ],
    ids=["import", "help", "compare-help", "plugins"],
)
def test_nothing_heavy_is_imported(code: str):
    """Neither torch nor numpy nor any backend is loaded to import, to help or to list plugins."""
    probe = f"""
import sys
try:
    {code}
except SystemExit as end:
    assert not end.code, end.code
print("HEAVY", [name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_the_command_line_starts_without_the_plugins():
    """Help and completion need no registry, whose imports take as long as all others together."""
    probe = "import sys, llmquant.cli.app; print('llmquant.plugins.registry' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "MODEL", "-e", "mteb(ViDoRe(v1))"],
        ["compare", "MODEL", "-q", "bnb_4bit_nf5", "-t", "coqqa"],
        ["compare", "MODEL", "-e", "retrieval(./missing, queries=missing.jsonl)"],
        ["quantize", "MODEL", "-q", "bnb_4bit_nf5", "-o", "out"],
        ["quantize", "MODEL", "-q", "gguf_q4_k_m", "-o", "out.gguf"],
        ["report", "missing"],
    ],
    ids=["evaluator", "names", "files", "quantize", "export", "store"],
)
def test_a_wrong_request_is_refused_before_anything_heavy_is_imported(
    arguments: list[str], tiny_model: Path, tmp_path: Path
):
    """Nothing that takes seconds is loaded or scanned to find a mistake, also with an empty cache."""
    called = [str(tiny_model) if each == "MODEL" else each for each in arguments]
    probe = f"""
import subprocess, sys
sys.argv = ["llmquant", *{called!r}]
subprocess.run = subprocess.Popen = None
from llmquant.cli.app import main
try:
    main()
except SystemExit as end:
    assert end.code, end.code
    print("HEAVY", [name for name in {_SLOW!r} if name in sys.modules])
"""
    environment = {**os.environ, "LLMQUANT_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert done.stderr.startswith("error")


def test_every_public_name_resolves():
    """What `__all__` names can be imported and is called so where it is defined, and nothing in it is private."""
    import llmquant

    for name in llmquant.__all__:
        found = getattr(llmquant, name)
        if inspect.isroutine(found) or inspect.isclass(found):  # a type's alias has no name of its own
            assert found.__name__.rpartition(".")[2] == name
        assert not name.startswith("_")


def test_no_module_hides_a_public_name():
    """Importing a submodule binds its name in the package; none may be called as a public function is."""
    import pkgutil

    import llmquant

    modules = {module.name for module in pkgutil.iter_modules(llmquant.__path__)}
    assert modules & set(llmquant.__all__) == {"errors", "executors"}
