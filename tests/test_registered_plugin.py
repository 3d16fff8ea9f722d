"""A plugin of a script: registered there, it runs in a worker process that was started from elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parent / "plugins" / "llmquant-example" / "src" / "llmquant_example"

_SCRIPT = """
import json, os, sys
import llmquant as lq
from llmquant.executors import LocalExecutor


class Executor(LocalExecutor):
    def submit(self, job, store):
        if lost:
            os.remove(lost)
        return super().submit(job, store)


spec = lq.PluginSpec(
    kind="evaluator",
    name="likely",
    summary="Log-likelihood.",
    options="likely_options:LoglikelihoodOptions",
    target="likely:Loglikelihood",
)
lq.register(spec)
model, store, lost = sys.argv[1:]
evaluators = ["likely(She rang the bell.)"]
executor = Executor(device="cpu")
found = lq.compare(model, ["fp32_baseline"], evaluators, store=store, executor=executor, progress=False)
executor.close()
print(json.dumps([[row.status, row.metric, row.failure] for row in found.rows()]))
"""


def _run(tmp_path: Path, model: Path, *, losing: str = "") -> list[list[str]]:
    beside, elsewhere = tmp_path / "script", tmp_path / "elsewhere"
    beside.mkdir()
    elsewhere.mkdir()
    shutil.copy(EXAMPLE / "loglikelihood.py", beside / "likely.py")
    shutil.copy(EXAMPLE / "options.py", beside / "likely_options.py")
    (beside / "study.py").write_text(_SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment["LLMQUANT_CACHE"] = str(tmp_path / "cache")
    lost = str(beside / losing) if losing else ""
    command = [sys.executable, str(beside / "study.py"), str(model), str(tmp_path / "store"), lost]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[list[str]] = json.loads(done.stdout)
    return rows


def test_a_plugin_beside_the_script_runs_in_a_worker(tiny_model, tmp_path):
    """The worker finds the module though it was started in another folder."""
    assert _run(tmp_path, tiny_model) == [["completed", "loglikelihood", None]]


def test_a_plugin_that_a_worker_cannot_import_fails_with_its_reason(tiny_model, tmp_path):
    """A module that is gone when the worker starts is named in the run, which is stored as failed."""
    ((status, _, failure),) = _run(tmp_path, tiny_model, losing="likely.py")
    assert status == "failed"
    assert "likely cannot be imported by a worker process" in failure
