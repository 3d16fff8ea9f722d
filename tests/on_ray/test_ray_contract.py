"""The Ray executor keeps what every executor promises, on a Ray that is really started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from llmquant.errors import UnsupportedError
from llmquant.executors import RayExecutor
from llmquant.plugins.registry import registry
from llmquant.testing import checks, executors
from llmquant.testing.executors import executor_of, store_of, wait_until, workers, write_job
from llmquant.testing.trial import Trial

ray = pytest.importorskip("ray", reason='needs Ray: pip install "llmquant[ray]"')

LEAVES_TWO = """
import sys
from pathlib import Path
from llmquant.executors import RayExecutor
executor = RayExecutor(device="cpu", num_cpus=2, threads=1)
*records, store = map(Path, sys.argv[1:])
found = [executor.submit(record, store) for record in records]
for job_id in found:
    executor.leave(job_id)
executor.close()
print("left:", *found)
"""


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Start a cluster with room for two jobs; a second process finds it by RAY_ADDRESS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "disabled")
        patch.setenv("LLMQUANT_CACHE", str(tmp_path_factory.mktemp("cache")))
        found = ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, namespace="llmquant")
        patch.setenv("RAY_ADDRESS", found.address_info["gcs_address"])
        yield
        ray.shutdown()


SPEC, CALL = registry().find("executor", "ray")[0].spec, "ray(device=cpu, threads=1)"
test_contract = checks(SPEC, CALL)


@pytest.fixture
def trial() -> Iterator[Trial]:
    """Open the executor for jobs of the test's own, after a study of one experiment instead of twelve."""
    found = Trial(SPEC, CALL)
    one = executors._compare(found, [executors._call("not", executors.GOOD)])
    found.done["study"] = executors._Study(one, most_at_a_time=1)
    yield found
    found.close()


def test_of_two_jobs_that_were_left_the_second_starts_though_nobody_looks(trial: Trial):
    """Each takes the whole cluster, and the input of the second is larger than what Ray keeps of an ended program."""
    executor, store = executor_of(trial), store_of(trial)
    pairs = [write_job(trial, tag, how="not") for tag in ("left1", "left2")]
    large = trial.folder / "large"
    large.write_bytes(os.urandom(9 * 2**20))
    last = pairs[-1][0]
    last.write_text(json.dumps({**json.loads(last.read_text()), "inputs": {"sha256:ab": str(large)}}))
    arguments = [str(record) for record, _ in pairs]
    first = subprocess.run(
        [sys.executable, "-c", LEAVES_TWO, *arguments, str(store.root)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "left: " in first.stdout, first.stderr
    wait_until(lambda: workers(last), "the second job starts")
    for job_id, (_, run_id) in zip(first.stdout.rpartition("left: ")[2].split(), pairs, strict=True):
        wait_until(lambda job_id=job_id: executor.collect(job_id, store.root) == "ended", "a job ends")
        assert store.run(run_id).status == "completed"


def test_a_cluster_that_is_too_small_is_refused():
    """Resources that no machine has are reported before a job is submitted."""
    with pytest.raises(UnsupportedError, match="500 CPU"):
        RayExecutor(device="cpu", num_cpus=500).check([])
