"""From a study's rows to the tables for a decision."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llmquant.machine.hardware import hardware_text
from llmquant.results.recommend import Limits, Recommendation
from llmquant.results.report.answers import answers_table
from llmquant.results.report.block import Block, blocks
from llmquant.results.report.cost import cost_tables, money_table
from llmquant.results.report.fidelity import fidelity_tables
from llmquant.results.report.names import ShortNames, quantizer_of
from llmquant.results.report.quality import quality_table
from llmquant.results.report.retrieval import retrieval_table
from llmquant.results.report.table import Table
from llmquant.results.report.verdict import verdict_table
from llmquant.results.row import Row, failures, missing
from llmquant.study.counting import some
from llmquant.study.margins import DEFAULT
from llmquant.study.record import StudyRecord

if TYPE_CHECKING:
    from llmquant.results.changes import Change
    from llmquant.results.comparison import Comparison

_MESSAGE = 400


def tables(
    comparison: Comparison,
    limits: Limits | None = None,
    max_loss: float | str | Sequence[float | str] | None = None,
) -> list[Table]:
    """Make the tables of a comparison; the last one is the recommendation within the limits."""
    return summary(
        comparison.rows(),
        comparison.record,
        comparison.recommendations(limits, max_loss),
        comparison.changes(),
    )


def answer_first(tables: Iterable[Table]) -> list[Table]:
    """Put the verdicts and recommendations before all other tables; in a terminal the last lines are read first."""
    return sorted(tables, key=lambda table: not (table.is_verdict or table.title.startswith("Recommendation")))


def summary(
    rows: Sequence[Row],
    record: StudyRecord,
    recommended: Sequence[Recommendation] = (),
    changes: Sequence[Change] = (),
) -> list[Table]:
    """Make the tables of a study: verdicts, quality, answers and cost per model, dollars, failed runs, notes, advice.

    Returns:
        Tables in reading order. Only the smallest and largest conditions are shown; the rows have all.
    """
    short = ShortNames.of(row.variant for row in rows)
    rows = [replace(row, variant=short.name(row.variant)) for row in rows]
    changes = [replace(change, variant=short.name(change.variant)) for change in changes]
    grouped = blocks(rows)
    verdicts = [(block, table) for block in grouped if (table := verdict_table(block)) is not None]
    found = [replace(table, heading=heading(block)) for block, table in verdicts]
    retrieval = retrieval_table(grouped)
    found += [] if retrieval is None else [retrieval]
    for block in grouped:
        own = [change for change in changes if change.model_digest == block.rows[0].model_digest]
        tables = [table for table in (quality_table(block), answers_table(own)) if table is not None]
        tables += fidelity_tables(block) + cost_tables(block)
        hardware = ", ".join(dict.fromkeys(hardware_text(row.hardware) for row in block.rows if row.hardware))
        if hardware and tables:
            tables[-1] = replace(tables[-1], footnotes=(*tables[-1].footnotes, f"Measured on {hardware}."))
        notes = (*short.notes, *_applied(block), *(note for note in record.notes if _is_about(note, block)))
        tables += [Table("Model and variants", footnotes=notes)] if notes else []
        found += [replace(table, heading=heading(block)) for table in tables]
    paid = money_table(rows)
    found += [] if paid is None else [paid]
    ends = (("Failed", _failed(rows)), ("Not run", _not_run(rows)), ("Notes", _notes(rows, record)))
    found += [Table(title, footnotes=tuple(lines)) for title, lines in ends if lines]
    several = len(recommended) > 1
    return found + [
        Table(
            f"Recommendation{f' for {advice.model}' if several else ''}",
            footnotes=tuple(map(short.text, advice.sentences())),
            code=advice.use,
        )
        for advice in recommended
    ]


def study_line(record: StudyRecord) -> str:
    """Name a study by its id and its start."""
    started = f"{record.started_at[:16].replace('T', ' ')} UTC" if record.started_at else ""
    return " · ".join(filter(None, (f"study {record.study_id}", started)))


def heading(block: Block) -> str:
    """Name a model and its baseline."""
    return block.model + (f" · baseline {block.baseline}" if block.baseline is not None else "")


def _applied(block: Block) -> list[str]:
    """Report the models' compute dtypes if they differ, and the notes of quantizers and evaluators."""
    dtypes: dict[str, dict[str, None]] = {}
    notes: dict[str, dict[str, None]] = {}
    for row in block.rows:
        if row.compute_dtype is not None and row.status == "completed":
            dtypes.setdefault(row.compute_dtype, {})[quantizer_of(row.variant)] = None
        if row.applied_note:
            notes.setdefault(row.applied_note, {})[quantizer_of(row.variant)] = None
        if row.evaluator_note and not row.pooled:
            notes.setdefault(f"{row.task}: {row.evaluator_note}", {})[row.variant] = None
    found = []
    if len(dtypes) > 1:
        found.append("Computes in " + "; in ".join(f"{d}: {some(v)}" for d, v in dtypes.items()) + ".")
    return found + [f"{some(labels)}: {note.rstrip('.')}." for note, labels in notes.items()]


