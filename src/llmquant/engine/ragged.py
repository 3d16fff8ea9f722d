"""Greedy generation in which each answer ends by itself, and prompts share what they have in common.

Prompts are read in the order of their tokens. The longest prefix that a prompt shares with any prompt before it is then
the one that it shares with the last: its keys and values are copied, and each distinct prefix is read once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llmquant.engine.slots import Slots

# Prompts are read together up to this number of tokens, padding included: larger forward passes are not faster.
_TOGETHER = 256
# A smaller part of a prompt is read again: a prompt with nothing before it needs no mask, which takes memory by the
# square of the prompt's length (36 MiB for 1,000 tokens in float32).
_LEAST_SHARED = 1 / 16


@dataclass(frozen=True)
class Prompt:
    """A prompt to answer.

    Attributes:
        tokens: the prompt's tokens, at least one.
        limit: maximum tokens of the answer.
        ended: whether an answer ends with its last token.
    """

    tokens: Sequence[int]
    limit: int
    ended: Callable[[Sequence[int]], bool]


@dataclass
class Answer:
    """An answer.

    Attributes:
        tokens: its tokens, with the one that ends it.
        margins: for each token its logit minus the second largest logit.
        read: number of the prompt's tokens that were read, and not copied from another prompt.
    """

    tokens: list[int] = field(default_factory=list)
    margins: list[float] = field(default_factory=list)
    read: int = 0


@dataclass
class _Row:
    """A prompt in a slot, whose first `known` tokens are not read again."""

    number: int
    prompt: Prompt
    known: int
    answer: Answer

    @property
    def end(self) -> int:
        return len(self.prompt.tokens) + len(self.answer.tokens)


def decode(module: Any, prompts: Sequence[Prompt], slots: int) -> Iterator[tuple[int, Answer]]:  # Any: no types
    """Answer prompts greedily, at most `slots` at the same time.

    Args:
        module: a model that `support.why_not` accepts.

    Yields:
        A prompt's number and its answer, in the order in which answers end.
    """
    longest = max((len(prompt.tokens) + prompt.limit for prompt in prompts), default=0)
    keys = Slots(module, min(slots, len(prompts)), longest + _TOGETHER)  # padding in the row of another prompt included
    waiting = deque(sorted(range(len(prompts)), key=lambda number: list(prompts[number].tokens)))
    rows: dict[int, _Row] = {}
    before, source = Prompt((), 0, bool), 0
    while waiting or rows:
        free = [slot for slot in range(keys.count) if slot not in rows]
        new: dict[int, _Row] = {}
        for slot in free if waiting else ():
            row = _next(waiting[0], prompts, before, [*new.values()])
            if row is None:
                break
            waiting.popleft()
            keys.copy(source, slot, row.known)
            new[slot], before, source = row, row.prompt, slot
            if not waiting:
                break
        if new:
            starts = [row.known for row in new.values()]
            read = [row.prompt.tokens[row.known :] for row in new.values()]
            rows |= new
        else:
            for hole in [slot for slot in free if slot < len(rows)]:
                last = max(rows)
                keys.copy(last, hole, rows[last].end)
                rows[hole] = rows.pop(last)
            new = dict(sorted(rows.items()))
            starts = [row.end - 1 for row in new.values()]
            read = [row.answer.tokens[-1:] for row in new.values()]
        best = keys.read(list(new), starts, read).float().topk(2)
        margins = best.values[:, 0] - best.values[:, 1]
        for (slot, row), token, margin in zip(new.items(), best.indices[:, 0].tolist(), margins.tolist(), strict=True):
            row.answer.tokens.append(token)
            row.answer.margins.append(margin)
            if len(row.answer.tokens) == row.prompt.limit or row.prompt.ended(row.answer.tokens):
                del rows[slot]
                yield row.number, row.answer


def _next(number: int, prompts: Sequence[Prompt], before: Prompt, others: Sequence[_Row]) -> _Row | None:
    """Return the next prompt, if it can be read together with others."""
    prompt = prompts[number]
    most = min(len(before.tokens), len(prompt.tokens) - 1)  # the last token is read for its logits
    pairs = zip(before.tokens[:most], prompt.tokens[:most], strict=True)
    shared = next((place for place, (one, other) in enumerate(pairs) if one != other), most)
    shared = shared if shared >= _LEAST_SHARED * len(prompt.tokens) else 0
    if not others:
        return _row(number, prompt, shared)
    # What the others read is not known yet.
    known = min(shared, others[-1].known)
    sizes = [len(prompt.tokens) - known, *(len(row.prompt.tokens) - row.known for row in others)]
    if shared - known > sizes[0] // 8 or max(sizes) > 2 * min(sizes) or max(sizes) * len(sizes) > _TOGETHER:
        return None
    return _row(number, prompt, known)


def _row(number: int, prompt: Prompt, known: int) -> _Row:
    return _Row(number, prompt, known, Answer(read=len(prompt.tokens) - known))
