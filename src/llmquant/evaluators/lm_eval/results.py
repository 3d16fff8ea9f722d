"""Turn lm-eval's output into measurements and samples."""

from __future__ import annotations

import json
import numbers
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from llmquant.evaluators.lm_eval.answers import has_right_answer
from llmquant.evaluators.lm_eval.groups import groups_of
from llmquant.evaluators.lm_eval.model import Prompt
from llmquant.study.call import Json
from llmquant.study.experiment import digest_of
from llmquant.study.run import Measurement, Result, Sample

_Entry: TypeAlias = Mapping[str, Any]  # Any: lm-eval's record of a document

# Keys of a task's configuration that are kept; functions are kept as their source.
_KEPT = ("output_type", "num_fewshot", "generation_kwargs", "repeats", "filter_list", "dataset_path", "dataset_name")
_PROMPT = (
    "doc_to_text",
    "doc_to_target",
    "doc_to_choice",
    "description",
    "target_delimiter",
    "fewshot_delimiter",
    "gen_prefix",
)
# Metrics that lm-eval computes over all documents at once, from values that are not scores, and the values per document
# that are kept instead: log-likelihoods in nats as "nll", with their divisor ...
_LIKELIHOODS = {"word_perplexity": "words", "byte_perplexity": "bytes", "bits_per_byte": "bytes"}
# ... or the same computation for this document alone: its own Brier score or BLEU.
_ALONE = frozenset({"brier_score", "bleu", "chrf", "chrfpp", "ter"})
# lm-eval's aggregations that are a mean, or a ratio of sums.
_MEANS = frozenset({"mean", "perplexity", "weighted_perplexity", "bits_per_byte", "brier_score"})


def results(
    output: Mapping[str, Any],  # Any: lm-eval's results
    tasks: Mapping[str, Any],  # Any: lm-eval's Task, by name
    prompts: Mapping[tuple[str, ...], Prompt],
    details: Mapping[str, Json],
    notes: Sequence[str],
    group: str | None,
) -> Iterator[Result]:
    """Yield one result per task and one per group with its own scores.

    Args:
        output: the return value of ``simple_evaluate``, samples included.
        prompts: the model's prompts, by the texts of a request.
        details: details to keep with every result.
        notes: notes on every result for readers of the table.
        group: the field that documents share; ``None`` detects the field from the documents.

    Raises:
        RunError: if a document does not have that field.
    """
    for name, values in output["results"].items():
        measurements = tuple(_measurements(name, values, output["higher_is_better"].get(name) or {}))
        if not measurements:
            continue  # a group without an aggregate
        told = list(notes)
        own = {
            **details,
            "notes": told,
            "task_version": _json(output["versions"].get(name)),
            "num_fewshot": output["n-shot"].get(name),
        }
        if name not in tasks:
            own["members"] = list(output["group_subtasks"].get(name, ()))
            yield Result(name, measurements, (), own)
            continue
        own["documents_total"] = output["n-samples"][name]["original"]
        configuration = output["configs"][name]
        own["config"] = {key: _json(configuration[key]) for key in _KEPT if key in configuration}
        own["prompt_template"] = digest_of({key: _json(configuration.get(key)) for key in _PROMPT})
        aggregation = tasks[name].aggregation()
        not_means = [
            measurement.metric
            for measurement in measurements
            if getattr(aggregation.get(measurement.metric.partition(",")[0]), "__name__", "") not in _MEANS
        ]
        documents = _by_document(output["samples"][name])
        read = [_read(entries[0], prompts) for entries in documents]
        cut = [min(lengths) for each in read if (lengths := [p.cut_to for p in each if p.cut_to])]
        own["prompts_cut"] = len(cut)
        if cut:
            told.append(f"{len(cut)} of {len(read)} prompts were cut to {min(cut)} tokens: the beginning is missing")
        docs = [entries[0]["doc"] for entries in documents]
        if wrong := sum(not has_right_answer(tasks[name], doc) for doc in docs):
            own["no_right_answer"] = wrong
            told.append(
                f"{wrong} of {len(docs)} documents have no right answer among their choices: every model scores 0 there"
            )
        field, groups = groups_of(docs, group)
        if field:
            own["grouped_by"] = field
        yield Result(name, measurements, tuple(_samples(documents, read, groups, tasks[name])), own, not_means)


