"""Time and memory to analyse a large stored study: every verdict, changed answers and the report.

    python benchmarks/analysis.py [--variants 50] [--tasks 10] [--documents 10000]

The store is made up: right and wrong answers with a short text each. The analysis runs in a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from llmquant.storage.store import Store
from llmquant.study.experiment import Documents, Experiment, ModelUse, PluginUse, Variant
from llmquant.study.record import StudyRecord
from llmquant.study.run import Measurement, Run, Sample

BASELINE = "bf16_baseline"
ANALYSE = """
import json, resource, sys, time

def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

from llmquant.results.comparison import Comparison
took, start, used = {}, time.perf_counter(), cpu()

def lap(name):
    global start, used
    took[name] = {"wall_s": time.perf_counter() - start, "cpu_s": cpu() - used}
    start, used = time.perf_counter(), cpu()

found = Comparison.from_store(sys.argv[1])
rows = found.rows()
lap("rows")
text = found.to_text()
lap("text")
html = found.to_html()
lap("html")
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({**took, "row_count": len(rows), "html_mb": len(html) / 1e6, "peak_gib": peak}))
"""


def make_store(folder: Path, variants: int, tasks: int, documents: int) -> None:
    """Write a study with a baseline and variants in which 1 to 10% of the answers change."""
    rng = np.random.default_rng(0)
    store, experiments = Store(folder), []
    model = ModelUse("org/model", "commit:" + "0" * 40)
    names = [hashlib.sha256(str(i).encode()).hexdigest() for i in range(documents)]
    for task in range(tasks):
        base = rng.random(documents) < 0.5
        for place in range(variants + 1):
            label = BASELINE if place == 0 else f"variant_{place}"
            right = base ^ (rng.random(documents) < (0 if place == 0 else 0.01 + 0.09 * place / variants))
            use = PluginUse(f"bench/{label}", "1", {}, label)
            evaluator = PluginUse("llmquant/lm_eval", "1", {"task": f"task_{task}"}, f"lm_eval(task_{task})")
            experiment = Experiment(Variant(model, use), evaluator, Documents(None), 0)
            experiments.append(experiment)
            samples = [
                Sample(name, name, {"acc": float(score)}, answer="yes" if score else "no", target="yes")
                for name, score in zip(names, right.tolist(), strict=True)
            ]
            mean = float(right.mean())
            error = float(right.std(ddof=1) / documents**0.5)
            number = Measurement(f"task_{task}", "acc", mean, "", True, error, documents)
            now = "2026-11-30T00:00:00+00:00"
            run = Run(experiment, "completed", (number,), None, {}, now, now)
            store.commit(run, store.begin(), {f"task_{task}": samples})
    record = StudyRecord("0" * 12, "made up", tuple(experiments), {model.digest: BASELINE}, started_at=now)
    store.write_study(record.study_id, record.to_json())


def main() -> None:
    """Make the store, analyse it in another process, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", type=int, default=50)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--documents", type=int, default=10_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        make_store(Path(folder) / "store", given.variants, given.tasks, given.documents)
        made_s = time.perf_counter() - start
        command = [sys.executable, "-c", ANALYSE, f"{folder}/store"]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        print(json.dumps({**vars(given), "made_s": made_s, **json.loads(done.stdout)}, indent=1))


if __name__ == "__main__":
    main()
