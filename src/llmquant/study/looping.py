"""Recognizes answers that end in a loop: a model that repeats itself until the maximum number of tokens."""

from __future__ import annotations

TIMES = 3
LEAST_SHARE = 1 / 3
LEAST_CHARACTERS = 48
_SUFFIX = 8


def is_looping(text: str) -> bool:
    """Return whether a text ends in a loop.

    A text loops if it ends with one unit, such as a word or a sentence, that comes at least three times in a row, and
    if these repetitions cover at least a third of the text and 48 characters. The last repetition may be incomplete.
    """
    least = max(LEAST_CHARACTERS, round(len(text) * LEAST_SHARE))
    if len(text) < least:
        return False
    # The unit's length is the distance of the last characters from an earlier place where they are the same.
    start, suffix = len(text) - _SUFFIX, text[-_SUFFIX:]
    found = start
    while (found := text.rfind(suffix, 0, found + _SUFFIX - 1)) >= 0:
        unit = start - found
        if unit * TIMES > len(text):
            return False
        end = text[-max(least, unit * TIMES) :]
        if end[unit:] == end[:-unit]:
            return True
    return False
