"""Checks of generation settings before anything is loaded: known names, possible values, and room for the answers."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from llmquant.errors import OptionError, nearest
from llmquant.study.call import Json

# lm-eval's own names; it prefers the first to the others.
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_WHOLE = (*LENGTHS, "top_k", "num_beams", "no_repeat_ngram_size")
_NUMBERS = ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty")
_DEFAULT_LENGTH = 256  # lm-eval's
_SETTING = re.compile(r"self\.([a-z]\w*) = kwargs\.pop")


def wrong_settings(settings: Mapping[str, Json]) -> Iterator[OptionError]:
    """Yield an error for each unknown name and impossible value of ``gen_kwargs``."""
    known = _known()
    for name, value in settings.items():
        if known and name not in known:
            yield OptionError(f"lm_eval: gen_kwargs: there is no setting {name!r}", hint=nearest(name, known))
        if wanted := _wanted(name, value):
            yield OptionError(f"lm_eval: gen_kwargs: {name} must be {wanted}, found {value!r}")
    temperature = settings.get("temperature")
    if isinstance(temperature, int | float) and (temperature < 0 or (settings.get("do_sample") and not temperature)):
        yield OptionError(
            f"lm_eval: gen_kwargs: temperature must be above 0, found {temperature}",
            hint="For greedy answers, omit do_sample and temperature.",
        )


def _wanted(name: str, value: Json) -> str:
    """Return what a setting should be; ``""`` if its value is of that type, or the setting is a rare one."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    texts = value if isinstance(value, list) else [value]
    rules = (
        (name in _WHOLE, "a whole number", number and isinstance(value, int)),
        (name in _NUMBERS, "a number", number),
        (name == "do_sample", "true or false", isinstance(value, bool)),
        (name == "until", "a text or a list of texts", all(isinstance(text, str) for text in texts)),
    )
    return next((what for applies, what, right in rules if applies and not right), "")


def answer_tokens(settings: Mapping[str, Json]) -> int:
    """Return the maximum tokens per answer that generation settings ask for."""
    found = next((settings[name] for name in LENGTHS if settings.get(name) is not None), _DEFAULT_LENGTH)
    return found if isinstance(found, int) else _DEFAULT_LENGTH


def _known() -> set[str]:
    """Read the names of all settings from the installed transformers, whose import takes seconds."""
    spec = importlib.util.find_spec("transformers")
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0], "generation", "configuration_utils.py") if folders else None
    if file is None or not file.is_file():
        return set()
    found = set(_SETTING.findall(file.read_text(encoding="utf-8")))
    return found.union(LENGTHS, ("until",)) if found else set()
