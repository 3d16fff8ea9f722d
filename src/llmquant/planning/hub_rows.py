"""Data sets on the Hugging Face Hub: whether the rows that a study needs are here or can be fetched."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmquant.errors import OptionError, first_line, raise_all
from llmquant.loading.quantized import read_recipe
from llmquant.plugins.registry import Chosen
from llmquant.storage.cache import Cache

_TIMEOUT_S = 3.0
_SERVER_ERROR = 500


def refuse_missing_rows(chosen: Sequence[Chosen], cache: Cache) -> None:
    """Refuse quantizers and evaluators whose rows are not in the local cache while the Hub cannot be reached.

    Raises:
        RequestError: naming the rows and what can be given instead.
    """
    needed = [(each, missing_rows(each)) for each in chosen]
    needed = [(each, rows) for each, rows in needed if rows and not is_made(each, cache)]
    reason = unreachable() if needed else ""
    if not reason:
        return
    alike: dict[str, tuple[list[str], dict[str, str]]] = {}  # by what to give instead: a benchmark has many tasks
    for each, rows in needed:
        labels, all_rows = alike.setdefault(next(iter(rows.values())), ([], {}))
        labels.append(each.use.label)
        all_rows.update(rows)
    raise_all([_error(labels, rows, instead, reason) for instead, (labels, rows) in alike.items()])


def missing_rows(chosen: Chosen) -> dict[str, str]:
    """Return what ``hub_rows`` of a plugin's options lists, without the rows in the local cache."""
    rows: dict[str, str] = chosen.ask("hub_rows") or {}
    streamed = chosen.plugin.spec.kind == "quantizer"  # calibration texts are read without keeping them
    return {key: instead for key, instead in rows.items() if streamed or not _is_cached(*key.split(":"))}


def _error(labels: Sequence[str], rows: Mapping[str, str], instead: str, reason: str) -> OptionError:
    names = dict.fromkeys(key.partition(":")[0] for key in rows)
    return OptionError(
        f"{_some(labels)}: the rows of {_some(list(names))} are not in the local cache, and the Hub cannot be reached: "
        f"{reason}",
        hint=f"Go online once{f', or use a local file: {instead}' if instead else ''}.",
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _is_cached(repository: str, configuration: str = "", split: str = "", column: str = "") -> bool:
    """Look for rows where `datasets` keeps them, in a folder such as ``EleutherAI___coqa``, without importing it."""
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    wanted = repository.replace("/", "").replace("_", "").lower()  # datasets writes CamelCase as camel_case
    folders = [folder for folder in root.glob("*") if folder.name.replace("_", "").lower() == wanted]
    files = [file for folder in folders for file in folder.glob(f"{configuration or '*'}*/*/*/dataset_info.json")]
    return any(_holds(file, split, column) for file in files)


def _holds(file: Path, split: str, column: str) -> bool:
    """Return whether a prepared data set has a split and a column; empty names are not looked for."""
    if not split and not column:
        return True
    info = json.loads(file.read_text(encoding="utf-8"))
    return all(not name or name in (info.get(key) or ()) for key, name in (("splits", split), ("features", column)))


def is_made(chosen: Chosen, cache: Cache) -> bool:
    """Return whether the quantizer has made a checkpoint, which may be of this model and then needs no rows."""
    recipes = [read_recipe(path) or {} for path in cache.root.glob("checkpoints/*")]
    return any(recipe.get("quantizer") == chosen.use.to_json() for recipe in recipes)


def unreachable() -> str:
    """Return why the Hub cannot be reached; ``""`` if it can be."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or httpx2's, by version

    try:
        status = get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S).status_code
    except (HTTPError, OSError) as error:
        return first_line(error)
    return f"{constants.ENDPOINT} answers {status}" if status >= _SERVER_ERROR else ""
