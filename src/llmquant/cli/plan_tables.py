"""Predicted sizes and the experiments of a study, as tables and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llmquant.machine.hardware import GPU_TABLE_DATE
from llmquant.planning.estimate import SizeEstimate
from llmquant.plugins.executor import Offer
from llmquant.results.report.table import Table
from llmquant.results.rows import label
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run


def size_tables(sizes: Mapping[str, Sequence[SizeEstimate]]) -> list[Table]:
    """Build one table per model: predicted weights and peak memory, and the GPUs with enough memory if they differ.

    Quantizers without a prediction are listed in a second table, once per reason.
    """
    tables = []
    for source, estimates in sizes.items():
        known = [size for size in estimates if size.peak_bytes is not None]
        gpus = {size.gpus: _fits_on(size) for size in known}
        served = any(size.served_bytes is not None for size in known)
        rows = tuple(
            (
                size.quantizer,
                f"{(size.weight_bytes or 0) / 2**20:,.1f}",
                f"{(size.peak_bytes or 0) / 2**20:,.0f}",
                *(["" if size.served_bytes is None else f"{size.served_bytes / 2**20:,.1f}"] if served else []),
                *([gpus[size.gpus]] if len(gpus) > 1 else []),
            )
            for size in known
        )
        without: dict[str, list[str]] = {}
        for size in estimates:
            if size.peak_bytes is None:
                reason = size.refused or "the size is not predicted by this quantizer"
                without.setdefault(reason, []).append(size.quantizer)
        explained = (
            "Weights are computed from the tensors' shapes, including block scales and tables; no weights were loaded."
            + " Served: weights in the file or server, where they run dequantized here." * served,
            "Peak: weights, cache and activations for one sequence of 2,048 tokens, plus the CUDA context. "
            f"GPU memory as of {GPU_TABLE_DATE}; 10% of it is kept free.",
        )
        each_fits = tuple(f"Each fits on: {text}" for text in gpus.values() if len(gpus) == 1)
        footnotes = (*each_fits, *(explained if source == [*sizes][-1] else ()))
        fits = ["fits on, smallest first"] if len(gpus) > 1 else []
        columns = ("quantizer", "weights MiB", "peak MiB", *(["served MiB"] if served else []), *fits)
        tables.append(Table("predicted sizes", columns, rows, footnotes, source))
        if without:
            reasons = tuple(f"{', '.join(names)}: {reason}." for reason, names in without.items())
            tables.append(Table("not predicted", footnotes=reasons, heading=source))
    return tables


def _fits_on(size: SizeEstimate) -> str:
    return ", ".join(size.gpus[:4]) + (" ..." if len(size.gpus) > 4 else "") or "none of the known GPUs"


def plan_tables(record: StudyRecord, runs: Mapping[RunId, Run | None], offer: Offer | None) -> list[Table]:
    """Build one table per model with its experiments and their states, and one with the maximum cost."""
    tables = []
    for digest, source in record.model_names.items():
        rows = tuple(
            (label(record, e.variant), e.evaluator.label + _documents(e), _state(runs.get(e.run_id)), e.run_id)
            for e in record.experiments
            if e.variant.model.digest == digest
        )
        tables.append(Table("experiments", ("variant", "evaluator", "state", "run"), rows, heading=source))
    if record.notes:
        tables.append(Table("notes", footnotes=record.notes))
    return tables if offer is None else [*tables, Table("cost", footnotes=(offer.text,))]


def plan_json(
    sizes: Mapping[str, Sequence[SizeEstimate]],
    record: StudyRecord | None,
    runs: Mapping[RunId, Run | None],
    offer: Offer | None,
) -> dict[str, Any]:  # Any: a JSON object
    """Return sizes, experiments and the maximum cost as JSON."""
    data: dict[str, Any] = {"sizes": {source: [vars(size) for size in each] for source, each in sizes.items()}}
    if record is not None:
        data["study"] = record.study_id
        data["notes"] = list(record.notes)
        data["dollars_at_most"] = None if offer is None else offer.dollars
        data["experiments"] = [
            {"run_id": e.run_id, "state": _state(runs.get(e.run_id)), **e.to_json()} for e in record.experiments
        ]
    return data


def _documents(experiment: Experiment) -> str:
    """Return which documents of the random order a slice has, and whether they may not be needed."""
    chosen = experiment.slice
    if chosen is None:
        return ""
    end = "the rest" if chosen.end is None else f"{chosen.end:,}"
    return f" · documents {chosen.start + 1:,} to {end}{', if needed' if chosen.start else ''}"


def _state(run: Run | None) -> str:
    if run is None:
        return "to run"
    return "stored" if run.status == "completed" else "failed before, to run again"
