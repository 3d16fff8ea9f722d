"""Windows that slide over a text: the tokens that the model sees, and those that are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llmquant.loading.token_rows import around


@dataclass(frozen=True)
class Window:
    """Tokens ``begin`` to ``end`` are seen, tokens ``first`` to ``end`` are scored; ``end`` is not included."""

    begin: int
    first: int
    end: int

    @property
    def scored(self) -> int:
        """The number of scored tokens."""
        return self.end - self.first


@dataclass(frozen=True)
class EncodedText:
    """A text as tokens.

    Attributes:
        ids: token ids, without tokens that the tokenizer adds.
        bytes_before: by position in `ids` up to its length, bytes of UTF-8 text before that token; ``None`` if the
            tokenizer does not report them.
        lead: tokens that this model's tokenizer puts before a text: a BOS, GLM's two, or none.
    """

    ids: Sequence[int]
    bytes_before: Sequence[int] | None
    lead: Sequence[int]


def sliding_windows(tokens: int, *, window: int, stride: int, lead: int) -> list[Window]:
    """Cut a text so that each token is scored once, after more than ``window - stride`` others except at the start.

    The last token of a window is only predicted, so a window reads at most `window` tokens: `lead` tokens, and those
    from ``begin`` to ``end - 1``. With ``stride == window`` the windows do not overlap.

    Args:
        tokens: number of tokens in the text.
        window: maximum tokens that the model reads at a time.
        stride: tokens between two windows' ends, 1 to `window`; fewer if several tokens lead.
        lead: tokens before each window that do not belong to the text: 1 for a BOS; 0 for none, and then the first
            token is not scored.
    """
    room = window - lead
    stride = min(stride, room + 1)
    windows, first, end = [], 0 if lead else 1, min(room + 1, tokens)
    while end > first:
        windows.append(Window(max(0, end - 1 - room), first, end))
        first, end = end, min(end + stride, tokens)
    return windows


def encode(tokenizer: Any, text: str) -> EncodedText:  # Any: transformers' tokenizers
    """Turn a text into tokens, with the bytes of each token."""
    fast = bool(tokenizer.is_fast)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=fast, verbose=False)
    before = _bytes_before(text, encoded.offset_mapping) if fast else None
    return EncodedText(encoded.input_ids, before, around(tokenizer)[0])


def _bytes_before(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """Count bytes up to each token's end; a character that several tokens share belongs to the first."""
    before, place, count = [0], 0, 0
    for _, end in offsets:
        if end > place:
            count += len(text[place:end].encode())
            place = end
        before.append(count)
    return before
