"""The documents whose score changed most: question, expected answer, and both answers."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Sequence

from llmquant.results.changes import DocumentChange
from llmquant.study.margins import is_share
from llmquant.study.neutral import html_lines, html_text

# Of a prompt the end is shown, which has the question; of an answer the beginning.
_PROMPT, _ANSWER = 1200, 600
# Metrics of searches, whose answers are JSON.
_SEARCHED = re.compile(r"_at_\d+$")


def flips_html(changes: Sequence[DocumentChange]) -> str:
    """Write one section per variant and task; ``""`` if no answer was kept."""
    shown = [one for one in changes if one.answer is not None and one.baseline_answer is not None]
    several = len({one.model for one in shown}) > 1
    parts = []
    for (model, task, variant), group in itertools.groupby(shown, lambda one: (one.model, one.task, one.variant)):
        title = " · ".join(filter(None, (variant, task, model if several else "")))
        body = "".join(_document(one) for one in group)
        parts.append(f'<details class="flips"><summary>{html_text(title)}</summary>{body}</details>')
    if not parts:
        return ""
    note = "The documents of each variant and task whose score changed most."
    return f'<section><h2>Documents that changed</h2><p class="key">{note}</p>{"".join(parts)}</section>'


def answers_of(one: DocumentChange) -> tuple[str | None, str | None, str | None]:
    """Return the expected answer, the baseline's and the variant's; of a search its documents, for people."""
    texts = one.reference, one.baseline_answer, one.answer
    return tuple(map(_documents, texts)) if _SEARCHED.search(one.metric) else texts  # type: ignore[return-value]  # of 3


def _documents(text: str | None) -> str | None:
    """Write ``[["d1", 0.70345]]`` as ``d1 0.703`` and grades ``{"d1": 2}`` as ``d1 2``; what is neither stays."""
    try:
        found = json.loads(text or "")
        pairs = found.items() if isinstance(found, dict) else found
        return ", ".join(f"{document} {score:.3g}" for document, score in pairs)
    except (TypeError, ValueError):
        return text


def _document(one: DocumentChange) -> str:
    prompt = "" if one.prompt is None else f"<pre>{html_lines(_end(one.prompt))}</pre>"
    expected, before, after = answers_of(one)
    reference = "" if expected is None else _field("expected", expected)
    tone = ("good" if one.change > 0 else "bad") if is_share(one.metric) else ""
    said = html_text(f"{one.metric} {one.baseline_score:.3g} → {one.score:.3g}")
    scores = f'<span class="{tone}">{said}</span>'
    cut = " (cut)" if one.cut else ""
    answers = _field("baseline", before or "") + _field(one.variant + cut, after or "")
    return f'<article class="flip">{prompt}<p>{scores}</p><dl>{reference}{answers}</dl></article>'


def _field(name: str, text: str) -> str:
    shown = text.strip() if len(text) <= _ANSWER else text[:_ANSWER].lstrip() + " …"
    return f"<dt>{html_text(name)}</dt><dd>{html_lines(shown) or '<i>nothing</i>'}</dd>"


def _end(text: str) -> str:
    return text if len(text) <= _PROMPT else "… " + text[-_PROMPT:]
