"""A variant's worst queries with their found and missed documents, as HTML with thumbnails."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmquant.results.rows import label
from llmquant.study.experiment import RunId
from llmquant.study.neutral import html_text
from llmquant.study.reading import loads, read_as, read_bytes, stored
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run

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

# The allowed types of thumbnails, by file name.
_PICTURES = {".webp": "webp", ".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg"}


# Thumbnails have tens of kilobytes.
_MOST_BYTES = 4 * 2**20


@dataclass(frozen=True)
class _Document:
    id: str
    grade: float
    score: float | None = None
    rank: int | None = None
    text: str = "no picture"
    thumbnail: str = ""


@dataclass(frozen=True)
class _Query:
    query: str
    score: float
    found: tuple[_Document, ...]
    missed: tuple[_Document, ...]
    id: str = ""
    split: str = ""
    subset: str = ""


@dataclass(frozen=True)
class _Kept:
    """The content of a kept file."""

    metric: str
    queries: tuple[_Query, ...]
    task: str = ""


def worst_queries_html(record: StudyRecord, runs: Mapping[RunId, Run], files: Callable[[Run], Path | None]) -> str:
    """Write one section per run with worst queries; ``""`` if there is no such run.

    Args:
        files: returns the folder of a run's files, or ``None``. A task's details name the file in it as ``failures``:
            JSON with ``metric`` and ``queries``, each with ``query``, ``score``, and documents as ``found`` and
            ``missed``.

    Raises:
        DamagedError: if a file does not have this form, or is outside its run's folder.
    """
    parts: list[str] = []
    pictures: dict[str, str] = {}  # each once, even if several variants found the page
    for experiment in record.experiments:
        run = runs.get(experiment.run_id)
        folder = None if run is None else files(run)
        if run is None or folder is None or run.status != "completed":
            continue
        for task, details in run.details.items():
            name = details.get("failures") if isinstance(details, Mapping) else None
            if not isinstance(name, str):
                continue
            what, hint = f"the worst queries of run {run.run_id}", "Delete the run's folder; the run is made again."
            with stored(what, hint):
                path = _kept(folder, name)
                if path is None:
                    continue
                kept = read_as(_Kept, loads(read_bytes(path, _MOST_BYTES).decode()))
                body = "".join(_query(query, kept.metric, path.parent, pictures) for query in kept.queries)
            model = record.model_names[experiment.variant.model.digest]
            title = f"{task} · {model} · {label(record, experiment.variant)}"
            state = "" if parts else " open"
            parts.append(f"<details{state}><summary>{html_text(title)}</summary>{body}</details>")
    if not parts:
        return ""
    intro = "<p>Green frames are pages that answer the query.</p>"
    style = "".join(f".worst .thumb.{name} {{ background-image: url({data}); }}\n" for data, name in pictures.items())
    return f'<style>{style}</style><div class="llmquant worst"><h4>Worst queries</h4>{intro}{"".join(parts)}</div>'


def _kept(folder: Path, name: str) -> Path | None:
    """Return a kept file of a run; ``None`` if the file is missing.

    Raises:
        ValueError: if the file is outside the run's folder, by name or by a link: a third party's store must not show
            local files.
    """
    path = (folder / name).resolve()
    if not path.is_relative_to(folder):
        raise ValueError(f"{name!r} is outside the run's folder")
    return path if path.is_file() else None


def _query(query: _Query, metric: str, folder: Path, pictures: dict[str, str]) -> str:
    sides = (("found", query.found), ("missed", query.missed))
    return (
        f'<div class="query"><p class="text">{html_text(query.query)}'
        f'<span class="score">{html_text(metric.replace("_at_", "@"))} {query.score:.2f}</span></p>'
        + "".join(
            f'<div class="side"><p>{title}</p>{"".join(_documents(documents, folder, pictures))}</div>'
            for title, documents in sides
            if documents
        )
        + "</div>"
    )


def _documents(documents: Sequence[_Document], folder: Path, pictures: dict[str, str]) -> Iterator[str]:
    for document in documents:
        name = html_text(document.id)
        shown = f'<div class="page">{html_text(document.text)}</div>'
        path = _kept(folder, document.thumbnail) if document.thumbnail else None
        if path is not None and path.suffix in _PICTURES:
            data = (
                f"data:image/{_PICTURES[path.suffix]};base64,{base64.b64encode(read_bytes(path, _MOST_BYTES)).decode()}"
            )
            picture = pictures.setdefault(data, f"p{len(pictures)}")
            shown = f'<div class="thumb {picture}" role="img" aria-label="{name}"></div>'
        score, rank = document.score, document.rank
        place = f" · {score:.3f}" if score is not None else f" · rank {rank}" if rank else " · not found"
        right = ' class="right"' if document.grade > 0 else ""
        yield f"<figure{right}>{shown}<figcaption>{name}{html_text(place)}</figcaption></figure>"
