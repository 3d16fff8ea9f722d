"""The lines printed before a study starts: experiments, hardware, model sizes and expected time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmquant.machine.hardware import hardware_text
from llmquant.planning.estimate import estimate_seconds, estimate_size
from llmquant.planning.room import memory_bytes
from llmquant.results.precision import precisions
from llmquant.results.recommend import size
from llmquant.results.report.progress import duration
from llmquant.results.rows import label, variants
from llmquant.results.slices import has_slices
from llmquant.storage.store import Store
from llmquant.study.counting import counted
from llmquant.study.experiment import Documents

if TYPE_CHECKING:
    from llmquant.planning.resolve import Planned
    from llmquant.plugins.executor import Executor


def announcement(planned: Planned, executor: Executor, store: str) -> list[str]:
    """Return the lines to print."""
    record = planned.record
    compared = [label(record, variant) for variant in variants(record)]
    names = dict.fromkeys(compared)
    measured = list(dict.fromkeys(experiment.evaluator.label for experiment in record.experiments))
    experiments = ("at most " if has_slices(record) else "") + counted(len(record.experiments), "experiment")
    lines = [
        f"{experiments} on {hardware_text(executor.hardware)}; results in {store}",
        f"{counted(len(names), 'variant')}{' per model' * (len(names) < len(compared))}: {', '.join(names)}",
        f"{counted(len(measured), 'evaluator')}: {', '.join(measured)}",
    ]
    seconds, there = 0.0, memory_bytes(executor)
    for digest, info in planned.models.items():
        sizes = [estimate_size(info, chosen, executor.device) for chosen in planned.quantizers]
        known = [each for each in sizes if each.weight_bytes is not None and each.peak_bytes is not None]
        if known:
            largest = max(known, key=lambda each: each.peak_bytes or 0)
            weights = dict.fromkeys(size(pick(s.weight_bytes or 0 for s in known)) for pick in (min, max))
            lines.append(
                f"{record.model_names[digest]}: weights {' to '.join(weights)}, about {size(largest.peak_bytes or 0)} "
                f"peak memory ({largest.quantizer})"
            )
            if there is not None and (tight := [s.quantizer for s in known if (s.peak_bytes or 0) > there]):
                room = f"{there / 2**30:.1f} GiB of memory"
                lines.append(f"warning: {', '.join(tight)} may not fit into {room} with one sequence of 2,048 tokens")
        documents = Documents(record.limit)
        seconds += estimate_seconds(info, planned.quantizers, planned.evaluators, documents, executor)
    lines.append(f"Expected time if nothing is reused: roughly {duration(seconds / 2)} to {duration(seconds * 2)}")
    lines += [f"precision: {each}" for each in precisions(record, Store(store))]
    return [*lines, *(f"note: {note}" for note in record.notes)]
