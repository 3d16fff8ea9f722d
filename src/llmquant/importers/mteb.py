"""Results of mteb: ``<model>/<revision>/<Task>.json``, which have no scores of single queries."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmquant.catalogs.lm_eval_scores import is_number
from llmquant.errors import OptionError
from llmquant.importers.files import Imported, checked, digest_of_files, read_json, written_by
from llmquant.study.run import Measurement, Result

PROGRAM = "mteb"
_NO_SCORES = "an mteb result file has no scores per query"
_MAIN = "main_score"
_META = "model_meta.json"
_BETTER = re.compile(r"(ndcg|map|recall|precision|mrr|hit_rate)_at_\d+")


def is_mteb(data: Any) -> bool:  # Any: a JSON value
    """Return whether JSON is a result file of mteb."""
    return isinstance(data, Mapping) and "task_name" in data and isinstance(data.get("scores"), Mapping)


def mteb_results(where: Path) -> list[Imported]:
    """Read a result file, or those of one model in a folder and its subfolders; other files there are left out.

    Raises:
        OptionError: if a file is damaged, or there are results of several models or revisions.
    """
    files = sorted(where.rglob("*.json")) if where.is_dir() else [where]
    contents = {file: read_json(file) for file in files if file.name != _META and not file.name.startswith(".")}
    known = {file: data for file, data in contents.items() if is_mteb(data)}
    folders = sorted({str(file.parent) for file in known})
    if len(folders) > 1:
        raise OptionError(
            f"{where} has results of {len(folders)} models or revisions: {', '.join(folders)}",
            hint="Import each folder as a variant: NAME=FOLDER.",
        )
    found = []
    for file, data in known.items():
        with written_by("mteb", file):
            found.append(_task(file, data))
    return found


def _task(file: Path, data: Mapping[str, Any]) -> Imported:  # Any: mteb's results
    task = str(data["task_name"])
    entries = [(split, entry) for split, entries in data["scores"].items() for entry in entries]
    first = entries[0][1]
    if not all(is_number(entry[_MAIN]) for _, entry in entries):
        raise ValueError(f"a {_MAIN} is not a number")
    names = [name for name in first if all(is_number(entry.get(name)) for _, entry in entries)]
    measurements = [
        Measurement(
            task,
            name,
            math.fsum(entry[name] for _, entry in entries) / len(entries),
            higher_is_better=True if name == _MAIN or _BETTER.fullmatch(name) else None,
            headline=name == _MAIN,
        )
        for name in names
    ]
    version = data.get("mteb_version")
    protocol = {
        "dataset_revision": str(data["dataset_revision"]),
        "subsets": [f"{split} {entry['hf_subset']}" for split, entry in entries],
    }
    return Imported(
        PROGRAM,
        checked(Result(task, measurements, (), {**protocol, "no_scores": _NO_SCORES}), file),
        protocol,
        digest_of_files([file]),
        _model_name(file.parent),
        {"mteb": version} if version else {},
    )


def _model_name(folder: Path) -> str:
    meta = folder / _META
    data = read_json(meta) if meta.is_file() else {}
    name = data.get("name") if isinstance(data, Mapping) else None
    return name.strip() if isinstance(name, str) and name != "no_model_name_available" else ""
