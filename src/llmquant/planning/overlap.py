"""How much of a text is in another: calibration text that is evaluated on makes a loss look smaller than it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# GPT-3's decontamination looked for 13 words in a row (Brown et al., arXiv:2005.14165, appendix C).
_WORDS = 13


def shared_share(evaluation: Iterable[str], calibration: Iterable[str]) -> float:
    """Return the share of the sequences of 13 words of `evaluation` that are in `calibration` too.

    Case and white space do not matter. A text with fewer words counts as one sequence.

    Returns:
        0 to 1; 0 if either is empty.
    """
    known = set(_sequences(calibration))
    if not known:
        return 0.0
    found = total = 0
    for sequence in _sequences(evaluation):
        total += 1
        found += sequence in known
    return found / total if total else 0.0


def _sequences(texts: Iterable[str]) -> Iterator[int]:
    for text in texts:
        words = text.lower().split()
        for start in range(max(1, len(words) - _WORDS + 1) if words else 0):
            yield hash(tuple(words[start : start + _WORDS]))
