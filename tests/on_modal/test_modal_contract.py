"""The Modal executor keeps what every executor promises, with Modal's own client and container entry point."""

from __future__ import annotations

import pytest

from llmquant.plugins.registry import registry
from llmquant.testing import checks

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("server")]

CALL = "modal(gpu=none, max_parallel=2, budget=1000, cpus=1, memory_gib=1)"
test_contract = checks(registry().find("executor", "modal")[0].spec, CALL)
