"""Keep the worst queries of a task with the run: the documents found, those missed, and thumbnails of both.

The worker writes them because it has the pages; later readers of the run have neither the data set nor its licence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from llmquant.errors import ItemError
from llmquant.evaluators.mteb.items import Rows
from llmquant.evaluators.mteb.results import Place, Scored
from llmquant.retrieval.images import thumbnail
from llmquant.retrieval.items import Item
from llmquant.storage.atomic import file_name
from llmquant.study.call import Json

FOLDER = "failures"
# A few hundred kilobytes per run.
_QUERIES, _FOUND, _EXPECTED, _WIDTH, _CHARACTERS = 8, 3, 2, 240, 300


def write_failures(
    task: str, main: str, scored: Mapping[Place, Scored], corpus: Callable[[Place], Rows], files: Path
) -> str | None:
    """Write ``failures/<task>.json`` and the thumbnails that it names.

    The file has ``task``, ``metric`` and ``queries``, the worst first: each with ``query``, ``id``, ``split``,
    ``subset``, ``score``, ``found`` (the best documents: ``id``, ``score``, ``grade``) and ``missed`` (the most
    relevant documents that were not found: ``id``, ``grade``, and ``rank`` from 1, or none). A document has a
    ``thumbnail``, relative to the file, or a ``text``.

    Args:
        main: the metric that ranks the queries.
        corpus: returns the documents of a subset.
        files: the run's folder.

    Returns:
        The file's name in that folder; ``None`` if nothing failed.
    """
    worst = sorted(
        (
            (score, place, query)
            for place, subset in scored.items()
            for query, score in (subset.metric(main) or {}).items()
            if score < 1
        ),
        key=lambda entry: entry[0],  # among equal scores the earlier query comes first
    )[:_QUERIES]
    if not worst:
        return None
    folder = files / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    documents = {place: corpus(place) for place in dict.fromkeys(place for _, place, _ in worst)}
    numbers = {place: {name: n for n, name in enumerate(rows.ids)} for place, rows in documents.items()}

    def shown(place: Place, document: str) -> dict[str, Json]:
        return {"id": document, **_shown(documents[place][numbers[place][document]], folder)}

    queries: list[Json] = []
    for score, place, query in worst:
        subset = scored[place]
        grades, ranked = subset.relevant[query], subset.ranked(query)
        best = ranked[:_FOUND]
        ranks = {document: rank for rank, (document, _) in enumerate(ranked, start=1)}
        missed = [d for d, grade in grades.items() if grade > 0 and d in numbers[place] and d not in dict(best)]
        missed.sort(key=lambda document: -grades[document])
        queries.append(
            {
                "query": subset.queries[subset.queries.ids.index(query)].text or "",
                "id": query,
                "split": place[0],
                "subset": place[1],
                "score": score,
                "found": [{**shown(place, d), "score": value, "grade": grades.get(d, 0)} for d, value in best],
                "missed": [{**shown(place, d), "grade": grades[d], "rank": ranks.get(d)} for d in missed[:_EXPECTED]],
            }
        )
    file = folder / f"{file_name(task)}.json"
    file.write_text(json.dumps({"task": task, "metric": main, "queries": queries}), encoding="utf-8")
    return file.relative_to(files).as_posix()


def _shown(item: Item, folder: Path) -> dict[str, Json]:
    """Return a document's thumbnail or text; nothing for an image that cannot be decoded."""
    if item.image is None:
        return {"text": (item.text or "")[:_CHARACTERS]}
    name = f"{item.key.hex()}.webp"
    if not (folder / name).exists():
        try:
            (folder / name).write_bytes(thumbnail(item.image, _WIDTH, name=item.name))
        except ItemError:
            return {}
    return {"thumbnail": name}
