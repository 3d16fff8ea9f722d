"""Look at an installed llmquant from outside: run by ``nox -s wheel`` in an environment with nothing else in it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path

import llmquant

package = Path(llmquant.__file__).parent
files = {str(file) for file in importlib.metadata.files("llmquant") or ()}

assert "site-packages" in str(package), package
assert "llmquant/py.typed" in files
assert "llmquant/results/report/page.css" in files
assert "llmquant/cli/templates/package/.github/workflows/test.yml" in files
assert any(name.endswith("licenses/LICENSE") for name in files), sorted(files)
assert importlib.metadata.version("llmquant") == llmquant.__version__
for heavy in ("torch", "transformers", "lm_eval", "bitsandbytes"):
    assert importlib.util.find_spec(heavy) is None, f"the core install brings {heavy}"
print(f"llmquant {llmquant.__version__}: {len(files)} files, no torch")
