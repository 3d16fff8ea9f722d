"""Blanks secrets in stored and shown text: logs, messages, answers, details, names; never before scoring."""

from __future__ import annotations

import functools
import html
import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

from llmquant.study.reading import loads
from llmquant.study.run import Run, Sample

# A variable with one of these words in its name holds a secret, if its value is so long that no other text is hit.
_WORDS = frozenset({"KEY", "TOKEN", "SECRET", "PASSWORD"})
_LEAST = 8
# Prefixes that no word of a language ends with are found inside words too: `MY_hf_...`.
_SHAPES = re.compile(
    r"(hf_|api_org_|gh[opsur]_|gsk_)[A-Za-z0-9]{12,}"
    r"|(github_pat_|glpat-|nvapi-|xox[a-z]-)[A-Za-z0-9_-]{12,}"
    # "task-", "break-" and "as-yet-unpublished" are words, so that these begin where no letter is before them.
    r"|(sk-(?<![A-Za-z0-9]sk-))[A-Za-z0-9_-]{12,}"
    r"|(a[ks]-(?<![A-Za-z0-9]..-))[A-Za-z0-9]{16,}"
    r"|(A(?:KIA|SIA))[A-Z0-9]{16}"
    r"|(AIza)[A-Za-z0-9_-]{35}"
    r"|(eyJ)[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"
    r"|(Bearer |[Aa]uthorization['\"]?: ['\"]?[Bb](?:earer|asic) )[A-Za-z0-9._~+/=-]{16,}"
    r"|(://)[^\s/@:]*:[^\s/]*(?=@)"
)
# A file with a NUL among its first bytes is not text: tensors, pictures, Parquet tables.
_PEEK = 8192


def blank_secrets(text: str) -> str:
    """Blank the values of this process's secret variables, passwords in addresses, and what looks like a token.

    Returns:
        The text, not longer than before.
    """
    return blanker()(text)


def blank_run(run: Run, samples: Mapping[str, Sequence[Sample]], folder: Path) -> tuple[Run, dict[str, list[Sample]]]:
    """Blank a run that has been scored, its samples, and the text files that an evaluator left in `folder`.

    The run's identity and the pairing of its samples stay: options, and the hashes of documents and prompts.
    """
    blank = blanker()
    for path in sorted(folder.rglob("*"), reverse=True):  # a folder after what it holds
        if path.is_file() and not path.is_symlink():
            _blank_file(path, blank)
        if blank(path.name) != path.name:
            path.rename(_free(path.with_name(blank(path.name))))
    model, failure = run.experiment.variant.model, run.failure
    variant = replace(run.experiment.variant, model=replace(model, source=blank(model.source)))
    blanked = replace(
        run,
        experiment=replace(run.experiment, variant=variant),
        measurements=tuple(replace(found, task=_blank_json(found.task, blank)) for found in run.measurements),
        applied=_blank_json(run.applied, blank),
        provenance=_blank_json(run.provenance, blank),
        details=_blank_json(run.details, blank),
        failure=failure and replace(failure, message=blank(failure.message), log_tail=blank(failure.log_tail)),
    )
    return blanked, {blank(task): [_blank_sample(each, blank) for each in scored] for task, scored in samples.items()}


def _blank_sample(sample: Sample, blank: Callable[[str], str]) -> Sample:
    texts = {name: _blank_json(getattr(sample, name), blank) for name in ("answer", "target", "group")}
    return replace(sample, **texts)


def blanker() -> Callable[[str], str]:
    """Return `blank_secrets` for many texts: the secret variables are read once."""
    values = {
        part.strip()
        for name, value in os.environ.items()
        if _WORDS & set(re.split(r"[^A-Z0-9]+", name.upper()))
        for part in (value, *value.splitlines())
    }
    return functools.partial(_blank, _either(frozenset(value for value in values if len(value) >= _LEAST)))


@functools.cache
def _either(values: frozenset[str]) -> re.Pattern[str] | None:
    """Return what finds one of several values, the longest first, also as an address or a program writes them."""
    written = {form for value in values for form in _forms(value)}
    return re.compile("|".join(map(re.escape, sorted(written, key=len, reverse=True)))) if written else None


def _forms(value: str) -> set[str]:
    addresses = {
        quote(value, "", errors="replace"),
        quote(value, errors="replace"),
        quote_plus(value, errors="replace"),
    }
    strings = {json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], repr(value)[1:-1]}
    return {value, html.escape(value), *addresses, *strings}


def _blank(values: re.Pattern[str] | None, text: str) -> str:
    if values is not None:
        text = values.sub("***", text)

    def shorter(found: re.Match[str]) -> str:
        prefix = found[found.lastindex or 0]
        return prefix + "***"[: len(found[0]) - len(prefix)]

    return _SHAPES.sub(shorter, text)


def _blank_json(value: Any, blank: Callable[[str], str]) -> Any:  # Any: JSON, or what a plugin left in its place
    if isinstance(value, str):
        return blank(value)
    if isinstance(value, Mapping):
        return {_blank_json(key, blank): _blank_json(item, blank) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_blank_json(item, blank) for item in value]
    return value


def _blank_file(path: Path, blank: Callable[[str], str]) -> None:
    with path.open("rb") as stream:
        beginning = stream.read(_PEEK)
        if b"\0" in beginning:
            return
        text = (beginning + stream.read()).decode("utf-8", "surrogateescape")
    if blank(text) == text:
        return
    try:  # by value: a password's digits may also be a number's
        blanked = json.dumps(_blank_json(loads(text), blank))
    except ValueError:  # no JSON
        blanked = blank(text)
    path.write_bytes(blanked.encode("utf-8", "surrogateescape"))


def _free(path: Path) -> Path:
    """Return an unused path: two names may differ only in their secrets."""
    others = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in itertools.count(2))
    return next(name for name in itertools.chain((path,), others) if not name.exists())
