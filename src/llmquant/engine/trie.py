"""A plan for reading token lists that share prefixes: each shared prefix is read once, within a budget of tokens.

The texts form a trie. A forward pass reads rows; a row lists subtrees depth first. Token `q` of a row sees token `k`
exactly if ``k <= q < ends[k]``, where ``ends[k]`` is the end of the subtree that begins with `k` (an Euler tour). A
prefix that does not fit together with all that follows it is read alone, and its keys and values are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# A shared prefix is repeated for each child if that adds at most this share to what is below it: a forward pass of its
# own would take longer, and what follows could not be read in several rows.
_REPEATED = 1 / 16


class Text(NamedTuple):
    """A text to read, and the tokens to score: the last token read predicts the last target, and so on backwards."""

    tokens: Sequence[int]
    targets: Sequence[int]


class Target(NamedTuple):
    """A token to score.

    Attributes:
        text: number of the text.
        place: place in the text's targets.
        token: the token's id.
    """

    text: int
    place: int
    token: int


@dataclass
class Row:
    """A row of a forward pass.

    Attributes:
        tokens: the tokens, depth first.
        positions: for each token its position in its text.
        ends: for each token the end of its subtree in this row.
        targets: tokens to score, with the place in this row of the token that predicts them.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    targets: list[tuple[int, Sequence[Target]]] = field(default_factory=list)


@dataclass(frozen=True)
class Forward:
    """A forward pass.

    Attributes:
        past: number of kept tokens before every row; what is kept beyond them is dropped.
        rows: the rows.
        keep: whether the only row is kept too.
    """

    past: int
    rows: Sequence[Row]
    keep: bool = False


@dataclass(frozen=True)
class Plan:
    """How to read texts.

    Attributes:
        forwards: forward passes that score each target once.
        stock: tokens that lm-eval reads: texts whose continuations differ only in the last token are one text.
        distinct: tokens that remain if each shared prefix is read once.
    """

    forwards: Iterator[Forward]
    stock: int
    distinct: int


@dataclass
class _Node:
    """A run of tokens without a branch; `targets` by the position of the token that predicts them."""

    start: int
    tokens: list[int]
    children: list[_Node] = field(default_factory=list)
    targets: dict[int, list[Target]] = field(default_factory=dict)
    size: int = 0  # tokens of the run and of everything below it

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)

    def cut(self, position: int) -> _Node:
        """End the run at a position; return the rest, which has the children."""
        rest = _Node(position, self.tokens[position - self.start :], self.children)
        rest.size = self.size - (position - self.start)
        rest.targets = {at: self.targets.pop(at) for at in list(self.targets) if at >= position}
        self.tokens, self.children = self.tokens[: position - self.start], [rest]
        return rest


def plan(texts: Sequence[Text], budget: int) -> Plan:
    """Plan forward passes of at most `budget` tokens, padding included."""
    root = _trie(texts)
    return Plan(_forwards(root, budget), sum(map(len, {tuple(text.tokens) for text in texts})), root.size)


def _forwards(root: _Node, budget: int) -> Iterator[Forward]:
    children = _children(root, budget)
    yield from _side_by_side([child for child in children if child.size <= budget], budget)
    waiting = [(child, 0) for child in reversed(children) if child.size > budget]
    while waiting:
        node, past = waiting.pop()
        # Only as much is read alone as is needed for the rest to fit, in parts of equal length.
        alone = min(node.size - budget, len(node.tokens))
        for left in range(-(-alone // budget), 0, -1):
            part = -(-alone // left)
            rest = node.cut(past + part)
            yield Forward(past, [_row([_Node(past, node.tokens, targets=node.targets, size=part)])], keep=True)
            node, past, alone = rest, past + part, alone - part
        below = [node] if node.tokens else _children(node, budget)
        yield from _one_row([child for child in below if child.size <= budget], past, budget)
        waiting += [(child, past) for child in reversed(below) if child.size > budget]


def _trie(texts: Sequence[Text]) -> _Node:
    root = _Node(0, [])
    path = [root]
    before: NDArray[np.int64] = np.empty(0, np.int64)
    for number in sorted(range(len(texts)), key=lambda number: list(texts[number].tokens)):
        tokens = np.asarray(texts[number].tokens, np.int64)
        shared = _shared(before, tokens)
        while len(path) > 1 and path[-1].start >= shared:
            path.pop()
        if path[-1].end > shared:
            path[-1].cut(shared)
        if len(tokens) > shared:
            path[-1].children.append(_Node(shared, tokens[shared:].tolist()))
            path.append(path[-1].children[-1])
        _mark(path, number, texts[number])
        before = tokens
    order = [root]
    for node in order:
        order += node.children
    for node in reversed(order):
        node.size = len(node.tokens) + sum(child.size for child in node.children)
    return root


def _shared(one: NDArray[np.int64], other: NDArray[np.int64]) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length


def _mark(path: Sequence[_Node], number: int, text: Text) -> None:
    first = len(text.tokens) - len(text.targets)
    for node in path:
        for at in range(max(first, node.start), node.end):
            node.targets.setdefault(at, []).append(Target(number, at - first, text.targets[at - first]))


def _children(node: _Node, budget: int) -> list[_Node]:
    """Return a node's children; one that is a short prefix of much is put in front of each of its own children."""
    found, waiting = [], node.children[::-1]
    while waiting:
        child = waiting.pop()
        repeated = len(child.tokens) * (len(child.children) - 1)
        if child.size <= budget or not child.children or repeated > child.size * _REPEATED:
            found.append(child)
            continue
        for lower in child.children:
            lower.start, lower.tokens = child.start, child.tokens + lower.tokens
            lower.size += len(child.tokens)
        child.children[0].targets |= child.targets
        waiting += child.children[::-1]
    return found


def _one_row(nodes: Sequence[_Node], past: int, budget: int) -> Iterator[Forward]:
    """Read subtrees in one row per forward pass: several rows would need several copies of what is kept."""
    first = size = 0
    for number, node in enumerate(nodes):
        if size + node.size > budget:
            yield Forward(past, [_row(nodes[first:number])])
            first, size = number, 0
        size += node.size
    if size:
        yield Forward(past, [_row(nodes[first:])])


def _side_by_side(nodes: Sequence[_Node], budget: int) -> Iterator[Forward]:
    """Read each subtree in a row of its own, beside others of its size: attention between subtrees is not computed."""
    ordered = sorted(nodes, key=lambda node: -node.size)
    first = 0
    while first < len(ordered):
        count = max(1, budget // ordered[first].size)
        yield Forward(0, [_row([node]) for node in ordered[first : first + count]])
        first += count


def _row(tops: Sequence[_Node]) -> Row:
    row, waiting = Row(), list(tops[::-1])
    while waiting:
        node = waiting.pop()
        slot = len(row.tokens)
        row.tokens += node.tokens
        row.positions += range(node.start, node.end)
        row.ends += [slot + node.size] * len(node.tokens)
        row.targets += [(slot + at - node.start, found) for at, found in sorted(node.targets.items())]
        waiting += node.children[::-1]
    return row
