"""Results of lm-eval: ``results_<date>.json``, with the ``samples_<task>_<date>.jsonl`` of ``--log_samples``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from llmquant.catalogs.lm_eval_scores import MEANS, is_number, measurements
from llmquant.errors import OptionError
from llmquant.importers.files import Imported, checked, digest_of_files, read_json, written_by
from llmquant.importers.lm_eval_samples import read_samples
from llmquant.stats.samples import scored_for
from llmquant.study.call import Json
from llmquant.study.experiment import digest_of
from llmquant.study.run import GROUP, Measurement, Result, Sample, finite_json

PROGRAM = "lm_eval"
_EPOCH = datetime.fromtimestamp(0, UTC)
_DATE = re.compile(r"_(\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d(?:\.\d+)?)\.json")
# lm-eval names a model at random if its arguments have no name.
_RANDOM_NAME = re.compile("[a-z0-9]{8}")
_CONFIG = ("output_type", "num_fewshot", "generation_kwargs", "repeats", "filter_list", "dataset_path", "dataset_name")
_SETTINGS = ("model_args", "model_dtype", "model_revision", "model_sha", "batch_size", "limit", "fewshot_seed")
_TOKENS = ("tokenizer_bos_token", "tokenizer_eos_token", "tokenizer_pad_token")
# lm-eval's own aggregations, which a task's file need not repeat.
_AGGREGATIONS = {
    **dict.fromkeys(("acc", "acc_norm", "acc_mutual_info", "acc_bytes", "exact_match", "likelihood"), "mean"),
    **dict.fromkeys(("word_perplexity", "byte_perplexity"), "weighted_perplexity"),
    "perplexity": "perplexity",
    "bits_per_byte": "bits_per_byte",
}


def result_files(folder: Path) -> list[Path]:
    """List lm-eval's result files in a folder and its subfolders, the oldest first."""
    files = (file for file in folder.rglob("*.json") if not file.name.startswith("."))
    dated = [(found[1], file) for file in files if (found := _DATE.search(file.name))]
    return [file for _, file in sorted(dated)]


def is_lm_eval(data: Any) -> bool:  # Any: a JSON value
    """Return whether JSON is a result file of lm-eval."""
    return isinstance(data, Mapping) and isinstance(data.get("results"), Mapping) and "versions" in data


def lm_eval_results(files: Sequence[Path], where: Path) -> list[Imported]:
    """Read the results of one model; of a task with several results the newest one.

    Args:
        files: result files, the oldest first.
        where: the folder or file that the user named.

    Raises:
        OptionError: if a file is damaged, numbers and samples do not agree, there are several models, or several
            results of a task under different settings.
    """
    contents = {file: read_json(file) for file in files}
    for file, data in contents.items():
        if not is_lm_eval(data):
            raise OptionError(f"{file} is not a result file of lm-eval", hint="Leave it out.")
    models = {(str(file.parent), str(data.get("model_name"))): file for file, data in contents.items()}
    if len(models) > 1:
        raise OptionError(
            f"{where} has results of {len(models)} models: {', '.join(map(str, models.values()))}",
            hint="Import each of them as a variant: NAME=FOLDER or NAME=FILE.",
        )
    of_task: dict[str, list[Path]] = {}
    for file, data in contents.items():
        for task in data["results"]:
            of_task.setdefault(task, []).append(file)
    found = []
    for task, named in of_task.items():
        protocols = []
        for file in named:
            with written_by("lm-eval", file):
                protocols.append(_protocol(contents[file], task))
        if any(protocol != protocols[0] for protocol in protocols):
            raise OptionError(
                f"{where} has {len(named)} results of {task} under different settings",
                hint=f"Name the file to import: {' or '.join(map(str, named))}.",
            )
        with written_by("lm-eval", named[-1]):
            each = _task(named[-1], contents[named[-1]], task, protocols[-1])
        if each is not None and len(named) > 1:
            note = f"{task}: of {len(named)} results the newest one is imported, {named[-1]}"
            each = replace(each, notes=(*each.notes, note))
        found += [] if each is None else [each]
    if not found:
        raise OptionError(f"{where} has no values", hint="Versions of lm-eval before 0.4 wrote another format.")
    return found


