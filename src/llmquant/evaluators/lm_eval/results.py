"""Turn lm-eval's output into measurements and samples."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmquant.catalogs.lm_eval_groups import groups_of
from llmquant.catalogs.lm_eval_scores import MEANS, Entry, by_document, measurements, named, scores
from llmquant.evaluators.lm_eval.answers import has_right_answer
from llmquant.evaluators.lm_eval.model import Prompt, Written
from llmquant.study.call import Json
from llmquant.study.experiment import digest_of, hex_digest
from llmquant.study.run import GROUP, Result, Sample, numbered

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
# Metrics over all documents at once whose values per document are not scores: the same computation for this document
# alone, such as its own BLEU, is kept.
_ALONE = frozenset({"brier_score", "bleu", "chrf", "chrfpp", "ter"})


def results(
    output: Mapping[str, Any],  # Any: lm-eval's results
    tasks: Mapping[str, Any],  # Any: lm-eval's Task, by name
    prompts: Mapping[tuple[str, ...], Prompt],
    written: Mapping[tuple[str, int], Written],
    margins: Mapping[tuple[str, int], float],
    details: Mapping[str, Json],
    notes: Sequence[str],
    group: str | None,
) -> Iterator[Result]:
    """Yield one result per task and one per group with its own scores.

    Args:
        output: the return value of ``simple_evaluate``, samples included.
        prompts: the model's prompts, by the texts of a request.
        written: what the model generated, by task and the document's place among those that were read.
        margins: smallest margin of a document's decisions, by the same.
        details: details to keep with every result.
        notes: notes on every result for readers of the table.
        group: the field that documents share; ``None`` detects the field from the documents.

    Raises:
        RunError: if a document does not have that field.
    """
    for name, found in output["results"].items():
        values = tuple(measurements(name, found, output["higher_is_better"].get(name) or {}))
        if not values:
            continue  # a group without an aggregate
        task_notes = list(notes)
        own = {
            **details,
            "notes": task_notes,
            "task_version": _json(output["versions"].get(name)),
            "num_fewshot": output["n-shot"].get(name),
        }
        if name not in tasks:
            own["no_scores"] = GROUP
            own["members"] = list(output["group_subtasks"].get(name, ()))
            yield Result(name, values, (), own)
            continue
        own["documents_total"] = output["n-samples"][name]["original"]
        configuration = output["configs"][name]
        own["config"] = {key: _json(configuration[key]) for key in _KEPT if key in configuration}
        own["prompt_template"] = digest_of({key: _json(configuration.get(key)) for key in _PROMPT})
        aggregation = tasks[name].aggregation()
        not_means = [
            measurement.metric
            for measurement in values
            if getattr(aggregation.get(measurement.metric.partition(",")[0]), "__name__", "") not in MEANS
        ]
        documents = by_document(output["samples"][name])
        read = [_read(entries[0], prompts) for entries in documents]
        cut = [min(lengths) for each in read if (lengths := [p.cut_to for p in each if p.cut_to])]
        own["prompts_cut"] = len(cut)
        if cut:
            task_notes.append(
                f"{len(cut)} of {len(read)} prompts were cut to {min(cut)} tokens: the beginning is missing"
            )
        docs = [entries[0]["doc"] for entries in documents]
        if wrong := sum(not has_right_answer(tasks[name], doc) for doc in docs):
            own["no_right_answer"] = wrong
            task_notes.append(
                f"{wrong} of {len(docs)} documents have no right answer among their choices: every model scores 0 there"
            )
        field, groups = groups_of(docs, group)
        if field:
            own["grouped_by"] = field
        numbers = [(name, place) for place in range(len(documents))]  # in a slice lm-eval numbers requests anew
        own_margins = [margins.get(number) for number in numbers]
        own_written = list(map(written.get, numbers))
        samples = numbered(_samples(documents, read, own_written, own_margins, groups, tasks[name]))
        texts = {s.prompt: _prompt_text(entries[0]) for s, entries in zip(samples, documents, strict=True)}
        yield Result(name, values, samples, own, not_means, texts)


def _prompt_text(entry: Entry) -> str:
    """Return what the model read for a document; the choices of one question share their prompt."""
    return "\n\n".join(filter(None, dict.fromkeys(arguments[0] for arguments in entry["arguments"])))


def _read(entry: Entry, prompts: Mapping[tuple[str, ...], Prompt]) -> list[Prompt]:
    """Return the prompt of each request of a document."""
    return [prompts[tuple(part for part in texts if isinstance(part, str))] for texts in entry["arguments"]]


def _samples(
    documents: Sequence[Sequence[Entry]],
    read: Sequence[Sequence[Prompt]],
    written: Sequence[Written | None],
    margins: Sequence[float | None],
    groups: Sequence[str],
    task: Any,  # Any: lm-eval's Task
) -> Iterator[Sample]:
    """Yield one sample per document."""
    for entries, prompts, own, margin, group in zip(documents, read, written, margins, groups, strict=True):
        first = entries[0]
        found: dict[str, float] = {}
        for entry in entries:
            for metric in entry["metrics"]:
                found |= _scores(metric, entry["filter"], entry[metric], task.aggregation().get(metric))
        answer, target = _answer_and_target(first, task)
        prompt = hex_digest([each.digest for each in prompts])
        known = {"decision_margin": margin, **({} if own is None else vars(own))}
        yield Sample(first["doc_hash"], prompt, found, answer, target, group, **known)


def _scores(metric: str, filter_name: str, value: Any, aggregation: Any) -> dict[str, float]:  # Any: by metric
    name = getattr(aggregation, "__name__", "")
    if name in _ALONE:
        return {named(metric, filter_name): float(aggregation([value]))}
    return scores(metric, filter_name, value, name)


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


def _json(value: Any) -> Json:  # Any: what a YAML or Python configuration holds
    text: Json = json.loads(json.dumps(value, default=str))
    return text
