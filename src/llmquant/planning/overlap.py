"""The overlap of two texts: evaluating on calibration text makes the measured loss too small."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

# GPT-3's decontamination looked for 13 words in a row (Brown et al., arXiv:2005.14165, appendix C).
_WORDS = 13


def shared_share(evaluation: Iterable[str], calibration: Iterable[str]) -> float:
    """Return the share of the 13-word sequences of `evaluation` that also occur in `calibration`.

    Case and white space are ignored. A text with fewer words counts as one sequence.

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