def _task(file: Path, data: Mapping[str, Any], task: str, protocol: Mapping[str, Json]) -> Imported | None:
    """Read a task's values and samples; ``None`` for a group without an aggregate."""
    better = (data.get("higher_is_better") or {}).get(task) or {}
    values = list(measurements(task, data["results"][task], better))
    if not values:
        return None
    config = (data.get("configs") or {}).get(task)
    counts = (data.get("n-samples") or {}).get(task) or {}
    settings = data.get("config") or {}
    details: dict[str, Any] = {
        "documents_total": counts.get("original"),
        **protocol,
        **{key: settings[key] for key in _SETTINGS if key in settings},
        **{key: data[key] for key in _TOKENS if key in data},
    }
    path = file.with_name(f"samples_{task}_{_date(file)}.jsonl")
    samples: list[Sample] = []
    prompts: dict[str, str] = {}
    notes: list[str] = []
    if config is None:
        details["no_scores"] = GROUP
        details["members"] = (data.get("group_subtasks") or {}).get(task)
    else:
        details["config"] = {key: config[key] for key in _CONFIG if key in config}
        if path.is_file():
            with written_by("lm-eval", path):
                samples, details["grouped_by"], prompts = read_samples(path, data, task, _aggregations(config))
        else:
            details["no_scores"] = "lm-eval was run without --log_samples"
            notes.append(f"{task}: {path} does not exist; run lm-eval with --log_samples to compare its documents")
    aggregations = _aggregations(config or {})
    effective = counts.get("effective")
    result = Result(
        task,
        [_counted(value, samples, effective) for value in values],
        samples,
        details,
        [value.metric for value in values if aggregations.get(value.metric.partition(",")[0]) not in MEANS],
        prompts,
    )
    return Imported(
        PROGRAM,
        checked(result, path if samples else file),
        protocol,
        digest_of_files([file, path] if samples else [file]),
        _model_name(data),
        {name: data[f"{name}_version"] for name in ("lm_eval", "transformers") if data.get(f"{name}_version")},
        (_EPOCH + timedelta(seconds=data["date"])).isoformat() if is_number(data.get("date")) else "",
        tuple(notes),
    )


def _counted(value: Measurement, samples: Sequence[Sample], effective: int | None) -> Measurement:
    stderr = value.stderr if value.stderr is not None and math.isfinite(value.stderr) else None
    return replace(value, stderr=stderr, n=len(scored_for(value, samples)) or value.n or effective)


def _aggregations(config: Mapping[str, Any]) -> dict[str, str]:  # Any: a task's settings
    """Return the names of the functions that make a task's values, by metric."""
    own = {
        entry["metric"]: entry.get("aggregation") or _AGGREGATIONS.get(entry["metric"], "")
        for entry in config.get("metric_list") or ()
    }
    return own if config.get("metric_list") else dict(_AGGREGATIONS)


def _protocol(data: Mapping[str, Any], task: str) -> Mapping[str, Json]:  # Any: lm-eval's results
    chat = _chat_template(data)
    config = (data.get("configs") or {}).get(task) or {}
    found: dict[str, Json] = {
        "task_version": (data.get("versions") or {}).get(task),
        "num_fewshot": (data.get("n-shot") or {}).get(task),
        "chat_template": chat,
        "fewshot_as_multiturn": chat is not None and bool(data.get("fewshot_as_multiturn")),
        "system_instruction": digest_of(data["system_instruction"]) if data.get("system_instruction") else None,
        "generation_kwargs": config.get("generation_kwargs"),
    }
    return {key: finite_json(value) for key, value in found.items()}


def _chat_template(data: Mapping[str, Any]) -> str | None:  # Any: lm-eval's results
    template = data.get("chat_template")
    if template:
        return digest_of(template)
    # A server applies its own template, which lm-eval writes as an empty text.
    server = template is not None or str(data.get("model_source")).endswith("chat-completions")
    return "the server's" if server else None


def _model_name(data: Mapping[str, Any]) -> str:  # Any: lm-eval's results
    name = data.get("model_name")
    if not isinstance(name, str):
        return ""
    arguments = str((data.get("config") or {}).get("model_args"))
    return "" if _RANDOM_NAME.fullmatch(name) and name not in arguments else name.strip()


def _date(file: Path) -> str:
    found = _DATE.search(file.name)
    return found[1] if found else ""
