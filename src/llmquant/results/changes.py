"""What changed in the answers: documents gained and lost, answers that differ, longer, cut and looping answers.

Only documents that the variant and the baseline were asked with the same prompt count. All intervals have 95%
confidence. Documents that share a source count as one, as in rows. A share has the interval of Clopper and Pearson;
differences, and shares of documents with shared sources, have that of `llmquant.stats.paired_difference`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from llmquant.results.row import Row, brief
from llmquant.results.rows import ByTask
from llmquant.stats.paired import paired_difference
from llmquant.stats.proportions import upper_bound
from llmquant.study.experiment import RunId
from llmquant.study.run import Sample

_Floats: TypeAlias = NDArray[np.float64]

MOST_DOCUMENTS = 50
_LEVEL = 0.95


@dataclass(frozen=True)
class Share:
    """A share of documents.

    Attributes:
        n: all documents.
        low: lower end of the interval; ``None`` for too few documents that share a source, as is `high`.
    """

    value: float
    count: int
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ScoreChange:
    """How one metric's scores of single documents changed.

    Attributes:
        binary: whether every score is 0 or 1, so that each change is a flip between right and wrong.
        gained: documents with a better score than the baseline's: for binary scores, wrong to right.
        lost: documents with a worse score: for binary scores, right to wrong.
        changed: gained and lost documents together.
        difference: the difference of the metric's `Row`.
        low: lower end of that row's interval; ``None`` without one, as is `high`.
    """

    metric: str
    binary: bool
    gained: Share
    lost: Share
    changed: Share
    difference: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LengthChange:
    """Generated tokens per document.

    Attributes:
        ratio: `mean` over `baseline_mean`; ``None`` if the baseline generated nothing.
        low: lower end of the ratio's interval; ``None`` without one, as is `high`.
    """

    mean: float
    baseline_mean: float
    ratio: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class ShareChange:
    """A share of documents, in the variant and in the baseline.

    Attributes:
        difference: `value` minus `baseline_value`.
        low: lower end of the difference's interval; ``None`` without one, as is `high`.
    """

    value: float
    baseline_value: float
    difference: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class DocumentChange:
    """One document's answers and scores of one metric.

    Attributes:
        document: hash of the document, with `occurrence` as in `Sample`.
        prompt_hash: `Sample.prompt`.
        prompt: text of the prompt; ``None`` if it was not kept.
        reference: the expected answer.
        change: `score` minus `baseline_score`.
        generated: number of tokens that the variant generated; ``None`` if they were not counted.
        cut: whether the variant's answer ended at the maximum number of new tokens.
    """

    model: str
    variant: str
    evaluator: str
    task: str
    document: str
    occurrence: int
    prompt_hash: str
    prompt: str | None
    reference: str | None
    baseline_answer: str | None
    answer: str | None
    metric: str
    baseline_score: float
    score: float
    change: float
    generated: int | None
    cut: bool | None

    def __repr__(self) -> str:
        return brief(self, "variant", "task", "metric", "baseline_score", "score", "baseline_answer", "answer")


@dataclass(frozen=True)
class Change:
    """What changed in a variant's answers to one task, compared with its baseline's.

    Attributes:
        model: as in `Row`, and likewise up to `task`.
        documents: number of documents asked with the same prompt in both.
        scores: by metric; only metrics with scores of single documents.
        answers: documents whose answer's text differs; ``None`` without texts of answers.
        generated: generated tokens; ``None`` if they were not counted, and for the next two.
        cut: documents with an answer that ended at the maximum number of new tokens.
        looping: documents with an answer that ended in a loop, see `llmquant.study.looping`.
        documents_changed: per metric, the documents whose score changed most, without the texts of prompts.
    """

    model: str
    model_digest: str
    variant: str
    baseline: str | None
    evaluator: str
    evaluator_key: str
    run_id: RunId
    task: str
    documents: int
    scores: tuple[ScoreChange, ...]
    answers: Share | None
    generated: LengthChange | None
    cut: ShareChange | None
    looping: ShareChange | None
    documents_changed: tuple[DocumentChange, ...] = field(repr=False)

    def __repr__(self) -> str:
        return brief(self, "model", "variant", "task", "documents", "answers")

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return a JSON object, without the documents."""
        found = asdict(replace(self, documents_changed=()))
        del found["documents_changed"]
        return {**found, "scores": list(found["scores"])}


