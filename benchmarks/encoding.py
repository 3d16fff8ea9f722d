"""Measure the overhead of encoding: hashing pages, the loop compared with a plain one, and a repeated call.

    python benchmarks/encoding.py [--pages 12] [--pairs 5] [--threads 1] [--layers 12] [--hidden 384] [--device cpu]

The pages are drawn, the model is a SigLIP vision tower with random weights: its work depends on neither. The plain loop
decodes, preprocesses and encodes one page after the other, by the same functions. Prints Markdown, and exits with 1
when hashing takes a millisecond per page or more, when the loop reaches less than 0.95 of the plain one's throughput
(3 on a GPU), when a vector differs, or when the repeated call encodes anything.
"""

from __future__ import annotations

import argparse
import io
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

from llmquant.models.info import ModelInfo
from llmquant.plugins.embedder import Prepared
from llmquant.plugins.evaluator import LoadStats
from llmquant.plugins.quantizer import AppliedQuantization
from llmquant.retrieval.encode import encode
from llmquant.retrieval.images import decode
from llmquant.retrieval.items import Item
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.storage.cache import Cache
from llmquant.study.embedding import EmbedderInfo
from llmquant.study.experiment import VectorForm, digest_of

TEXT = "revenue margin the of a quarter segment growth operating cash flow guidance table figure note and in"


def draw_page(seed: int) -> bytes:
    """Draw an A4 page at 200 dots per inch, with text and a photograph, as a PNG."""
    random = np.random.default_rng(seed)
    page = Image.new("RGB", (1654, 2339), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(28)
    for line in range(42):
        draw.text((120, 120 + 38 * line), " ".join(random.choice(TEXT.split(), 13)), fill="black", font=font)
    smooth = Image.fromarray(random.integers(0, 256, (18, 42, 3), np.uint8)).resize(
        (600, 260), Image.Resampling.BICUBIC
    )
    page.paste(smooth, (120, 1850))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return buffer.getvalue()


class OpenVision:
    """A vision tower as an `OpenEmbedder`."""

    def __init__(self, hidden: int, layers: int, side: int, device: str) -> None:
        torch.manual_seed(0)
        config = SiglipVisionConfig(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 64,
            image_size=side,
            patch_size=16,
        )
        self.module = SiglipVisionModel(config).eval().to(device)
        self.processor = SiglipImageProcessorPil(size={"height": side, "width": side})
        self.tokens = (side // 16) ** 2
        self.device = device
        self.embedded = 0

    def prepare(self, text, image, role):  # noqa: D102 - see the protocol
        return Prepared(self.tokens, self.processor(image, return_tensors="np")["pixel_values"])

    def embed(self, batch, role):  # noqa: D102
        self.embedded += len(batch)
        pixels = torch.from_numpy(np.concatenate([item.inputs for item in batch])).to(self.device)
        with torch.inference_mode():
            pooled = self.module(pixel_values=pixels).pooler_output
        return list(torch.nn.functional.normalize(pooled, dim=-1).float().cpu().numpy())


def subject(opened: OpenVision, folder: Path, hidden: int, batch_tokens: int | None) -> LoadedEmbedder:
    embeds = EmbedderInfo(hidden, (hidden,), ("image",))
    key = digest_of("benchmark")
    return LoadedEmbedder(
        opened=opened,
        embeds=embeds,
        vectors=VectorForm(),
        fingerprint=key,
        info=ModelInfo("benchmark", key, (), "none", None, None, None, {}, {}, (), 0, embeds=embeds),
        applied=AppliedQuantization("none", "float32", 32, None, False, "float32", {"float32": 1}, 0),
        path=None,
        device=opened.device,
        load=LoadStats(0, None),
        cache=Cache(folder),
        batch_tokens=batch_tokens,
    )


def plain(opened: OpenVision, items: list[Item]) -> tuple[float, np.ndarray]:
    """Encode one page after the other; return seconds and vectors."""
    start = time.perf_counter()
    vectors = [opened.embed([opened.prepare(None, decode(i.image, i.name), "document")], "document")[0] for i in items]
    return time.perf_counter() - start, np.stack(vectors)


def ours(opened: OpenVision, items: list[Item], hidden: int, batch_tokens: int | None) -> tuple[float, np.ndarray, int]:
    """Encode with an empty cache; return seconds, vectors, and how many pages a second call encodes."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = subject(opened, Path(folder), hidden, batch_tokens)
        start = time.perf_counter()
        vectors = encode(loaded, items, "document").values
        seconds = time.perf_counter() - start
        before = opened.embedded
        again = encode(loaded, items, "document").values
        if not np.array_equal(again, vectors):
            sys.exit("the cached vectors differ from the fresh ones")
        return seconds, vectors, opened.embedded - before


def hash_ms(items: list[Item]) -> float:
    """Return the median CPU time of hashing one page, in milliseconds."""
    times = []
    for item in items * 20:
        start = time.thread_time()
        _ = item.key
        times.append(time.thread_time() - start)
    return 1e3 * statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=12)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--side", type=int, default=384)
    parser.add_argument("--batch-tokens", type=int)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    items = [Item(image=draw_page(seed), name=f"page {seed}") for seed in range(arguments.pages)]
    opened = OpenVision(arguments.hidden, arguments.layers, arguments.side, arguments.device)
    size = statistics.median(len(item.image) for item in items) / 1e3
    hashing = hash_ms(items)
    plain(opened, items[:2])
    ours(opened, items[:2], arguments.hidden, arguments.batch_tokens)
    rates, ratios, difference, repeated = {"plain": [], "llmquant": []}, [], 0.0, 0
    for pair in range(arguments.pairs):
        times = {}
        for which in ("plain", "llmquant") if pair % 2 == 0 else ("llmquant", "plain"):
            if which == "plain":
                times[which], one_by_one = plain(opened, items)
            else:
                times[which], batched, again = ours(opened, items, arguments.hidden, arguments.batch_tokens)
                repeated += again
        difference = max(difference, float(np.abs(one_by_one - batched).max()))
        ratios.append(times["plain"] / times["llmquant"])
        for which, seconds in times.items():
            rates[which].append(len(items) / seconds)
    ratio, least = statistics.median(ratios), 0.95 if arguments.device == "cpu" else 3.0
    print(f"| measured ({arguments.device}, {arguments.threads} threads) | value | wanted |\n| --- | --- | --- |")
    print(f"| hashing a page of {size:.0f} kB (median), CPU ms | {hashing:.3f} | < 1 |")
    print(f"| plain loop, pages per second | {statistics.median(rates['plain']):.2f} | |")
    print(f"| llmquant, pages per second | {statistics.median(rates['llmquant']):.2f} | |")
    pairs = f"median of {arguments.pairs} interleaved pairs, {min(ratios):.2f} to {max(ratios):.2f}"
    print(f"| throughput / plain loop's ({pairs}) | {ratio:.2f} | >= {least} |")
    print(f"| largest difference of a number of a vector | {difference:.1e} | < 1e-4 |")
    print(f"| pages that repeated calls encoded | {repeated} | 0 |")
    sys.exit(not (hashing < 1 and ratio >= least and difference < 1e-4 and repeated == 0))


if __name__ == "__main__":
    main()
