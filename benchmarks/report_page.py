"""Measure the HTML report of a made-up study of 20 variants: its size, and how Chromium loads it.

    python benchmarks/report_page.py [--keep report.html]

Prints the size, the seconds to write it and to load it in headless Chromium (if there is one), the messages on its
console, and the requests that it made besides the file itself.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from llmquant.results.comparison import Comparison
from llmquant.study.run import Measurement
from made_up import (
    BASELINE,
    HARDWARE,
    MIB,
    MadeUpStudy,
    completed,
    experiment,
    latency,
    memory,
    scored,
)

VARIANTS, DOCUMENTS = 20, 500
TASKS = ("coqa", "arc_challenge", "gsm8k", "mmlu", "hellaswag")


def made_up_comparison(variants: int = VARIANTS, documents: int = DOCUMENTS) -> Comparison:
    """Make a study with answers, prompts, divergences, memory and latency."""
    rng = np.random.default_rng(0)
    study = MadeUpStudy(started_at="2026-11-20T09:00:00.000+00:00")
    right = {task: rng.random(documents) < 0.6 for task in TASKS}
    bins = {"position": ("0-127", "128-255", "256-511", "512-1023"), "confidence": ("0-0.5", "0.5-0.9", "0.9-1")}
    for index in range(variants):
        label = BASELINE if index == 0 else f"method{index % 5}_{8 - index % 7}bit_g{32 * (1 + index % 4)}_{index}"
        damage = 0.0 if index == 0 else float(rng.choice([0.0, 0.005, 0.02, 0.05, 0.2]))
        for task in TASKS:
            asked = experiment(label, f"lm_eval({task})", limit=documents)
            scores = np.where(rng.random(documents) < damage, rng.random(documents) < 0.3, right[task]).astype(float)
            mean, samples = scored(task, "acc", scores)
            answered = [
                replace(
                    sample,
                    answer=f"The answer of {label} to document {place} is {'right' if score else 'wrong'}. " * 8,
                    target="an expected answer",
                    generated=40,
                    cut=False,
                )
                for place, (sample, score) in enumerate(zip(samples, scores, strict=True))
            ]
            study.add(completed(asked, mean), {task: answered})
        weights = 2400.0 / (1 + index)
        study.add(completed(experiment(label, "memory", hardware=HARDWARE), *memory(weights, 5, 2 * weights, 80, 95)))
        speed = latency({128: 12.0 + index, 2048: 60.0 + 2 * index}, 15.0 + index)
        study.add(completed(experiment(label, "latency", hardware=HARDWARE), *speed))
        parts = [
            Measurement(
                "text.txt", "kl_divergence", (damage + 1e-3) * (1 + place), "nats", at={of: name}, headline=False
            )
            for of, names in bins.items()
            for place, name in enumerate(names)
        ]
        study.add(completed(experiment(label, "fidelity(text.txt)", limit=None), *parts))
    prompt = "A passage of some length, as a document of a benchmark has, in front of the question. " * 20
    return Comparison(study.record, study.runs, study.read, prompts=lambda hashes: dict.fromkeys(hashes, prompt))


def load(page: Path, chromium: str) -> dict[str, object]:
    """Load a page in headless Chromium, and read its console and its network log."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "net.json"
        command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
        command += ["--enable-logging=stderr", f"--log-net-log={log}", "--dump-dom"]
        seconds = []
        for url in ("about:blank", page.resolve().as_uri()):
            start = time.perf_counter()
            done = subprocess.run([*command, url], capture_output=True, text=True, check=True)
            seconds.append(time.perf_counter() - start)
        text = log.read_text()
        events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
        urls = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    # Chromium asks its own servers for updates, whatever it shows.
    own = ("google.com", "googleapis.com", "gvt1.com", "chrome:", "about:", "devtools:")
    asked = [url for url in sorted(urls) if not any(part in url for part in own) and url != page.resolve().as_uri()]
    return {"seconds": seconds[1] - seconds[0], "console": console, "requests": asked, "written": len(done.stdout)}


def main() -> None:
    """Write the page, load it, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, help="Write the page to this file.")
    given = parser.parse_args()
    found = made_up_comparison()
    start = time.perf_counter()
    html = found.to_html()
    print(f"written in {time.perf_counter() - start:.1f} s, {len(html.encode()) / MIB:.2f} MiB")
    with tempfile.TemporaryDirectory() as folder:
        page = given.keep or Path(folder) / "report.html"
        page.write_text(html, encoding="utf-8")
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        print("no Chromium on this machine" if chromium is None else load(page, chromium))


if __name__ == "__main__":
    main()
