"""Compare the lm_eval evaluator with a plain call of lm-eval on the same loaded model and rows, in one run.

    python benchmarks/overhead.py MODEL ROWS.jsonl [--limit 8] [--pairs 3] [--threads 2]

ROWS are rows of lm-eval's ``coqa`` task. Prints the median of the ratios of interleaved pairs, and exits with 1 when it
is 1.05 or more, or when a score differs.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import lm_eval.evaluator
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

import llmquant as lq
from llmquant.evaluators.lm_eval.compat import provide_squad_metrics
from llmquant.evaluators.lm_eval.evaluator import LmEval
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.storage.cache import Cache
from llmquant.study.experiment import Documents

GENERATION = {"max_gen_toks": 32}


def plain(subject: lq.LoadedModel, rows: Path, limit: int, folder: Path) -> list[float]:
    """Score with lm-eval alone; return F1 by document."""
    provide_squad_metrics()
    stock = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks" / "coqa" / "default.yaml"
    task = {
        "include": str(stock),
        "task": "coqa_rows",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(rows)}},
        "training_split": None,
    }
    (folder / "coqa_rows.yaml").write_text(yaml.safe_dump(task))
    output = lm_eval.evaluator.simple_evaluate(
        model=HFLM(pretrained=subject.module, tokenizer=subject.tokenizer, batch_size=1),
        tasks=["coqa_rows"],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        limit=limit,
        log_samples=True,
        gen_kwargs=dict(GENERATION),
    )
    return [sample["f1"] for sample in output["samples"]["coqa_rows"]]


def ours(subject: lq.LoadedModel, rows: Path, limit: int, folder: Path) -> list[float]:
    """Score with the evaluator; return F1 by document."""
    options = LmEvalOptions(("coqa",), data=lq.InputFile.read(rows), gen_kwargs=GENERATION, batch_size=1)
    context = lq.Context("cpu", 0, Documents(limit), Cache.default(), {}, None, folder, lambda done, total: None)
    (result,) = LmEval(options).evaluate(subject, context)
    return [sample.scores["f1"] for sample in result.samples]


def seconds(run, *arguments) -> tuple[float, list[float]]:
    """Time one call, in a separate folder."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        scores = run(*arguments, Path(folder))
        return time.perf_counter() - start, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("rows", type=Path)
    parser.add_argument("--limit", type=int, default=8)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    subject = lq.load(arguments.model, "bf16_baseline", device="cpu")
    seconds(ours, subject, arguments.rows, 1)
    ratios = []
    for pair in range(arguments.pairs):
        order = (plain, ours) if pair % 2 == 0 else (ours, plain)
        timed = {run: seconds(run, subject, arguments.rows, arguments.limit) for run in order}
        if timed[ours][1] != timed[plain][1]:
            sys.exit(f"scores differ: {timed[ours][1]} and {timed[plain][1]}")
        ratios.append(timed[ours][0] / timed[plain][0])
        both = f"lm-eval {timed[plain][0]:.2f} s, llmquant {timed[ours][0]:.2f} s"
        print(f"pair {pair + 1}: {both}, ratio {ratios[-1]:.3f}")
    ratio = statistics.median(ratios)
    print(f"median ratio {ratio:.3f} over {arguments.limit} documents, scores equal")
    sys.exit(ratio >= 1.05)


if __name__ == "__main__":
    main()
