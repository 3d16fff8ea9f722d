"""How a study was made: its settings as read back from the runs, and how to make it again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from llmquant.machine.hardware import hardware_text
from llmquant.results.report.table import Column, Table
from llmquant.results.rows import label
from llmquant.results.slices import has_slices
from llmquant.study.experiment import ModelUse, RunId, VectorForm
from llmquant.study.margins import DEFAULT, PERPLEXITIES, SHARES, is_share
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run

# Facts of a task's details, in order, by name for people.
_DETAILS = {
    "task_version": "task version",
    "chat_template": "chat template",
    "system_instruction": "system instruction",
    "num_fewshot": "few-shot examples",
    "config.generation_kwargs": "generation",
    "max_length": "maximum length",
    "batch_size": "batch size",
    "limit": "limit",
    "log_softmax": "log-softmax in",
    "window": "window",
    "stride": "stride",
    "tokens": "tokens",
    "bos": "first token",
    "prompt_template": "prompts",
    "kv_cache.dtype": "KV cache",
}
_DIGEST = 12

_Facts: TypeAlias = dict[str, dict[str, dict[tuple[str, str] | None, None]]]
"""By name, by value: the models and labels of the variants that have it; ``None`` for what is of no variant."""


def protocol_table(record: StudyRecord, runs: Mapping[RunId, Run]) -> Table:
    """Make the table of settings; where variants differ, each value has the names of its variants."""
    facts: _Facts = {}
    tasks: dict[tuple[str, str], _Facts] = {}
    for experiment in record.experiments:
        model = experiment.variant.model
        name = record.model_names[model.digest]
        variant, weights = (name, label(record, experiment.variant)), (name, experiment.variant.quantizer.label)
        _add(facts, "model", f"{model.source} ({model.digest.partition(':')[0]} {_short(model.digest)})")
        _add(facts, "baseline", record.baselines.get(model.digest))
        run = runs.get(experiment.run_id)
        if run is None:
            continue
        applied, made = run.applied or {}, run.provenance
        _add(facts, "weights", _weights(applied), weights)
        _add(facts, "computes in", applied.get("compute_dtype"), weights)
        _add(facts, "other weights", made.get("dtype"), weights)
        if experiment.hardware:
            _add(facts, "hardware", hardware_text(experiment.hardware))
        else:
            _add(facts, "device", made.get("device"))
        _add(facts, "executor", made.get("executor"))
        _add(facts, "imported from", made.get("imported_from"))
        for task, details in run.details.items():
            for key, name in _DETAILS.items():
                own = tasks.setdefault((task, experiment.evaluator.label), {})
                _add(own, name, _inside(details, key.split(".")), variant)
    if "hardware" in facts:  # which names the device
        facts.pop("device", None)
    if not all(experiment.imported for experiment in record.experiments):
        most = "all" if record.limit is None else f"at most {record.limit:,} per task"
        facts["documents"] = {most + (", in random order until sure" if has_slices(record) else ""): {}}
        facts["seed"] = {str(record.seed): {}}
    rows = [(name, _said(values)) for name, values in facts.items()]
    rows += [
        (_subject(key, list(tasks)), "; ".join(f"{name} {_said(values)}" for name, values in found.items()))
        for key, found in tasks.items()
        if found
    ]
    return Table("Protocol", (Column(("setting",), align="left"), Column(("value",), align="left")), tuple(rows))


def _subject(key: tuple[str, str], keys: Sequence[tuple[str, str]]) -> str:
    """Name a task; where several evaluators read it, with the evaluator, in full if only its options differ."""
    task, evaluator = key
    others = [label for name, label in keys if name == task and label != evaluator]
    short = evaluator.partition("(")[0]
    if not others:
        return task
    return evaluator if any(label.partition("(")[0] == short for label in others) else f"{task}, {short}"


def _add(facts: _Facts, name: str, value: object, variant: tuple[str, str] | None = None) -> None:
    if value not in (None, "", {}, []):
        facts.setdefault(name, {}).setdefault(_text(value), {})[variant] = None


def versions(runs: Iterable[Run]) -> str:
    """Return the versions that all runs share, as one line."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        packages = run.provenance.get("packages")
        for name, version in (packages if isinstance(packages, Mapping) else {}).items():
            found.setdefault(name, {})[_text(version)] = None
        for name in ("python", "platform", "cuda", "driver", "git_commit"):
            if run.provenance.get(name):
                found.setdefault(name, {})[_text(run.provenance[name])] = None
    return ", ".join(f"{name} {' or '.join(values)}" for name, values in found.items())


