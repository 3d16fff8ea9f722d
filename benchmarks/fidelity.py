"""Compare the time and memory of the fidelity evaluator with plain perplexity, interleaved in one run.

    python benchmarks/fidelity.py MODEL TEXT [--tokens 10000] [--window 512] [--variant bnb_8bit] [--pairs 3]

Without MODEL and TEXT: SmolLM2-135M-Instruct and the stories of the demo (run ``llmquant demo`` once before). A pair is
fidelity of the baseline (with and without its noise floor) and of the variant, and perplexity of both, on the same
windows; seconds are CPU time of this process, which other programs on the machine change little. Exits with 1 when
fidelity without the floor takes 1.5 times as long as perplexity or more, or when it needs 300 MB or more besides the
variant and the head.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

import llmquant as lq
from llmquant.cli.demo import demo_study
from llmquant.evaluators.fidelity.evaluator import Fidelity
from llmquant.evaluators.fidelity.options import FidelityOptions
from llmquant.evaluators.perplexity.evaluator import Perplexity
from llmquant.evaluators.perplexity.options import PerplexityOptions
from llmquant.loading.memory import peak_memory
from llmquant.storage.cache import Cache
from llmquant.study.experiment import Documents, InputFile
from llmquant.study.run import REFERENCE_FILE
from llmquant.testing.demo_data import demo_model

Timed = dict[str, float]


def run(evaluator, subject: lq.LoadedModel, files: Path, reference: Path | None = None) -> tuple[float, int]:
    """Evaluate; return the CPU seconds and the peak of additional resident bytes."""
    files.mkdir(exist_ok=True)
    context = lq.Context("cpu", 0, Documents(), Cache.default(), {}, reference, files, lambda done, total: None)
    with peak_memory("cpu") as peak:
        start = time.process_time()
        list(evaluator.evaluate(subject, context))
        seconds = time.process_time() - start
    return seconds, peak.bytes or 0


def one_pair(models: tuple[lq.LoadedModel, lq.LoadedModel], text: InputFile, sizes: dict[str, int]) -> Timed:
    """Run everything once; return seconds and bytes by name."""
    found: Timed = {}
    for number, subject in enumerate(models):
        plain = Perplexity(PerplexityOptions(text, stride=sizes["window"], **sizes))
        with tempfile.TemporaryDirectory() as folder:
            found[f"perplexity {number}"], found[f"perplexity bytes {number}"] = run(plain, subject, Path(folder))
    with tempfile.TemporaryDirectory() as folder:
        for name, floor in (("fidelity with floor 0", True), ("fidelity 0", False)):
            found[name], _ = run(Fidelity(FidelityOptions(text, floor=floor, **sizes)), models[0], Path(folder))
        fidelity, reference = Fidelity(FidelityOptions(text, **sizes)), Path(folder) / REFERENCE_FILE
        found["fidelity 1"], found["fidelity bytes 1"] = run(fidelity, models[1], Path(folder) / "after", reference)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("text", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--baseline", default="fp32_baseline")
    parser.add_argument("--variant", default="bnb_8bit")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = given.model or str(demo_model())
    text = InputFile.read(given.text or Path(demo_study(50).evaluators[1].args[0]))
    models = tuple(lq.load(model, quantizer, device="cpu") for quantizer in (given.baseline, given.variant))
    sizes = {"window": given.window, "max_tokens": given.tokens}
    head = models[0].module.get_output_embeddings().weight
    head_bytes = head.numel() * head.element_size()
    one_pair(models, text, {**sizes, "max_tokens": 2 * given.window})  # the first run loads libraries
    pairs = []
    for number in range(given.pairs):
        pairs.append(one_pair(models, text, sizes))
        print(f"pair {number + 1}: " + ", ".join(f"{k} {v:.1f} s" for k, v in pairs[-1].items() if "bytes" not in k))
    plain = [p["perplexity 0"] + p["perplexity 1"] for p in pairs]
    ratios = {
        name: statistics.median((p[f"{name} 0"] + p["fidelity 1"]) / q for p, q in zip(pairs, plain, strict=True))
        for name in ("fidelity", "fidelity with floor")
    }
    beyond = max(p["fidelity bytes 1"] for p in pairs) - head_bytes
    print(f"{given.tokens} tokens, window {given.window}, {given.baseline} and {given.variant}")
    for name, ratio in ratios.items():
        print(f"{name} / two perplexity passes: {ratio:.2f}")
    print(f"peak besides the variant: {(beyond + head_bytes) / 1e6:.0f} MB, without the head {beyond / 1e6:.0f} MB")
    print(f"(perplexity of the variant: {max(p['perplexity bytes 1'] for p in pairs) / 1e6:.0f} MB)")
    sys.exit(ratios["fidelity"] >= 1.5 or beyond >= 300e6)


if __name__ == "__main__":
    main()
