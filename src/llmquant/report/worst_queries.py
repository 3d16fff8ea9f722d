"""The queries a variant answers worst, with what it found and what it missed, as HTML with thumbnails."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmquant.comparison import StudyRecord, label
from llmquant.errors import StoreError
from llmquant.experiment import RunId
from llmquant.neutral import html_text
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

# What a thumbnail may be, by its file's name.
_PICTURES = {".webp": "webp", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


def worst_queries_html(record: StudyRecord, runs: Mapping[RunId, Run], files: Callable[[Run], Path | None]) -> str:
    """Write a section for each run that kept its worst queries; ``""`` where none did.

    Args:
        files: gives the folder of what a run kept, or ``None``. A task's details name the file in it as ``failures``:
            JSON with ``metric`` and ``queries``, each with ``query``, ``score``, and documents as ``found`` and
            ``missed``.

    Raises:
        StoreError: if a file is not of this form, or lies outside its run's folder.
    """
    parts: list[str] = []
    pictures: dict[str, str] = {}  # each once, however many variants found the page
    for experiment in record.experiments:
        run = runs.get(experiment.run_id)
        folder = None if run is None else files(run)
        if run is None or folder is None or run.status != "completed":
            continue
        for task, details in run.details.items():
            name = details.get("failures") if isinstance(details, Mapping) else None
            if not isinstance(name, str):
                continue
            try:
                path = _kept(folder, name)
                if path is None:
                    continue
                kept = json.loads(path.read_text(encoding="utf-8"))
                body = "".join(_query(query, kept["metric"], path.parent, pictures) for query in kept["queries"])
            except (OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
                raise StoreError(
                    f"the worst queries of run {run.run_id} cannot be read: {type(error).__name__}: {error}",
                    hint="Delete the run's folder; the same command makes it again.",
                ) from error
            title = f"{task} · {experiment.variant.model.name} · {label(record, experiment.variant)}"
            state = "" if parts else " open"
            parts.append(f"<details{state}><summary>{html_text(title)}</summary>{body}</details>")
    if not parts:
        return ""
    intro = "<p>Green frames are pages that answer the query.</p>"
    style = "".join(f".worst .thumb.{name} {{ background-image: url({data}); }}\n" for data, name in pictures.items())
    return f'<style>{style}</style><div class="llmquant worst"><h4>Worst queries</h4>{intro}{"".join(parts)}</div>'


def _kept(folder: Path, name: str) -> Path | None:
    """Return a file that a run kept; ``None`` where it is not there.

    Raises:
        ValueError: if it lies elsewhere, by its name or by a link: a store of somebody else must not show our files.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.parent.resolve() / folder.name):
        raise ValueError(f"{name!r} is outside the run's folder")
    return path if path.is_file() else None


def _query(query: Any, metric: str, folder: Path, pictures: dict[str, str]) -> str:  # Any: a JSON object
    sides = (("found", query["found"]), ("missed", query["missed"]))
    return (
        f'<div class="query"><p class="text">{html_text(query["query"])}'
        f'<span class="score">{html_text(metric.replace("_at_", "@"))} {query["score"]:.2f}</span></p>'
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
        name = html_text(document["id"])
        shown = f'<div class="page">{html_text(document.get("text", "no picture"))}</div>'
        path = _kept(folder, document["thumbnail"]) if document.get("thumbnail") else None
        if path is not None and path.suffix in _PICTURES:
            data = f"data:image/{_PICTURES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
            picture = pictures.setdefault(data, f"p{len(pictures)}")
            shown = f'<div class="thumb {picture}" role="img" aria-label="{name}"></div>'
        rank = document.get("rank")
        place = f" · {document['score']:.3f}" if "score" in document else f" · rank {rank}" if rank else " · not found"
        right = ' class="right"' if document["grade"] > 0 else ""
        yield f"<figure{right}>{shown}<figcaption>{name}{html_text(place)}</figcaption></figure>"


__all__ = ["STYLE", "worst_queries_html"]
