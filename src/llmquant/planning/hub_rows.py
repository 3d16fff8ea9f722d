"""Data sets on the Hugging Face Hub: whether the rows that a study needs are here or can be fetched."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from llmquant.errors import OptionError, raise_all
from llmquant.loading.quantized import read_recipe
from llmquant.plugins.registry import Chosen
from llmquant.storage.cache import Cache

_TIMEOUT_S = 3.0


def refuse_missing_rows(chosen: Sequence[Chosen], cache: Cache) -> None:
    """Refuse quantizers and evaluators whose rows are not in the local cache while the Hub cannot be reached.

    Raises:
        RequestError: naming the rows and what can be given instead.
    """
    needed = [(each, _missing(each)) for each in chosen]
    needed = [(each, rows) for each, rows in needed if rows and not _is_made(each, cache)]
    reason = _unreachable() if needed else ""
    if reason:
        raise_all([_error(each.use.label, rows, reason) for each, rows in needed])


def _error(label: str, rows: dict[str, str], reason: str) -> OptionError:
    names = list(dict.fromkeys(key.partition(":")[0] for key in rows))
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return OptionError(
        f"{label}: the rows of {', '.join(names[:3])}{more} are not in the local cache, and the Hub cannot be "
        f"reached: {reason}",
        hint=f"Go online once, or use a local file: {next(iter(rows.values()))}.",
    )


def _missing(chosen: Chosen) -> dict[str, str]:
    rows: dict[str, str] = chosen.ask("hub_rows") or {}
    return {key: instead for key, instead in rows.items() if not _is_cached(*key.split(":"))}


def _is_cached(repository: str, configuration: str = "") -> bool:
    """Look for rows where `datasets` keeps them, in a folder such as ``EleutherAI___coqa``, without importing it."""
    from huggingface_hub import constants

    root = Path(os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets"))
    wanted = repository.replace("/", "").replace("_", "").lower()  # datasets writes CamelCase as camel_case
    return any(
        folder.name.replace("_", "").lower() == wanted
        and any(folder.glob(f"{configuration or '*'}*/*/*/dataset_info.json"))
        for folder in root.glob("*")
    )


def _is_made(chosen: Chosen, cache: Cache) -> bool:
    """Return whether the quantizer has made a checkpoint, which may be of this model and then needs no rows."""
    recipes = [read_recipe(path) or {} for path in cache.root.glob("checkpoints/*")]
    return any(recipe.get("quantizer") == chosen.use.to_json() for recipe in recipes)


def _unreachable() -> str:
    """Return why the Hub cannot be reached; ``""`` if it can be."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx's or httpx2's, by version

    try:
        get_session().head(constants.ENDPOINT, timeout=_TIMEOUT_S)
    except (HTTPError, OSError) as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""