@dataclass(frozen=True)
class _Beside:
    """A variant's samples of one task beside the baseline's.

    Attributes:
        row: a row of the task.
        metrics: whether higher is better, by metric.
        theirs: the baseline's samples, in the order of `mine`.
        groups: of each document; ``None`` if no documents share a source.
    """

    row: Row
    metrics: Mapping[str, bool | None]
    mine: Sequence[Sample]
    theirs: Sequence[Sample]
    groups: Sequence[str] | None

    def both(self, of: Callable[[Sample], float | None]) -> tuple[_Floats, _Floats]:
        """Return the values of the variant and of the baseline; None becomes NaN."""
        v, b = (np.array(list(map(of, samples)), np.float64) for samples in (self.mine, self.theirs))
        return v, b

    def values(self, of: Callable[[Sample], float | None]) -> tuple[_Floats, _Floats, Sequence[str] | None]:
        """Return the values of the variant and of the baseline where both are finite, and the groups."""
        v, b = self.both(of)
        known = np.isfinite(v) & np.isfinite(b)
        if known.all():
            return v, b, self.groups
        return v[known], b[known], None if self.groups is None else list(itertools.compress(self.groups, known))


def changes_of(rows: Sequence[Row], variant: ByTask, baseline: ByTask) -> list[Change]:
    """Compare the answers to each task of a variant's run with the baseline's, without the rows' differences.

    Args:
        rows: of the run.
        variant: the run's samples by task.
        baseline: the baseline's samples by task.
    """
    return [_change(found) for found in _beside(rows, variant, baseline)]


def with_differences(changes: Sequence[Change], rows: Sequence[Row]) -> list[Change]:
    """Fill in the differences of the rows."""
    by_metric = {(row.run_id, row.task, row.metric): row for row in reversed(rows)}

    def filled(change: Change, score: ScoreChange) -> ScoreChange:
        row = by_metric[change.run_id, change.task, score.metric]
        return replace(score, difference=row.difference, low=row.difference_low, high=row.difference_high)

    return [replace(change, scores=tuple(filled(change, score) for score in change.scores)) for change in changes]


def document_changes(rows: Sequence[Row], variant: ByTask, baseline: ByTask) -> Iterator[DocumentChange]:
    """Yield each document and metric of a variant's run, without the texts of prompts.

    Args:
        rows: of the run.
        variant: the run's samples by task.
        baseline: the baseline's samples by task.
    """
    for found in _beside(rows, variant, baseline):
        for metric in found.metrics:
            for one, other in zip(found.mine, found.theirs, strict=True):
                if metric in one.scores and metric in other.scores:
                    yield _document_change(found.row, metric, one, other)


def _most_changed(found: _Beside, metric: str) -> Iterator[DocumentChange]:
    v, b = found.both(lambda sample: sample.scores.get(metric))
    with np.errstate(invalid="ignore"):  # infinite in both is no change
        sizes = np.nan_to_num(np.abs(v - b), posinf=np.inf)
    for place in np.argsort(-sizes, kind="stable")[:MOST_DOCUMENTS]:
        if sizes[place] > 0:
            yield _document_change(found.row, metric, found.mine[place], found.theirs[place])


def _document_change(row: Row, metric: str, one: Sample, other: Sample) -> DocumentChange:
    score, before = one.scores[metric], other.scores[metric]
    return DocumentChange(
        model=row.model,
        variant=row.variant,
        evaluator=row.evaluator,
        task=row.task,
        document=one.document,
        occurrence=one.occurrence,
        prompt_hash=one.prompt,
        prompt=None,
        reference=one.target,
        baseline_answer=other.answer,
        answer=one.answer,
        metric=metric,
        baseline_score=before,
        score=score,
        change=score - before,
        generated=one.generated,
        cut=one.cut,
    )


def with_prompts(
    changes: Sequence[DocumentChange], prompts: Callable[[Collection[str]], Mapping[str, str]]
) -> list[DocumentChange]:
    """Fill in the texts of prompts.

    Args:
        prompts: returns texts by hash.
    """
    texts = prompts({change.prompt_hash for change in changes})
    return [replace(change, prompt=texts.get(change.prompt_hash)) for change in changes]


