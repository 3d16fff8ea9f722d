"""Find documents of a task that share a source: questions about one story are not independent documents."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence

from llmquant.errors import RunError
from llmquant.storage.text_files import Row

# Names of fields that hold the source of several questions or its id, and the minimum length of the source.
_SOURCE = re.compile(
    r"(\w+_)?(story|passage|contexts?|article|paragraph|premise|document|dialog(ue)?|conversation|transcript"
    r"|background|support|abstract)(_text|_?id)?",
    re.IGNORECASE,
)
_SOURCE_LENGTH = 20
# Any other long text counts too, unless its name shows that documents share it for another reason.
_NO_SOURCE = re.compile(
    r"instruct|prompt|template|system|answer|target|label|choice|option|output|response|explanation", re.IGNORECASE
)
_LENGTH = 100


def groups_of(docs: Sequence[Row], field: str | None) -> tuple[str, list[str]]:
    """Return the field that documents share as their source, and each document's group.

    Args:
        docs: documents of one task.
        field: field of the source, such as ``story`` or ``paragraph.context``; ``None`` finds a field that documents
            share and that is named like a source or its id, or else any long text that not all documents share; of
            several fields the one with the fewest values.

    Returns:
        The field, ``""`` if documents share none, and each document's group, ``""`` for a document without a group.

    Raises:
        RunError: if a document does not have the field.
    """
    if field is not None:
        return field, [_digest(_value(doc, field, number)) for number, doc in enumerate(docs, start=1)]
    columns: dict[str, dict[int, str]] = {}
    for number, doc in enumerate(docs):
        for path, text in _texts(doc):
            columns.setdefault(path, {})[number] = text
    counts = {path: len(set(column.values())) for path, column in columns.items()}
    shared = [path for path, column in columns.items() if counts[path] < len(column)]
    named = [path for path in shared if _is_source(path)]
    others = [path for path in shared if counts[path] > 1]
    if not (found := min(named or others, key=counts.__getitem__, default="")):
        return "", [""] * len(docs)
    texts = columns[found]
    return found, [_digest(texts[number]) if number in texts else "" for number in range(len(docs))]


def _texts(doc: Row, above: str = "") -> Iterator[tuple[str, str]]:
    """Yield texts that may be a source, by their path."""
    for key, value in doc.items():
        path = f"{above}{key}"
        if isinstance(value, dict):
            yield from _texts(value, f"{path}.")
        text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        if _is_source(path) and value not in (None, ""):
            if len(text) >= _SOURCE_LENGTH or path.lower().endswith("id"):
                yield path, text
        elif isinstance(value, str) and len(value) >= _LENGTH and not _NO_SOURCE.search(path):
            yield path, value


def _is_source(path: str) -> bool:
    return _SOURCE.fullmatch(path.rpartition(".")[2]) is not None


def _value(doc: Row, field: str, number: int) -> object:
    value: object = doc
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            raise RunError(
                f"document {number} has no field {field!r} to group by; it has {', '.join(map(repr, doc)) or 'nothing'}"
            )
        value = value[key]
    return value


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:16]