def again(toml: str) -> str:
    """Say how results are made again, before the study file."""
    if not toml:
        return "These are results of other programs; llmquant import reads the same files again."
    return "Write this to study.toml and run: llmquant run study.toml"


def study_toml(record: StudyRecord) -> str:
    """Write a study file that asks for the same runs, with files in the working folder; ``""`` for imported results."""
    if all(experiment.imported for experiment in record.experiments):
        return ""
    forms = [form for each in record.forms.values() for form in each]
    lines = {
        "models": [
            _model(each) for each in {e.variant.model.digest: e.variant.model for e in record.experiments}.values()
        ],
        "quantizers": list(dict.fromkeys(e.variant.quantizer.label for e in record.experiments)),
        "evaluators": list(dict.fromkeys(e.evaluator.label for e in record.experiments)),
        "baseline": next(iter(record.baselines.values()), None),
        "margin": [_margin(name, value) for name, value in record.margins.items() if DEFAULT.get(name) != value],
        "limit": record.limit or "all",
        "until_sure": has_slices(record) or None,
        "seed": record.seed,
    }
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in lines.items() if value not in (None, []))
    return text + (f"\n[vectors]\n{_vectors(forms)}" if forms else "")


def _model(model: ModelUse) -> str | dict[str, str | bool]:
    """Return the model of a study file: a model of the Hub at its commit, with its settings."""
    if model.embedder is not None:
        return model.embedder.label
    kind, _, commit = model.digest.partition(":")
    source = f"{model.source.partition('@')[0]}@{commit}" if kind == "commit" else model.source
    return {"source": source, **dict.fromkeys(model.flags, True)} if model.flags else source


def _vectors(forms: Sequence[VectorForm]) -> str:
    names = {"dim": "dims", "codec": "codecs", "pool": "pools", "rescore": "rescores"}
    values = {plural: list(dict.fromkeys(getattr(form, name) for form in forms)) for name, plural in names.items()}
    return "".join(f"{name} = {_toml(found)}\n" for name, found in values.items() if None not in found)


def _margin(name: str, value: float) -> str:
    points = f"{100 * value:g}"
    if name == PERPLEXITIES or "perplexity" in name:
        return f"{name}={points}%"
    return points if name == SHARES else f"{name}={points if is_share(name) else f'{value:g}'}"


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return f"{{ {', '.join(f'{key} = {_toml(each)}' for key, each in value.items())} }}"
    # JSON's strings, numbers and lists are TOML's too.
    return json.dumps(value) if not isinstance(value, list) else f"[{', '.join(_toml(each) for each in value)}]"


def _weights(applied: Mapping[str, Any]) -> str:
    code, bits, size = applied.get("code"), applied.get("bits"), applied.get("block_size")
    if code is None:
        return ""
    return (
        f"{code}, {bits:g} bits{f', groups of {size}' if size else ''}" if isinstance(bits, int | float) else str(code)
    )


def _inside(details: object, keys: Sequence[str]) -> object:
    for key in keys:
        details = details.get(key) if isinstance(details, Mapping) else None
    return _short(details) if isinstance(details, str) and details.startswith("sha256:") else details


def _said(values: Mapping[str, Mapping[tuple[str, str] | None, None]]) -> str:
    """Write the values, each with its variants; a variant's model is named where its values differ by model."""
    if len(values) == 1:
        return next(iter(values))
    found = {value: list(filter(None, variants)) for value, variants in values.items()}
    count = Counter(own for variants in found.values() for own in {own for _, own in variants})
    written = {
        value: dict.fromkeys(own if count[own] == 1 else f"{model} {own}" for model, own in variants)
        for value, variants in found.items()
    }
    return "; ".join(f"{value} ({', '.join(names)})" if names else value for value, names in written.items())


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value.removeprefix("torch.") if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _short(digest: str) -> str:
    return digest.partition(":")[2][:_DIGEST]