def _beside(rows: Sequence[Row], variant: ByTask, baseline: ByTask) -> Iterator[_Beside]:
    for task in dict.fromkeys(row.task for row in rows if row.metric):
        others = {(one.document, one.occurrence, one.prompt): one for one in baseline.get(task, ())}
        ones = variant.get(task, ())
        beside = [others.get((one.document, one.occurrence, one.prompt)) for one in ones]
        mine = [one for one, other in zip(ones, beside, strict=True) if other is not None]
        if mine:
            here = [row for row in rows if row.task == task]
            metrics = {row.metric: row.higher_is_better for row in here}
            named = [one.group for one in mine if one.group]
            groups = [one.group for one in mine] if len(set(named)) < len(named) else None
            yield _Beside(here[0], metrics, mine, [other for other in beside if other is not None], groups)


def _change(found: _Beside) -> Change:
    row = found.row
    scores = [_score_change(found, metric, higher_is_better) for metric, higher_is_better in found.metrics.items()]
    return Change(
        model=row.model,
        model_digest=row.model_digest,
        variant=row.variant,
        baseline=row.baseline,
        evaluator=row.evaluator,
        evaluator_key=row.evaluator_key,
        run_id=row.run_id,
        task=row.task,
        documents=len(found.mine),
        scores=tuple(score for score in scores if score is not None),
        answers=_answers(found),
        generated=_length_change(found),
        cut=_share_change(found, "cut"),
        looping=_share_change(found, "looping"),
        documents_changed=tuple(one for metric in found.metrics for one in _most_changed(found, metric)),
    )


def _score_change(found: _Beside, metric: str, higher_is_better: bool | None) -> ScoreChange | None:
    v, b, groups = found.values(lambda sample: sample.scores.get(metric))
    if not v.size:
        return None
    better, worse = (v < b, v > b) if higher_is_better is False else (v > b, v < b)
    return ScoreChange(
        metric,
        bool((((v == 0) | (v == 1)) & ((b == 0) | (b == 1))).all()),
        _share(better, groups),
        _share(worse, groups),
        _share(better | worse, groups),
    )


def _answers(found: _Beside) -> Share | None:
    if any(sample.answer is None for sample in (*found.mine, *found.theirs)):
        return None
    return _share(np.array(list(map(_differ, found.mine, found.theirs))), found.groups)


def _differ(one: Sample, other: Sample) -> bool:
    """Return whether answers differ.

    An early answer is a beginning, which may end with that of a stop string.
    The answer of a search is its best documents in their order, whatever their scores.
    """
    if str(one.answer).startswith("[[") and str(other.answer).startswith("[["):
        with contextlib.suppress(ValueError, TypeError):  # a text that only begins like that
            mine, theirs = ([name for name, _score in json.loads(str(each.answer))] for each in (one, other))
            return mine != theirs
    pairs = [(str(a.answer), str(b.answer)) for a, b in ((one, other), (other, one)) if a.early]
    same = any(whole.startswith(early) or whole.rstrip() == early.rstrip() for early, whole in pairs)
    return one.answer != other.answer and not same


def _length_change(found: _Beside) -> LengthChange | None:
    v, b, groups = found.values(lambda sample: sample.generated)
    if not v.size:
        return None
    mean, baseline = float(v.mean()), float(b.mean())
    if not baseline:
        return LengthChange(mean, baseline, None, None, None)
    # The sum of v - b per unit of b is the ratio of the means, less 1.
    paired = paired_difference(v, b, weights=b, groups=groups)
    low, high = (None if end is None else max(1 + end, 0.0) for end in (paired.low, paired.high))
    return LengthChange(mean, baseline, 1 + paired.value, low, high)


def _share_change(found: _Beside, name: Literal["cut", "looping"]) -> ShareChange | None:
    v, b, groups = found.values(operator.attrgetter(name))
    if not v.size:
        return None
    paired = paired_difference(v, b, groups=groups)
    return ShareChange(float(v.mean()), float(b.mean()), paired.value, paired.low, paired.high)


def _share(flags: NDArray[np.bool_], groups: Sequence[str] | None) -> Share:
    count, n = int(flags.sum()), flags.size
    low: float | None
    high: float | None
    if groups is not None:
        paired = paired_difference(flags, np.zeros(n), groups=groups)
        low, high = (None if end is None else min(max(end, 0.0), 1.0) for end in (paired.low, paired.high))
    else:
        low, high = 1 - upper_bound(n - count, n, _LEVEL), upper_bound(count, n, _LEVEL)
    return Share(count / n, count, n, low, high)
