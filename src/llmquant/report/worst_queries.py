"""The queries a variant answers worst, with what it found and what it missed, as HTML with thumbnails."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from llmquant.comparison import StudyRecord, label
from llmquant.experiment import RunId
from llmquant.run import Run

STYLE = """
.worst summary { cursor: pointer; font-weight: 600; margin: .7em 0 .2em; }
.worst .query { border-top: 1px solid rgba(128, 128, 128, .35); padding: .6em 0; }
.worst .text { font-weight: 600; margin: 0 0 .4em; max-width: 60em; }
.worst .score { font-weight: 400; opacity: .75; margin-left: .6em; }
.worst .side { display: inline-block; vertical-align: top; margin-right: 2em; }
.worst .side > p { margin: 0 0 .3em; font-size: 12px; opacity: .75; }
.worst figure { display: inline-block; margin: 0 .6em .4em 0; width: 160px; vertical-align: top; }
.worst .thumb { width: 156px; height: 220px; border: 2px solid rgba(128, 128, 128, .5);
  background: #fff center / contain no-repeat; }
.worst figure.right .thumb, .worst figure.right .page { border-color: #178a43; }
.worst .page { border: 2px solid rgba(128, 128, 128, .5); padding: .5em; font-size: 11px; overflow: hidden; }
.worst figcaption { font-size: 11px; overflow-wrap: anywhere; line-height: 1.3; margin-top: .2em; }
"""


def worst_queries_html(record: StudyRecord, runs: Mapping[RunId, Run], files: Callable[[Run], Path]) -> str:
    """Write a section for each run that kept its worst queries; ``""`` where none did.

    Args:
        files: gives the folder of what a run kept. A task's details name the file in it as ``failures``: JSON with
            ``metric`` and ``queries``, each with ``query``, ``score``, and documents as ``found`` and ``missed``.
    """
    parts: list[str] = []
    pictures: dict[str, str] = {}  # each once, however many variants found the page
    for experiment in record.experiments:
        run = runs.get(experiment.run_id)
        if run is None or run.status != "completed":
            continue
        for task, details in run.details.items():
            name = details.get("failures") if isinstance(details, Mapping) else None
            path = files(run) / name if isinstance(name, str) else None
            if path is None or not path.is_file():
                continue
            kept = json.loads(path.read_text(encoding="utf-8"))
            title = f"{task} · {experiment.variant.model.name} · {label(record, experiment.variant)}"
            body = "".join(_query(query, kept["metric"], path.parent, pictures) for query in kept["queries"])
            state = "" if parts else " open"
            parts.append(f"<details{state}><summary>{escape(title)}</summary>{body}</details>")
    if not parts:
        return ""
    intro = "<p>Green frames are pages that answer the query.</p>"
    style = "".join(f".worst .thumb.{name} {{ background-image: url({data}); }}\n" for name, data in pictures.items())
    return f'<style>{style}</style><div class="llmquant worst"><h4>Worst queries</h4>{intro}{"".join(parts)}</div>'


def _query(query: Any, metric: str, folder: Path, pictures: dict[str, str]) -> str:  # Any: a JSON object
    sides = (("found", query["found"]), ("missed", query["missed"]))
    return (
        f'<div class="query"><p class="text">{escape(query["query"])}'
        f'<span class="score">{escape(metric.replace("_at_", "@"))} {query["score"]:.2f}</span></p>'
        + "".join(
            f'<div class="side"><p>{title}</p>{"".join(_documents(documents, folder, pictures))}</div>'
            for title, documents in sides
            if documents
        )
        + "</div>"
    )


def _documents(
    documents: Sequence[Any],  # Any: JSON objects
    folder: Path,
    pictures: dict[str, str],
) -> Iterator[str]:
    for document in documents:
        name = escape(document["id"])
        shown = f'<div class="page">{escape(document.get("text", "no picture"))}</div>'
        path = folder / document["thumbnail"] if document.get("thumbnail") else None
        if path is not None and path.is_file():
            picture = f"p{path.stem}"
            data = base64.b64encode(path.read_bytes()).decode()
            pictures[picture] = f"data:image/{path.suffix.lstrip('.')};base64,{data}"
            shown = f'<div class="thumb {picture}" role="img" aria-label="{name}"></div>'
        rank = document.get("rank")
        place = f" · {document['score']:.3f}" if "score" in document else f" · rank {rank}" if rank else " · not found"
        right = ' class="right"' if document["grade"] > 0 else ""
        yield f"<figure{right}>{shown}<figcaption>{name}{place}</figcaption></figure>"


__all__ = ["STYLE", "worst_queries_html"]
