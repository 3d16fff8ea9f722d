"""The local executor keeps what every executor promises."""

from __future__ import annotations

import pytest

from llmquant.plugins.registry import registry
from llmquant.testing import checks

pytestmark = pytest.mark.slow

test_contract = checks(registry().find("executor", "local")[0].spec, "local(device=cpu, threads=1, max_parallel=2)")
