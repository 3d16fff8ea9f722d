"""A job whose machine is lost continues on another machine."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
import llmquant as lq
from llmquant.executors import RayExecutor
from llmquant.plugins.registry import registry
from misbehaving_studies import starts

ray = pytest.importorskip("ray", reason='needs Ray: pip install "llmquant[ray]"')

TESTS = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_study_survives_a_machine(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What was finished before is not run again; what was running is."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(TESTS))
    monkeypatch.syspath_prepend(str(TESTS))
    monkeypatch.setattr(registry(), "plugins", list(registry().plugins))
    import misbehaving

    lq.register(misbehaving.SPEC)
    marker = tmp_path / "marker"
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        machines = [cluster.add_node(num_cpus=1)]
        ray.init(address=cluster.address, log_to_driver=False, namespace="llmquant")
        executor = RayExecutor(device="cpu", threads=1)

        collect = executor.collect

        def losing(job_id: str, store: Path) -> str:
            if len(machines) == 1 and starts(marker) == ["not1", "sleep_once2"]:
                machines.append(cluster.add_node(num_cpus=1))
                cluster.remove_node(machines[0], allow_graceful=False)
            return collect(job_id, store)

        monkeypatch.setattr(executor, "collect", losing)
        evaluators = [f"misbehave({how}, marker={marker}, tag={n})" for n, how in enumerate(("not", "sleep_once"), 1)]
        found = lq.compare(
            str(tiny_model),
            ["fp32_baseline"],
            evaluators,
            executor=executor,
            store=tmp_path / "store",
            progress=False,
            timeout_s=400,
        )
        executor.close()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert [run.failure for run in found.runs.values()] == [None, None]
    assert [run.status for run in found.runs.values()] == ["completed", "completed"]
    assert starts(marker) == ["not1", "sleep_once2", "sleep_once2"]
