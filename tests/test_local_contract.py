"""The local executor keeps what every executor promises."""

from __future__ import annotations

import pytest

from executor_contract import ExecutorContract


@pytest.mark.slow
class TestLocal(ExecutorContract):
    make = """
from llmquant.executors.local.executor import LocalExecutor
executor = LocalExecutor(device="cpu", threads=1, max_parallel=4)
"""
