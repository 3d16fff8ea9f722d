"""Score retrievers of page images on ViDoRe on L40S GPUs: NDCG@5 (v3: NDCG@10) by model and task.

    python examples/vidore_on_modal.py --model bigemma3-4b-embedding,google/siglip-so400m-patch14-384 --budget 30
    python examples/vidore_on_modal.py --on local --benchmarks "retrieval(./pages, queries=queries.jsonl)"

On Modal the tasks run in parallel; --budget or --yes confirms the cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llmquant as lq

PAGE_TOKENS = 1024  # approximate tokens per page; llmquant measures batches in tokens


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = "benchmarks, tasks, or an evaluator with options; can be repeated (default: ViDoRe(v1),ViDoRe(v2))"
    parser.add_argument("--model", default="bigemma3-4b-embedding", help="one model, or a,b,c (default: %(default)s)")
    parser.add_argument("--benchmarks", action="append", metavar="A,B", help=benchmarks)
    parser.add_argument("--list-benchmarks", action="store_true", help="list the ViDoRe benchmarks and exit")
    parser.add_argument("--batch-size", type=int, metavar="PAGES", help="pages per batch (default: automatic)")
    parser.add_argument("--dim", type=int, help="vector dimensions to keep: 1536 or 768 of BiGemma3's 2560")
    parser.add_argument("--limit", type=int, metavar="QUERIES", help="maximum queries per task (default: all)")
    parser.add_argument("--on", default="modal(gpu=L40S, timeout=7200)", help='executor, or "local" (%(default)s)')
    parser.add_argument("--budget", type=float, metavar="DOLLARS", help="maximum cost in dollars, for example 30")
    parser.add_argument("--yes", action="store_true", help="confirm the cost, whatever its amount")
    parser.add_argument("--output-folder", default="results", type=Path, help="folder of runs; stored runs are reused")
    return parser, parser.parse_args()


def split(text: str) -> list[str]:
    """Split at commas that are outside brackets."""
    return [str(part) for part in lq.Call.parse(f"list({text})").args]


def executor(args: argparse.Namespace) -> str:
    """Add the budget and the confirmation to the executor's call."""
    on = lq.Call.parse(args.on)
    money = {name: value for name, value in (("budget", args.budget), ("yes", args.yes)) if value}
    return str(lq.Call(on.name, on.args, {**on.options, **money}))


def evaluator(text: str, batch_size: int | None) -> lq.Call:
    """Parse an evaluator's call; any other name is a benchmark or a task of mteb."""
    call = lq.Call.parse(text)
    if call.name not in lq.registry().names("evaluator"):
        call = lq.Call("mteb", (text,))
    size = {"batch_tokens": batch_size * PAGE_TOKENS} if batch_size else {}
    return lq.Call(call.name, call.args, {**call.options, **size})


def show(found: lq.Comparison, call: lq.Call) -> None:
    """Print the main metric on one benchmark by model and task, and each model's mean where every task has one."""
    label, rows = lq.registry().choose("evaluator", call).use.label, found.rows()
    parts = (label, *found.record.benchmarks.get(label, ()))
    print(f"\n{label}")
    for model in dict.fromkeys(row.model for row in rows):
        for row in (row for row in rows if row.model == model and row.evaluator in parts):
            if row.value is None or (row.headline and not row.unit):
                value = row.status if row.value is None else f"{row.value:.3f}"
                print(f"  {model:46} {row.task or row.evaluator:50} {row.metric:10} {value:>7}")


def list_benchmarks() -> int:
    from llmquant.catalogs.mteb import known_mteb
    from llmquant.storage.cache import Cache

    index = known_mteb(Cache.default())
    for name in sorted(name for name in index.benchmarks if "vidore" in name.lower()):
        print(f"{name:30} {len(index.expand(name)):3} tasks")
    return 0


def run(args: argparse.Namespace) -> int:
    texts = [text for several in args.benchmarks or ["ViDoRe(v1),ViDoRe(v2)"] for text in split(several)]
    benchmarks = [evaluator(text, args.batch_size) for text in texts]
    found = lq.compare(
        split(args.model),
        ["bf16_baseline"],
        benchmarks,
        vectors={"dims": [args.dim]} if args.dim else None,
        limit=args.limit,
        executor=executor(args),
        store=args.output_folder,
    )
    print(found)
    for call in benchmarks:
        show(found, call)
    output = args.output_folder / f"vidore-{found.record.study_id}.json"
    found.save_json(output)
    print(f"\nsaved to {output}; mteb's own result files: {args.output_folder}/runs/*/files/mteb")
    return 1 if found.failed else 0


if __name__ == "__main__":
    parser, args = parse()
    try:
        parser.exit(list_benchmarks() if args.list_benchmarks else run(args))
    except lq.errors.RequestError as error:  # nothing was started
        parser.exit(2, f"error:\n{error}\n")
