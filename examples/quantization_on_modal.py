"""Compare quantizations of a language model on A100 GPUs: CoQA, memory, latency, throughput.

    python examples/quantization_on_modal.py --experiment bnb_4bit_nf4 --experiment gptq_4bit_g128 --budget 20
    python examples/quantization_on_modal.py --all-experiments --limit 50 --on local

On Modal the quantizations run in parallel; --budget or --yes confirms the cost.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llmquant as lq

FEW = ["fp16_baseline", "bnb_4bit_nf4", "bnb_4bit_fp4"]
ALL = [
    *FEW,
    "bnb_8bit",
    "bnb_4bit_nf4_no_double",
    "bnb_4bit_fp4_no_double",
    "gptq_4bit_g128",
    "gptq_4bit_g32",
    "gptq_3bit_g128",
    "awq_4bit_g128",
]


def parse() -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    few = f"a preset, or a quantizer with options; can be repeated (default:  {', '.join(FEW)})"
    parser.add_argument("--experiment", action="append", metavar="NAME", help=few)
    parser.add_argument("--all-experiments", action="store_true", help=f"run all of: {', '.join(ALL)}")
    parser.add_argument("--model", default="meta-llama/Llama-3.2-1B", help="Hub id or folder (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=100, help="number of CoQA stories (default: %(default)s)")
    parser.add_argument("--data", help="CoQA rows in a JSONL file, instead of those on the Hub")
    parser.add_argument("--prompt-tokens", type=int, nargs="+", default=[128, 256, 512, 1024], help="tokens per prompt")
    parser.add_argument("--output-tokens", type=int, default=128, help="generated tokens per prompt")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8], help="prompts per batch")
    parser.add_argument("--repeats", type=int, default=20, help="measured repeats per timing (default: %(default)s)")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--skip-eval", action="store_true", help="do not run CoQA")
    only.add_argument("--skip-benchmark", action="store_true", help="do not measure memory, latency and throughput")
    parser.add_argument("--on", default="modal(gpu=A100, timeout=3600)", help='executor, or "local" (%(default)s)')
    parser.add_argument("--budget", type=float, metavar="DOLLARS", help="maximum cost in dollars, for example 20")
    parser.add_argument("--yes", action="store_true", help="confirm the cost, whatever its amount")
    parser.add_argument("--store", default="results", help="folder of runs; stored runs are reused")
    parser.add_argument("--output", default="results/quantization.json", help="result file (default: %(default)s)")
    return parser, parser.parse_args()


def executor(args: argparse.Namespace) -> str:
    """Add the budget and the confirmation to the executor's call."""
    on = lq.Call.parse(args.on)
    money = {name: value for name, value in (("budget", args.budget), ("yes", args.yes)) if value}
    return str(lq.Call(on.name, on.args, {**on.options, **money}))


def run(args: argparse.Namespace) -> int:
    experiments = ALL if args.all_experiments else args.experiment or FEW
    if not any("baseline" in name for name in experiments):
        experiments = ["fp16_baseline", *experiments]
    quality = [f"lm_eval(coqa, data={args.data})" if args.data else "lm_eval(coqa)"]
    speed = [
        f"memory(prompt_tokens={max(args.prompt_tokens)}, decode_tokens={args.output_tokens})",
        f"latency(prompt_tokens={args.prompt_tokens}, decode_tokens={args.output_tokens}, repeats={args.repeats})",
        f"throughput(batches={args.batches}, prompt_tokens={args.prompt_tokens[0]}, new_tokens={args.output_tokens})",
    ]
    found = lq.compare(
        args.model,
        experiments,
        [*([] if args.skip_eval else quality), *([] if args.skip_benchmark else speed)],
        limit=args.limit,
        seed=42,
        executor=executor(args),
        store=args.store,
    )
    print(found)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    found.save_json(args.output)
    print(f"saved to {args.output}")
    return 1 if found.failed else 0


if __name__ == "__main__":
    parser, args = parse()
    try:
        parser.exit(run(args))
    except lq.errors.RequestError as error:  # nothing was started
        parser.exit(2, f"error:\n{error}\n")
