"""What keeps imported results from being compared, or only their documents in part, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from llmquant.importers.files import Imported
from llmquant.study.counting import counted
from llmquant.study.run import Sample

_MOST = 5
_TOKENIZER = ("tokenizer_bos_token", "tokenizer_eos_token", "tokenizer_pad_token")


def differences(
    variant: str, results: Sequence[Imported], baseline: str, baselines: Sequence[Imported]
) -> Iterator[str]:
    """Yield one sentence per difference between a variant and its baseline, with the tasks that it concerns."""
    beside = {(each.program, each.task): each for each in baselines}
    tasks: dict[str, list[str]] = {}
    for each in results:
        for reason in _reasons(each, beside.get((each.program, each.task)), variant, baseline):
            tasks.setdefault(reason, []).append(each.task)
    have = {(each.program, each.task) for each in results}
    if absent := [task for program, task in beside if (program, task) not in have]:
        tasks[f"{variant} has no results, but {baseline} has"] = absent
    for reason, names in tasks.items():
        more = f" and {len(names) - _MOST} more" if len(names) > _MOST else ""
        yield f"{', '.join(names[:_MOST])}{more}: {reason}"


def _reasons(mine: Imported, theirs: Imported | None, variant: str, baseline: str) -> Iterator[str]:
    if theirs is None:
        yield f"{variant} is not compared, as {baseline} has no results"
        return
    if mine.digest == theirs.digest:
        yield f"the files of {variant} are a copy of those of {baseline}"
    if mine.protocol != theirs.protocol:
        keys = [key for key in {**theirs.protocol, **mine.protocol} if _of(mine, key) != _of(theirs, key)]
        settings = "; ".join(f"{key} {_of(mine, key)} against {_of(theirs, key)}" for key in keys)
        yield f"{variant} is not compared with {baseline}, as their settings differ: {settings}"
        return
    one, other = mine.result.details, theirs.result.details
    if differ := [key for key in _TOKENIZER if key in one and key in other and one[key] != other[key]]:
        yield f"the tokenizers of {variant} and {baseline} have different {' and '.join(differ)}; prompts pair as text"
    if mine.result.samples and theirs.result.samples:
        yield from _documents(_by_document(mine), _by_document(theirs), variant, baseline)


def _documents(
    mine: Mapping[Any, Sample], theirs: Mapping[Any, Sample], variant: str, baseline: str
) -> Iterator[str]:  # Any: a document and its number
    both = mine.keys() & theirs.keys()
    if len(both) < max(len(mine), len(theirs)):
        yield f"{variant} ({len(mine)}) and {baseline} ({len(theirs)}) have {counted(len(both), 'document')} in common"
    if other := sum(mine[key].prompt != theirs[key].prompt for key in both):
        yield f"{other} of {len(both)} prompts or right answers of {variant} and {baseline} differ and do not pair"


def _by_document(each: Imported) -> dict[tuple[str, int], Sample]:
    return {(sample.document, sample.occurrence): sample for sample in each.result.samples}


def _of(each: Imported, key: str) -> str:
    value = each.protocol.get(key)
    text = "none" if value is None else str(value)
    return text[:15] if text.startswith("sha256:") else text
