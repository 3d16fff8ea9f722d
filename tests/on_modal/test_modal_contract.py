"""The Modal executor keeps what every executor promises, with Modal's own client and container entry point."""

from __future__ import annotations

import pytest

from executor_contract import ExecutorContract


@pytest.mark.slow
@pytest.mark.usefixtures("server")
class TestModal(ExecutorContract):
    make = """
from llmquant.executors.modal.executor import ModalExecutor
executor = ModalExecutor(gpu="none", max_parallel=4, budget=1000, cpus=1, memory_gib=1)
"""