def _is_about(note: str, block: Block) -> bool:
    return note.startswith(f"{block.model}:")


def _failed(rows: Sequence[Row]) -> list[str]:
    """Give one reason for all experiments that failed alike, such as all of a model that does not load."""
    failed = failures(rows)
    many = len({row.model_digest for row in rows}) > 1
    alike: dict[tuple[str, str, str], list[Row]] = {}
    for row in failed:
        kind = (row.failure_kind or "error").replace("_", " ")
        alike.setdefault((row.model if many else "", kind, _short(row.failure or "")), []).append(row)
    lines = []
    for (model, kind, message), group in alike.items():
        shared: dict[str, list[str]] = {}  # variants by what failed of them
        for variant in dict.fromkeys(row.variant for row in group):
            evaluators = ", ".join(row.evaluator for row in group if row.variant == variant)
            shared.setdefault(evaluators, []).append(variant)
        named = "; ".join(f"{some(variants)} · {evaluators}" for evaluators, variants in shared.items())
        what = f"{model} · {named}" if model else named
        reason = ": ".join(part for part in (kind, message) if part)
        lines.append(f"{what}: {reason} (log: {_log(group[0])})")
    return lines


def _short(message: str) -> str:
    # A reason and what to do about it are two lines without a full stop between them.
    text = " ".join(re.sub(r"(?<=[\w)'\"])\n(?=[A-Z])", ". ", message).split())
    return text if len(text) <= _MESSAGE else text[: _MESSAGE - 1].rstrip() + "…"


def _log(row: Row) -> str:
    folder = row.run_id if row.attempt in (None, 1) else f"{row.run_id}-{row.attempt}"
    return f"runs/{folder}/log.txt in the store"


def _not_run(rows: Sequence[Row]) -> list[str]:
    absent: dict[tuple[str, str], list[str]] = {}
    many = len({row.model_digest for row in rows}) > 1
    for row in missing(rows):
        absent.setdefault((row.model if many else "", row.variant), []).append(row.evaluator)
    return [" · ".join([*filter(None, key), ", ".join(names)]) for key, names in absent.items()]


def _notes(rows: Sequence[Row], record: StudyRecord) -> list[str]:
    about_models = {note for block in blocks(rows) for note in record.notes if _is_about(note, block)}
    notes = [note for note in record.notes if note not in about_models]
    if len({row.variant for row in rows}) == 1:
        notes.append("Nothing is compared, because the study has only one variant.")
    unused = record.margins.keys() - DEFAULT.keys() - {row.metric for row in rows}
    notes += [f"The margin for {name} decides nothing: no such score was measured." for name in sorted(unused)]
    run = {row.run_id for row in rows if row.status != "missing" and row.run_id}
    reused = {row.run_id for row in rows if row.reused}
    if reused:
        notes.append(f"{len(reused)} of {len(run)} runs were reused: they are older than this study.")
    return notes + _provenance(rows)


def _provenance(rows: Iterable[Row]) -> list[str]:
    alike: dict[tuple[str, ...], dict[str, dict[str, None]]] = {}
    for row in rows:
        if row.provenance_differences:
            alike.setdefault(row.provenance_differences, {}).setdefault(row.variant, {})[row.evaluator] = None
    lines = []
    for differences, variants in alike.items():
        which = "; ".join(f"{variant} · {', '.join(evaluators)}" for variant, evaluators in variants.items())
        lines.append(f"{which}: run with {'; '.join(differences)}.")
    return lines
