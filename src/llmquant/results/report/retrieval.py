"""The table of retrieval: scores, bytes per document and query times of all models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmquant.results.means import SIZE
from llmquant.results.report.block import Block, Measure, sample_count
from llmquant.results.report.table import Cell, Column, Table, decimals_for, decimals_of, number, number_apart
from llmquant.results.report.verdict import TONES
from llmquant.results.row import Row
from llmquant.study.counting import counted

NOT_ENCODED = "_not_encoded"
CUT = "documents_cut"
OWN_IDS = "own_ids_left_out"
_ITEM = {"documents": "document", "queries": "query", "items": "item"}
LATENCIES = ("query_encode_ms", "query_search_ms")


@dataclass(frozen=True)
class _Line:
    """One variant.

    Attributes:
        row: of its one task, or of the mean over its tasks; ``None`` unless all of them have a score.
        size: bytes per document, likewise.
        latencies: milliseconds, as `LATENCIES`.
    """

    model: str
    variant: str
    is_baseline: bool
    row: Row | None
    size: float | None
    latencies: tuple[float | None, ...]


def headlines(block: Block) -> list[Measure]:
    """Return the main metric of each of a block's retrieval tasks; they are those whose documents have a size."""
    sized = {(m.evaluator_key, m.task) for m in block.measures if m.metric == SIZE}
    found = {(m.evaluator_key, m.task): m for m in reversed(block.measures) if m.metric != SIZE}
    return [found[key] for key in dict.fromkeys((m.evaluator_key, m.task) for m in block.measures) if key in sized]


def retrieval_table(blocks: Sequence[Block]) -> Table | None:
    """Make the table; ``None`` where nothing was searched."""
    searched = [(block, tasks) for block in blocks if (tasks := headlines(block))]
    lines = [_line(block, variant, tasks) for block, tasks in searched for variant in block.variants]
    if not lines:
        return None
    every = [measure for _, tasks in searched for measure in tasks]
    metrics = {measure.metric.replace("_at_", "@").replace("ndcg", "NDCG") for measure in every}
    counts = {len(tasks) for _, tasks in searched}
    name = (" / ".join(sorted(metrics)) + " %", f"mean of {max(counts)} tasks" if max(counts) > 1 else every[0].task)
    scores = [line.row for line in lines if line.row is not None]
    heads: list[tuple[Column, Callable[[_Line], Cell]]] = [
        (Column(("variant",), align="left"), lambda line: Cell(line.variant))
    ]
    heads.append((Column((*name, sample_count(scores) if scores else "")), _score))
    if any(not line.is_baseline for line in lines):
        reaches = (
            50 * (row.difference_high - row.difference_low)
            for line in lines
            if (row := line.row) is not None and row.difference_low is not None and row.difference_high is not None
        )
        decimals = decimals_for(reaches, least=1) or 1
        heads.append((Column(("difference", "[95% interval]")), lambda line: _difference(line, decimals)))
        heads.append((Column(("verdict",), align="left"), _verdict))
    whole = all(line.size is None or line.size.is_integer() for line in lines)
    sizes = 0 if whole else decimals_of((line.size for line in lines), digits=3)
    heads.append((Column(("bytes per", "document")), lambda line: _plain(line.size, sizes)))
    for place, metric in enumerate(LATENCIES):
        known = [line.latencies[place] for line in lines]
        if any(value is not None for value in known):
            title = Column(("query ms", metric.split("_")[1]))
            heads.append((title, _latency(place, decimals_of(known, digits=2))))
    rows: list[tuple[str | Cell, ...]] = []
    for line, before in zip(lines, [None, *lines], strict=False):
        if len(searched) > 1 and (before is None or line.model != before.model):
            rows.append((line.model, *[""] * (len(heads) - 1)))
        rows.append(tuple(write(line) for _, write in heads))
    notes = not_encoded([block for block, _ in searched]) + _notes(
        lines, max(counts), unequal=len({_names(tasks) for _, tasks in searched}) > 1
    )
    return Table("Retrieval", tuple(column for column, _ in heads), tuple(rows), tuple(notes))