def _read(entry: _Entry, prompts: Mapping[tuple[str, ...], Prompt]) -> list[Prompt]:
    """Return the prompt of each request of a document."""
    return [prompts[tuple(part for part in texts if isinstance(part, str))] for texts in entry["arguments"]]


def _measurements(
    task: str, values: Mapping[str, Any], higher: Mapping[str, bool]
) -> Iterator[Measurement]:  # Any: numbers
    counts = values.get("sample_count") or {}
    for key, value in values.items():
        metric, comma, filter_name = key.partition(",")
        if not comma or metric.endswith("_stderr") or not _is_number(value):
            continue
        stderr: Any = values.get(f"{metric}_stderr,{filter_name}")  # Any: a number, or "N/A"
        yield Measurement(
            task,
            _named(metric, filter_name),
            float(value),
            higher_is_better=higher.get(metric),
            stderr=float(stderr) if _is_number(stderr) else None,
            n=counts.get(key, values.get("sample_len")),
        )


def _by_document(logged: Sequence[_Entry]) -> list[list[_Entry]]:
    """Combine the log entries of a document: one per filter that read it."""
    documents: dict[int, list[_Entry]] = {}
    for entry in logged:
        documents.setdefault(entry["doc_id"], []).append(entry)
    return list(documents.values())


def _samples(
    documents: Sequence[Sequence[_Entry]],
    read: Sequence[Sequence[Prompt]],
    groups: Sequence[str],
    task: Any,  # Any: lm-eval's Task
) -> Iterator[Sample]:
    """Yield one sample per document."""
    seen: Counter[str] = Counter()
    for entries, prompts, group in zip(documents, read, groups, strict=True):
        first = entries[0]
        scores: dict[str, float] = {}
        for entry in entries:
            for metric in entry["metrics"]:
                scores |= _scores(metric, entry["filter"], entry[metric], task.aggregation().get(metric))
        answer, target = _answer_and_target(first, task)
        document = first["doc_hash"]
        prompt = digest_of([each.digest for each in prompts]).removeprefix("sha256:")
        yield Sample(document, prompt, scores, answer, target, group, seen[document])
        seen[document] += 1


def _scores(metric: str, filter_name: str, value: Any, aggregation: Any) -> dict[str, float]:  # Any: by metric
    """Reduce one document's value to numbers; none for values meaningful only together, such as labels for an MCC."""
    name = getattr(aggregation, "__name__", "")
    if metric in _LIKELIHOODS and isinstance(value, tuple):
        log_likelihood, size = value
        return {"nll": -float(log_likelihood), _LIKELIHOODS[metric]: float(size)}
    if name == "perplexity":
        return {"nll": -float(value)}
    if name in _ALONE:
        return {_named(metric, filter_name): float(aggregation([value]))}
    return {_named(metric, filter_name): float(value)} if _is_number(value) else {}


def _answer_and_target(entry: Mapping[str, Any], task: Any) -> tuple[str | None, str | None]:  # Any: as above
    """Return the model's answer, in the form that the metrics use, and the right answer."""
    target = entry["target"]
    if task.OUTPUT_TYPE == "generate_until":
        return _text(entry["filtered_resps"][0]), _text(target)
    if task.OUTPUT_TYPE == "multiple_choice":
        # For mutual information lm-eval requests every choice a second time, without its context.
        count = len(entry["arguments"]) // (2 if "acc_mutual_info" in entry["metrics"] else 1)
        likelihoods = [response[0] for response in entry["filtered_resps"][:count]]
        choices = [arguments[1].strip() for arguments in entry["arguments"][:count]]
        if getattr(task, "multiple_input", 0):  # the choices are in the contexts: return their numbers
            choices, target = list(map(str, range(count))), task.doc_to_text(entry["doc"])
        right = choices[target] if isinstance(target, int) and 0 <= target < count else _text(target)
        return choices[likelihoods.index(max(likelihoods))], right
    # The target of a rolling task is the whole text.
    return None, _text(target) if task.OUTPUT_TYPE == "loglikelihood" else None


def _text(value: Any) -> str:  # Any: a task's answers: a text, a number, or several of these
    return " | ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _named(metric: str, filter_name: str) -> str:
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real)  # also numpy's numbers and bool


def _json(value: Any) -> Json:  # Any: what a YAML or Python configuration holds
    text: Json = json.loads(json.dumps(value, default=str))
    return text


__all__ = ["results"]
