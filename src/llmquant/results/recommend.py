"""Which variant to ship: the smallest one whose loss is proven acceptable and that meets every limit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from llmquant.errors import OptionError, nearest
from llmquant.machine.hardware import GIB, GPU_MEMORY_GIB
from llmquant.results.costs import SERVED, latency, peak_memory
from llmquant.results.means import task_of
from llmquant.results.pooled import is_quality, names, pooled_margin, shown_name
from llmquant.results.row import Row
from llmquant.study.counting import counted
from llmquant.study.neutral import markdown_text
from llmquant.study.plain import plain_arguments

_SIZES = {"": 1, "b": 1, "kib": 2**10, "mib": 2**20, "gib": GIB, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_SIZE = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Limits:
    """What a variant may need.

    Attributes:
        max_memory: peak bytes while running; ``None`` for no limit.
        max_latency: milliseconds per decoded token (of embedders: per query) on the measured hardware.
        gpu: the GPU that `max_memory` comes from; ``""`` for none.
    """

    max_memory: float | None = None
    max_latency: float | None = None
    gpu: str = ""

    @classmethod
    @plain_arguments
    def of(
        cls, max_memory: float | str | None = None, max_latency: float | None = None, gpu: str | None = None
    ) -> Limits:
        """Read limits as a user writes them: ``"8GiB"``, ``"L40S"``.

        Raises:
            OptionError: if a limit is not above 0, a size cannot be read, or the GPU is unknown.
        """
        memory = None if max_memory is None else _bytes(max_memory)
        if max_latency is not None and not max_latency > 0:
            raise OptionError(f"max latency must be above 0 ms, found {max_latency:g}")
        if gpu is not None:
            if gpu not in GPU_MEMORY_GIB:
                raise OptionError(f"the memory of GPU {gpu!r} is unknown", hint=nearest(gpu, GPU_MEMORY_GIB))
            # 10% stays free for the driver and fragmentation, as in the plan.
            whole = 0.9 * GPU_MEMORY_GIB[gpu] * GIB
            memory = whole if memory is None else min(memory, whole)
        return cls(memory, max_latency, gpu or "")


@dataclass(frozen=True)
class Recommendation:
    """Which variant of a model to ship.

    Attributes:
        variant: label of the smallest variant that is acceptable; ``None`` if there is none.
        runner_up: label of the second smallest; ``None`` if there is none.
        reasons: what is known of the variant: its loss, memory and latency.
        ruled_out: for every other variant, what ruled it out.
        relax: if there is no variant, what to change; ``""`` otherwise.
        use: lines that use the variant.
    """

    model: str
    variant: str | None
    runner_up: str | None = None
    reasons: tuple[str, ...] = ()
    ruled_out: Mapping[str, str] = field(default_factory=dict)
    relax: str = ""
    use: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """Return what is recommended, and what ruled out every other variant."""
        if self.variant is None:
            first = [f"No variant can be recommended. {self.relax}".rstrip()]
        else:
            first = [f"Ship {self.variant}: {'; '.join(self.reasons)}."]
            first += [f"Runner-up: {self.runner_up}."] if self.runner_up else []
        return [*first, *(f"Not {name}: {why}." for name, why in self.ruled_out.items())]

    def lines(self) -> list[str]:
        """Return the sentences, and the lines that use the variant."""
        return [*self.sentences(), *self.use]

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def __repr__(self) -> str:
        return str(self)

    def _repr_markdown_(self) -> str:
        return "\n".join(f"- {f'`{line}`' if line in self.use else markdown_text(line)}" for line in self.lines())


@dataclass(frozen=True)
class _Candidate:
    """One variant with what rules it out.

    Attributes:
        memory: peak bytes while running, where the variant is served.
        served: whether it is served in another form than the measured one.
        speed: row of its latency.
        verdict: its row over all tasks; ``None`` for the baseline.
        worse: single tasks in which it is worse.
        unjudged: single tasks without a margin.
        against: reasons, the first of which is shown.
        relax: what would admit the variant.
    """

    label: str
    memory: float | None
    served: bool
    speed: Row | None
    verdict: Row | None
    worse: tuple[str, ...]
    unjudged: tuple[str, ...]
    against: tuple[str, ...]
    relax: tuple[str, ...]


def recommend(rows: Sequence[Row], limits: Limits, use: Mapping[str, Sequence[str]]) -> Recommendation | None:
    """Recommend a variant of one model.

    The baseline has no loss and is a candidate too. A variant that is undecided is not recommended.

    Args:
        rows: of one model, judged at the largest acceptable loss.
        use: lines that use a variant, by label.

    Returns:
        ``None`` if no variant was compared with a baseline.
    """
    if not any(row.pooled for row in rows):
        return None
    labels = dict.fromkeys(row.variant for row in rows)
    measured = limits.max_memory is not None or peak_memory(rows, rows) is not None
    margin = pooled_margin(rows)
    candidates = [
        _candidate(label, [row for row in rows if row.variant == label], limits, margin, rows, measured=measured)
        for label in labels
    ]
    left = sorted((each for each in candidates if not each.against), key=lambda each: each.memory or 0.0)
    ruled_out = {each.label: "; ".join(each.against) for each in candidates if each.against}
    model = rows[0].model
    if not left:
        nearest_ = min(candidates, key=lambda each: (len(each.relax), each.memory or 0.0))
        return Recommendation(model, None, ruled_out=ruled_out, relax=f"{_capital(' and '.join(nearest_.relax))}.")
    if not measured:
        named = ", ".join(each.label for each in left)
        why = f"Memory was not measured, so the smallest is unknown (add -e memory); acceptable: {named}."
        return Recommendation(model, None, ruled_out=ruled_out, relax=why)
    first = left[0]
    larger = {each.label: f"it needs {size(each.memory or 0.0)} of memory" for each in left[2:]}
    return Recommendation(
        model,
        first.label,
        f"{left[1].label} ({size(left[1].memory or 0.0)})" if len(left) > 1 else None,
        tuple(_reasons(first, margin)),
        {**larger, **ruled_out},
        use=tuple(use.get(first.label, ())),
    )


def _candidate(
    label: str, rows: Sequence[Row], limits: Limits, margin: str, everything: Sequence[Row], *, measured: bool
) -> _Candidate:
    memory, speed = peak_memory(rows, everything), latency(rows, everything)
    judged = next((row for row in rows if row.pooled), None)
    against: list[str] = []
    relax: list[str] = []

    def rule_out(why: str, change: str) -> None:
        against.append(why)
        relax.append(change)

    is_baseline = any(row.is_baseline for row in rows)
    if not is_baseline and (judged is None or judged.verdict not in ("better", "no worse")):
        rule_out(*_unproven(label, judged, margin))
    elif judged is not None and judged.no_interval:
        rule_out(f"its loss is unknown in {judged.no_interval}", f"compare {label} without these tasks")
    if memory is None and measured:
        failed = any(row.evaluator.startswith("memory") and row.status == "failed" for row in rows)
        if failed:
            rule_out("its memory could not be measured", f"see why the memory of {label} could not be measured")
        else:
            rule_out("its memory was not measured (add -e memory)", "add -e memory")
    elif memory is not None and limits.max_memory is not None and memory > limits.max_memory:
        where = f" of a {limits.gpu} with 10% kept free" if limits.gpu else ""
        rule_out(
            f"it needs {size(memory)} of memory, above the limit {size(limits.max_memory)}{where}",
            f"allow {size(memory)} of memory for {label}",
        )
    if limits.max_latency is not None:
        if speed is None or speed.value is None:
            add = "add -e latency, or -e query_latency for an embedder"
            rule_out(f"its latency was not measured ({add})", add)
        elif speed.value > limits.max_latency:
            needs = f"{rounded(speed.value)} ms"
            rule_out(f"it takes {needs}, above the limit {limits.max_latency:g} ms", f"allow {needs} for {label}")
    counted = [] if judged is None else judged.mean_of
    worse = tuple(name for row in rows if row.verdict == "worse" for name in names(row) if name in counted)
    quality = [row for row in rows if is_quality(row) and not row.pooled]
    with_margin = {task_of(row) for row in quality if row.margin is not None}
    unjudged = tuple({task_of(row): names(row)[0] for row in quality if task_of(row) not in with_margin}.values())
    served = any(row.metric == SERVED for row in rows)
    return _Candidate(label, memory, served, speed, judged, worse, unjudged, tuple(against), tuple(relax))


def _unproven(label: str, judged: Row | None, margin: str) -> tuple[str, str]:
    if judged is None or judged.verdict is None:
        if judged is not None and judged.no_verdict:
            return f"it has no verdict, as {judged.no_verdict}", f"remove the reason why {label} has no verdict"
        return "it was not compared", f"compare {label} on a task with a margin"
    if judged.verdict == "no signal":
        return "its tasks give no signal", "use easier or harder tasks"
    loss = None if judged.no_worse_than is None else -judged.no_worse_than
    unit = "points" if judged.unit == "points" else "times the margin"
    why = f"{judged.verdict} at a margin of {margin}"
    why += "" if loss is None else f", and a loss of up to {rounded(loss)} {unit} is possible"
    if judged.verdict == "worse":
        return why, f"accept a larger loss for {label}"
    more = f"about {counted(judged.documents_needed, 'document')}" if judged.documents_needed else "more documents"
    return why, f"run {more} to decide on {label}"


def _reasons(chosen: _Candidate, margin: str) -> list[str]:
    where = "where it is served (it runs dequantized here)" if chosen.served else "while running"
    found = [f"{size(chosen.memory or 0.0)} of memory {where}, the least of all that qualify"]
    judged = chosen.verdict
    if judged is None:
        found.append("it is the baseline, without loss")
    else:
        bound = judged.no_worse_than
        shown = (
            ""
            if bound is None
            else f" (no worse than {'-' if bound < 0 else '+'}{rounded(abs(bound), 2)} {judged.unit})"
        )
        found.append(f"{judged.verdict} at a margin of {margin}{shown}")
    if chosen.worse:
        found.append(f"but worse in {', '.join(map(shown_name, chosen.worse))} alone")
    if judged is not None and chosen.unjudged:
        found.append(f"but {', '.join(map(shown_name, chosen.unjudged))} did not count, without a margin")
    if chosen.speed is not None and chosen.speed.value is not None:
        unit = "ms per token" if chosen.speed.metric.startswith("decode") else "ms per query"
        found.append(f"{rounded(chosen.speed.value)} {unit}{' as it runs here' * chosen.served}")
    return found


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def size(number: float) -> str:
    """Write bytes for people."""
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / 2**20:.1f} MiB"


def rounded(value: float, digits: int = 3) -> str:
    """Write a number with `digits` digits, or more where it is a larger whole number: ``16.2``, ``1,334``."""
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def _bytes(value: float | str) -> float:
    match = _SIZE.fullmatch(str(value).strip())
    unit = None if match is None else _SIZES.get(match[2].lower())
    number = float(match[1]) if match is not None else 0.0
    if unit is None or not number > 0:
        raise OptionError(f"max memory is {value!r}", hint="Write a size above 0 such as 8GiB, 500MiB or 8000000000.")
    return number * unit
