"""Read a BEIR folder, ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/<split>.tsv``, and report every mistake in it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from llmquant.errors import OptionError, RequestError, shorten
from llmquant.evaluators.page_set.queries import Question
from llmquant.storage.text_files import read_rows, read_text
from llmquant.study.experiment import Digest
from llmquant.study.reading import brief

CORPUS = "corpus.jsonl"
_HEADER = ["query-id", "corpus-id", "score"]
_SCORE = re.compile(r"[+-]?[0-9]{1,9}")
_LEFT_OUT = ("", "")


@dataclass(frozen=True)
class BeirSet:
    """A corpus, and the queries of one split.

    Attributes:
        corpus: title and text of each document, by its id, in the order of the file.
        questions: the queries that the split judges, in the order of their file.
        other_queries: number of queries that it does not judge.
    """

    corpus: Mapping[str, tuple[str, str]]
    questions: tuple[Question, ...] = ()
    other_queries: int = 0


@cache
def mistakes(folder: Path, digest: Digest, name: str, split: str) -> tuple[RequestError, ...]:
    """List the mistakes in a folder, once for all models; titles and texts are not kept.

    Args:
        digest: of the folder's content.
    """
    return tuple(read_beir(folder, name, split, texts=False)[1])


def read_beir(folder: Path, name: str, split: str, *, texts: bool = True) -> tuple[BeirSet, list[RequestError]]:
    """Read a folder, and list its mistakes with file and line.

    Args:
        name: the folder's name in messages.
        split: name of the file in ``qrels``.
        texts: whether to return titles and texts; without them a million documents take 0.2 GB, not 0.7.

    Returns:
        The set, and at most 21 mistakes; with a mistake the set is incomplete.
    """
    errors: list[RequestError] = []
    judged = f"qrels/{split}.tsv"
    if missing := [file for file in (CORPUS, "queries.jsonl", judged) if not (folder / file).is_file()]:
        splits = sorted(file.stem for file in (folder / "qrels").glob("*.tsv"))
        hint = "A BEIR folder holds corpus.jsonl, queries.jsonl and qrels/test.tsv."
        if missing == [judged] and splits:
            hint = f"Its splits are {', '.join(splits)}: write split={splits[0]}."
        return BeirSet({}), [OptionError(f"{name} has no {' and no '.join(missing)}", hint=hint)]
    corpus: dict[str, tuple[str, str]] = {}
    queries: dict[str, tuple[str, str]] = {}
    relevant: dict[str, dict[str, int]] = {}
    try:
        corpus = read_corpus(folder, name, errors, texts=texts)
        queries = _entries(folder / "queries.jsonl", f"{name}/queries.jsonl", "queries", errors)
        relevant = _judgements(folder / judged, f"{name}/{judged}", corpus, queries, errors)
    except OptionError as error:  # a file that is not text, or a line that is not JSON, cannot be read on
        errors.append(error)
    questions = tuple(
        Question(query, text, relevant[query]) for query, (_, text) in queries.items() if query in relevant
    )
    shorten(errors, name)
    return BeirSet(corpus, questions, len(queries) - len(questions)), errors


def read_corpus(
    folder: Path, name: str, errors: list[RequestError], *, texts: bool = True
) -> dict[str, tuple[str, str]]:
    """Return title and text of each document by its id, and append the mistakes to `errors`.

    Raises:
        OptionError: if the file cannot be read on, because it is not text or a line is not JSON.
    """
    return _entries(folder / CORPUS, f"{name}/{CORPUS}", "documents", errors, texts=texts)


def _entries(
    path: Path, name: str, what: str, errors: list[RequestError], *, texts: bool = True
) -> dict[str, tuple[str, str]]:
    """Return titles and texts by id; keys other than ``_id``, ``title`` and ``text`` are left out, as in BEIR."""
    found: dict[str, tuple[str, str]] = {}
    lines: dict[str, int] = {}
    for number, row in read_rows(path, name):
        where = f"{name}, line {number}"
        entry = {"title": "", **{key: value for key, value in row.items() if value is not None}}
        wrong = next((key for key in ("_id", "text", "title") if not isinstance(entry.get(key), str)), None)
        if wrong is not None:
            hint = 'Write {"_id": "...", "title": "...", "text": "..."}; the title is optional.'
            said = f"is {brief(row[wrong])}, not a text" if row.get(wrong) is not None else "is missing"
            errors.append(OptionError(f"{where}: {wrong} {said}", hint=hint))
            continue
        identity, text = entry["_id"], entry["text"]
        if not identity or (what == "queries" and not text.strip()):
            errors.append(OptionError(f"{where}: the {'text' if identity else '_id'} is empty"))
        elif identity in found:
            errors.append(OptionError(f"{where}: _id {identity!r} is that of line {lines[identity]} already"))
        else:
            found[identity], lines[identity] = (entry["title"], text) if texts else _LEFT_OUT, number
    if not found and not errors:
        errors.append(OptionError(f"{name} has no {what}"))
    return found


def _judgements(
    path: Path, name: str, corpus: Mapping[str, object], queries: Mapping[str, object], errors: list[RequestError]
) -> dict[str, dict[str, int]]:
    """Return the scores of documents by query."""
    found: dict[str, dict[str, int]] = {}
    first: dict[str, int] = {}
    rows = csv.reader(io.StringIO(read_text(path, name), newline=""), delimiter="\t", strict=True)
    try:
        if (header := next(rows, [])) != _HEADER:
            hint = "The first line is query-id, corpus-id and score, separated by tabs."
            raise OptionError(f"{name}, line 1 is {brief(' '.join(header))}", hint=hint)
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if len(row) != len(_HEADER):
                if row:
                    hint = "Separate query, document and score by tabs."
                    errors.append(OptionError(f"{where}: there are {len(row)} cells, not 3", hint=hint))
                continue
            query, document, score = row
            first.setdefault(query, rows.line_num)
            if query not in queries:
                errors.append(OptionError(f"{where}: there is no query {query!r} in queries.jsonl"))
            elif document not in corpus:
                errors.append(OptionError(f"{where}: there is no document {document!r} in corpus.jsonl"))
            elif not _SCORE.fullmatch(score):
                errors.append(OptionError(f"{where}: the score is {score!r}, not a whole number"))
            elif document in found.setdefault(query, {}):
                errors.append(OptionError(f"{where}: document {document!r} is judged twice for query {query!r}"))
            else:
                found[query][document] = int(score)
    except csv.Error as error:
        raise OptionError(f"{name}, line {rows.line_num} cannot be read: {error}") from error
    if not first:
        errors.append(OptionError(f"{name} has no judgements"))
    if not errors:
        errors += [
            OptionError(
                f"{name}, line {first[query]}: query {query!r} has no document with a score above 0",
                hint="Remove the query's lines, because a query without an answer cannot be scored.",
            )
            for query, scores in found.items()
            if max(scores.values()) <= 0
        ]
    return found
