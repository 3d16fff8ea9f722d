"""Compare two quantizations of a model from Python, and read the verdicts from the result.

    python examples/compare_from_python.py MODEL TEXT.txt

MODEL is a Hub id, a checkpoint folder or a .gguf file; TEXT is any text file of a few thousand words.
"""

from __future__ import annotations

import sys

import llmquant as lq


def main(model: str, text: str) -> None:
    found = lq.compare(
        model,
        ["bf16_baseline", "bnb_8bit", "bnb_4bit_nf4"],
        [f"perplexity({text}, window=512, stride=256, max_tokens=2048)", "memory(prompt_tokens=64, decode_tokens=4)"],
        store="results",
    )
    print(found)
    for row in found.rows():
        if row.metric == "perplexity" and row.ratio is not None:
            print(f"{row.variant}: perplexity x {row.ratio:.3f}, {row.verdict} over {row.pairs} windows")
    found.save_json("study.json")


if __name__ == "__main__":
    main(*sys.argv[1:])