def not_encoded(blocks: Sequence[Block]) -> list[str]:
    """Report per task what was not encoded, which is the same for most variants."""
    alike: dict[tuple[str, str], dict[str, None]] = {}
    for block in blocks:
        for row in block.rows:
            if row.metric.endswith(NOT_ENCODED) and row.value is not None:
                items = counted(int(row.value), _ITEM[row.metric.removesuffix(NOT_ENCODED)])
                said = (f"{row.task}: {items} could not be encoded", "; see the runs' details for the reasons.")
            elif row.metric == CUT and row.value is not None:
                said = (f"{row.task}: about {row.value:.1%} of the documents are longer than the model reads", ".")
            elif row.metric == OWN_IDS and row.value is not None:
                asked = counted(int(row.value), "query")
                said = (f"{row.task}: {asked} cannot find the document of the same id, as in BEIR", ".")
            else:
                continue
            alike.setdefault(said, {})[f"{block.model} {row.variant}"] = None
    every = sum(len(block.variants) for block in blocks)
    return [
        f"{what} ({'every variant' if len(who) == every else ', '.join(who)}){end}"
        for (what, end), who in alike.items()
    ]


def _names(measures: Sequence[Measure]) -> tuple[tuple[str, str], ...]:
    return tuple((measure.evaluator_key, measure.task) for measure in measures)


def _line(block: Block, variant: str, tasks: Sequence[Measure]) -> _Line:
    if len(tasks) == 1:
        rows = block.headlines(variant, tasks[0].evaluator_key, tasks[0].task)
    else:
        rows = block.means(variant, [task.task for task in tasks])
    score = next((row for row in rows if row.metric != SIZE), None)
    size = next((row.value for row in rows if row.metric == SIZE), None)
    latencies = tuple(_latency_of(block, variant, metric) for metric in LATENCIES)
    return _Line(block.model, variant, variant == block.baseline, score, size, latencies)


def _latency_of(block: Block, variant: str, metric: str) -> float | None:
    """Return a latency; the mean over its conditions if there are several."""
    rows = [block.row(variant, measure) for measure in block.measures if measure.metric == metric]
    values = [row.value for row in rows if row is not None and row.value is not None]
    return sum(values) / len(values) if values else None


def _score(line: _Line) -> Cell:
    if line.row is None or line.row.value is None:
        return Cell("–", "quiet")
    text = f"{100 * line.row.value:.1f}"
    return Cell(text if line.row.stderr is None else f"{text} ± {100 * line.row.stderr:.1f}")


def _difference(line: _Line, decimals: int) -> Cell:
    row = line.row
    if row is None or row.difference is None:
        return Cell("baseline" if line.is_baseline else "–", "quiet")
    value = number(100 * row.difference, decimals, sign=True)
    if row.difference_low is None or row.difference_high is None:
        return Cell(value)
    # An end reads as zero only where it is zero: never beside better or worse.
    ends = (number_apart(100 * end, 0.0, decimals, sign=True) for end in (row.difference_low, row.difference_high))
    return Cell(f"{value} [{', '.join(ends)}]")


def _verdict(line: _Line) -> Cell:
    found = None if line.row is None else line.row.verdict
    return Cell(found or "", TONES.get(found, "plain"))


def _latency(place: int, decimals: int) -> Callable[[_Line], Cell]:
    return lambda line: _plain(line.latencies[place], decimals)


def _plain(value: float | None, decimals: int) -> Cell:
    return Cell("–", "quiet") if value is None else Cell(number(value, decimals))


def _notes(lines: Sequence[_Line], tasks: int, *, unequal: bool) -> list[str]:
    about = ["± is one standard error over queries; differences are paired by query, to each model's baseline."]
    compared = [line.row for line in lines if line.row is not None]
    if tasks > 1 and any(row.difference_low is not None for row in compared):
        about.append("The interval of a mean covers other queries of the same tasks, not other tasks.")
    notes = []
    if any(row.verdict == "no signal" for row in compared):
        notes.append("no signal: every variant has the same score on every query, so nothing can be compared.")
    if unequal:
        notes.append("The models were evaluated on different tasks, so their means are not comparable.")
    return notes + about
