"""The documents that lm-eval wrote with ``--log_samples``, checked against its results."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmquant.catalogs.lm_eval_groups import groups_of
from llmquant.catalogs.lm_eval_scores import Entry, by_document, scores
from llmquant.errors import OptionError
from llmquant.importers.files import AGAIN, read_lines
from llmquant.study.counting import counted
from llmquant.study.experiment import hex_digest
from llmquant.study.reading import brief
from llmquant.study.run import Sample, numbered

_HASHES = ("doc_hash", "prompt_hash", "target_hash")
_LIKELIHOODS = ("multiple_choice", "loglikelihood", "loglikelihood_rolling")


def read_samples(
    path: Path, data: Mapping[str, Any], task: str, aggregations: Mapping[str, str]
) -> tuple[list[Sample], str, dict[str, str]]:  # Any: lm-eval's results
    """Read a task's samples, one per document.

    Args:
        data: the results that the samples belong to.
        aggregations: names of the functions that make the task's values, by metric.

    Returns:
        The samples, the field by which documents share a source, and the texts of the prompts.

    Raises:
        OptionError: if a line is damaged or missing, the file belongs to other results, or all log-likelihoods are
            equal.
    """
    values = data["results"][task]
    keys = [key.partition(",") for key in values if "," in key and "_stderr," not in key]
    filters = dict.fromkeys(name for _, _, name in keys)
    entries = [_entry(entry, f"{path}, line {number}", list(filters)) for number, entry in read_lines(path)]
    _check_hash(entries, (data.get("task_hashes") or {}).get(task), path)
    documents = sorted(by_document(entries), key=lambda entries: int(entries[0]["doc_id"]))
    _check_counts(documents, list(filters), (data.get("n-samples") or {}).get(task) or {}, path)
    output_type = data["configs"][task].get("output_type")
    if output_type in _LIKELIHOODS:
        _check_likelihoods(documents, path)
    docs = [entries[0]["doc"] if isinstance(entries[0]["doc"], dict) else {} for entries in documents]
    field, groups = groups_of(docs, None)
    # A mean that leaves out NaN, lm-eval's nanmean, is finite: documents without a score have none here either.
    whole = all(math.isfinite(value) for value in values.values() if isinstance(value, float))
    found = []
    for entries, group in zip(documents, groups, strict=True):
        first = entries[0]
        by_filter = {entry["filter"]: entry for entry in entries}
        own: dict[str, float] = {}
        for metric, _, name in keys:
            own |= scores(metric, name, by_filter[name].get(metric), aggregations.get(metric, ""))
        answer, target = _answer_and_target(first, output_type)
        own = {metric: score for metric, score in own.items() if math.isfinite(score) or not whole}
        found.append(Sample(first["doc_hash"], _prompt(first), own, answer, target, group))
    texts = {sample.prompt: _prompt_text(entries[0]) for sample, entries in zip(found, documents, strict=True)}
    return numbered(found), field, texts


def _entry(entry: Mapping[str, Any], where: str, filters: Sequence[str]) -> Entry:  # Any: JSON values
    """Check the parts of a line that are used; an older lm-eval did not write the filter."""
    for key in ("doc_id", "doc", "arguments", "filtered_resps", "target", *_HASHES):
        if key not in entry:
            raise OptionError(f"{where} has no {key}", hint="Versions of lm-eval before 0.4.3 wrote no hashes.")
    if "filter" not in entry and len(filters) > 1:
        raise OptionError(f"{where} does not say its filter", hint="Run the task again with a newer lm-eval.")
    if not isinstance(entry["doc_id"], int) or not all(isinstance(entry[key], str) for key in _HASHES):
        raise OptionError(f"{where} has the document {brief(entry['doc_id'])}, which is not a number", hint=AGAIN)
    return {"filter": filters[0], **entry}


def _check_hash(entries: Sequence[Entry], wanted: str | None, path: Path) -> None:
    """Compare with the hash of all documents, prompts and targets in lm-eval's results."""
    together = "".join(entry[key] for entry in entries for key in _HASHES)
    if wanted is not None and hashlib.sha256(together.encode()).hexdigest() != wanted:
        raise OptionError(f"{path} does not have the documents of its results, or has been cut or changed", hint=AGAIN)


def _check_counts(
    documents: Sequence[Sequence[Entry]], filters: Sequence[str], counts: Mapping[str, int], path: Path
) -> None:
    effective, original = counts.get("effective", len(documents)), counts.get("original", math.inf)
    if len(documents) != effective or effective > original:
        raise OptionError(
            f"{path} has {counted(len(documents), 'document')}, but the results have {effective} of {original}",
            hint=AGAIN,
        )
    for entries in documents:
        found = [entry["filter"] for entry in entries]
        if sorted(found) != sorted(filters):
            number = entries[0]["doc_id"]
            raise OptionError(
                f"{path} has document {number} for the filters {', '.join(map(brief, found))}, "
                f"but the results have {', '.join(map(brief, filters))}",
                hint=AGAIN,
            )


def _check_likelihoods(documents: Sequence[Sequence[Entry]], path: Path) -> None:
    """Refuse log-likelihoods that are all equal, which decide nothing."""
    found = [value for entries in documents for value in _log_likelihoods(entries[0])]
    if len(found) > 1 and len(set(found)) == 1:
        raise OptionError(
            f"{path}: all {len(found)} log-likelihoods are {found[0]}",
            hint="The server returned none; evaluate with one that returns log-probabilities of the prompt.",
        )


def _log_likelihoods(entry: Entry) -> Iterator[str]:
    for response in entry["filtered_resps"]:
        value = response
        while isinstance(value, list):
            value = value[0]
        yield str(value)


def _prompt(entry: Entry) -> str:
    """Digest a document's prompts as text, with the right answer; lm-eval's own hash has only the first prompt."""
    prompts: list[Any] = [[part for part in request if not isinstance(part, dict)] for request in _requests(entry)]
    return hex_digest([entry["prompt_hash"], entry["target_hash"], *prompts])


def _prompt_text(entry: Entry) -> str:
    return "\n\n".join(filter(None, dict.fromkeys(str(request[0]) for request in _requests(entry))))


def _requests(entry: Entry) -> list[list[Any]]:  # Any: texts, and the settings of generation
    arguments = entry["arguments"]
    requests = arguments.values() if isinstance(arguments, dict) else arguments
    return [list(request.values() if isinstance(request, dict) else request) for request in requests]


def _answer_and_target(entry: Entry, output_type: str | None) -> tuple[str | None, str | None]:
    """Return the model's answer, in the form that the metrics use, and the right answer."""
    target = str(entry["target"])
    if output_type == "generate_until":
        answer = entry["filtered_resps"][0]
        return " | ".join(map(str, answer)) if isinstance(answer, list) else str(answer), target
    if output_type != "multiple_choice":
        return None, target if output_type == "loglikelihood" else None
    requests = _requests(entry)
    # For mutual information lm-eval requests every choice a second time, without its context.
    count = len(requests) // (2 if "acc_mutual_info" in entry else 1)
    choices = [str(request[1]).strip() for request in requests[:count]]
    likelihoods = [float(value) for value in _log_likelihoods(entry)][:count]
    best = likelihoods.index(max(likelihoods))
    if count > 1 and len(set(choices)) == 1:  # the choices are in the contexts: return the number of the answer
        return str(best), None
    right = int(target) if target.isdecimal() else -1
    return choices[best], choices[right] if 0 <= right < count else target
