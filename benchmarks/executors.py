"""Measure the time that executors add to the workers' own time, and how evenly they use several workers.

    python benchmarks/executors.py MODEL [--on local] [--on ray] [--seconds 6] [--workers 2]

MODEL is a small checkpoint; only its headers are read, because the workers are stand-ins that sleep. Linux only.
Prints a table, and exits with 1 if a figure misses its target.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import llmquant as lq
from llmquant.plugins.executor import Executor, JobState

ADDED_S = {"local": 1.0, "ray": 3.0}
PRESETS = [
    *("fp32_baseline", "bf16_baseline", "fp16_baseline", "bnb_4bit_nf4"),
    *("bnb_4bit_fp4", "bnb_4bit_nf4_bf16", "bnb_4bit_nf4_no_double", "bnb_4bit_fp4_no_double"),
]
STAND_IN = """
import json, os, sys, time
from pathlib import Path

# A process's start in seconds since the epoch, as psutil gives it, is some tenths of a second off.
ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
started = time.time() - age
record = Path(sys.argv[1])
with record.with_suffix(".journal").open("a") as journal:
    for event in ("loading", "loaded"):
        journal.write(json.dumps({{"event": event, "at": time.time()}}) + "\\n")
time.sleep({seconds})
times = {{"started": started, "ended": time.time()}}
Path({folder!r}, f"{{os.getpid()}}.json").write_text(json.dumps(times))
"""


class Timed:
    """Records when jobs were submitted, and when their end was noticed."""

    def __init__(self, executor: Executor) -> None:
        self._submit, self._collect = executor.submit, executor.collect
        self.submitted: dict[str, float] = {}
        self.ended: dict[str, float] = {}
        vars(executor).update(submit=self.submit, collect=self.collect)

    def submit(self, job: Path, store: Path) -> str:
        """Submit a job."""
        now = time.time()
        job_id = self._submit(job, store)
        self.submitted[job_id] = now
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Collect from a job."""
        state = self._collect(job_id, store)
        if state in ("ended", "lost"):
            self.ended.setdefault(job_id, time.time())
        return state


def study(model: str, executor: Executor, presets: list[str], folder: Path) -> float:
    """Run a study with one experiment per preset, none of which gives a result; return its seconds."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as store:
        found = lq.compare(model, presets, ["memory"], executor=executor, store=store, progress=False)
    if {run.failure.kind for run in found.runs.values() if run.failure} != {"lost"}:
        raise SystemExit("a worker was not the stand-in")
    return time.perf_counter() - start


def open_executor(name: str, workers: int) -> Executor:
    """Open an executor with the given number of workers."""
    if name == "local":
        return lq.executors.LocalExecutor(device="cpu", threads=1, max_parallel=workers)
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
    return lq.executors.RayExecutor(device="cpu", threads=1)


def measure(name: str, model: str, seconds: float, workers: int) -> bool:
    """Print a row for an executor; return whether its figures meet their targets."""
    with tempfile.TemporaryDirectory() as folder:
        times, packages = Path(folder, "times"), Path(folder, "packages", "llmquant")
        times.mkdir()
        packages.mkdir(parents=True)
        (packages / "__init__.py").touch()
        (packages / "pipeline.py").write_text(STAND_IN.format(seconds=seconds, folder=str(times)))
        executor = open_executor(name, workers)
        sys.path.insert(0, str(packages.parent))  # for workers; here the real package is imported already
        try:
            study(model, executor, PRESETS[:1], Path(folder))  # once, so that everything is started
            for file in times.iterdir():
                file.unlink()
            timed = Timed(executor)
            ones = [study(model, executor, PRESETS[:1], Path(folder)) for _ in range(5)]
            own = sorted((json.loads(file.read_text()) for file in times.iterdir()), key=lambda row: row["started"])
            took = [timed.ended[job_id] - at for job_id, at in timed.submitted.items()]
            added = [all_of - (row["ended"] - row["started"]) for all_of, row in zip(took, own, strict=True)]
            all_s = study(model, executor, PRESETS, Path(folder))
            executor.close()
        finally:
            sys.path.remove(str(packages.parent))
    ideal = len(PRESETS) / workers * statistics.median(ones)
    row = (statistics.median(added), max(added), ADDED_S[name], all_s / ideal)
    print(f"| `{name}` | {row[0]:.2f} | {row[1]:.2f} | < {row[2]:g} | {row[3]:.3f} |", flush=True)
    return row[0] < row[2] and row[3] < 1.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--on", action="append", choices=sorted(ADDED_S))
    parser.add_argument("--seconds", type=float, default=6.0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    jobs = f"{len(PRESETS)} jobs of {arguments.seconds:g} s on {arguments.workers} workers / ideal (target: < 1.1)"
    print(f"| executor | added per job, s (median of 5) | maximum | target | {jobs} |\n| --- | --- | --- | --- | --- |")
    good = [measure(name, arguments.model, arguments.seconds, arguments.workers) for name in arguments.on or ["local"]]
    sys.exit(not all(good))


if __name__ == "__main__":
    main()
