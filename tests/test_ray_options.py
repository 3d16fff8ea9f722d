"""The Ray executor is chosen and refused without Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest

from llmquant.errors import OptionError
from llmquant.executors.ray.options import RayOptions

PROBE = """
import sys
sys.modules["ray"] = None
from llmquant import errors
from llmquant.executors.ray.executor import RayExecutor
executor = RayExecutor(num_cpus=2)
assert executor.threads == 2
try:
    executor.slots
except errors.MissingDependencyError as error:
    assert "llmquant[ray]" in error.hint
    assert "torch" not in sys.modules
    print("refused")
"""


def test_ray_is_imported_when_it_is_used():
    """Constructing needs neither Ray nor torch; without Ray the error gives the line that installs it."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"


NONSENSE = [{"num_cpus": 0}, {"num_gpus": -1}, {"threads": 0}, {"max_parallel": 0}, {"device": "cuda", "num_gpus": 0}]


@pytest.mark.parametrize("options", NONSENSE)
def test_options_that_make_no_sense_are_refused(options: dict[str, object]):
    """Before a cluster is looked for."""
    with pytest.raises(OptionError):
        RayOptions(**options)
