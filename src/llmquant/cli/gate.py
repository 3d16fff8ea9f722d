"""Verdicts for continuous integration: limits of the recommendation, exit codes, and JUnit XML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import OptionError, nearest

if TYPE_CHECKING:
    from llmquant.results.comparison import Comparison
    from llmquant.results.recommend import Limits
    from llmquant.results.row import Row

WORSE, UNDECIDED = 3, 4
_FAIL_ON = ("worse", "undecided")


@dataclass(frozen=True)
class Gate:
    """What the command line asks of a comparison.

    Attributes:
        max_loss: largest acceptable loss of a recommended variant; ``None`` for the margin.
        fail_on: ``worse``, ``undecided`` (which includes worse), or ``None``.
        junit: file for the verdicts as JUnit XML.
    """

    limits: Limits
    max_loss: Sequence[str] | None = None
    fail_on: str | None = None
    junit: str | None = None

    @classmethod
    def of(
        cls,
        max_memory: str | None,
        max_latency: float | None,
        max_loss: Sequence[str] | None,
        gpu: str | None,
        fail_on: str | None,
        junit: str | None,
    ) -> Gate:
        """Check the options, before anything is run.

        Raises:
            OptionError: if one is wrong.
        """
        from llmquant.results.recommend import Limits
        from llmquant.study.margins import loss_margins

        if fail_on is not None and fail_on not in _FAIL_ON:
            raise OptionError(f"fail on is {fail_on!r}", hint=nearest(fail_on, _FAIL_ON))
        if junit is not None:
            file_to_write(junit)
        if max_loss:
            loss_margins(max_loss, {})
        return cls(Limits.of(max_memory, max_latency, gpu), max_loss or None, fail_on, junit)

    def exit_code(self, found: Comparison) -> int:
        """Write the JUnit file, and return the exit code: 1 if a run failed, else that of the verdicts: 0, 3 or 4."""
        rows = [row for row in found.rows() if row.pooled] if self.fail_on or self.junit else []
        if self.junit is not None:
            file_to_write(self.junit).write_text(junit_xml(found, rows, fail_on=self.fail_on), encoding="utf-8")
        if self.fail_on is None:
            return 0
        if found.failed:
            return 1
        verdicts = {row.verdict for row in rows}
        if "worse" in verdicts:
            return WORSE
        # Nothing judged is not a pass, nor is a task that was not compared.
        decided = verdicts and all(map(_passes, rows))
        return 0 if decided or self.fail_on == "worse" else UNDECIDED


def file_to_write(name: str) -> Path:
    """Return the path of a file that an option names.

    Raises:
        OptionError: if it is a folder, or its folder does not exist.
    """
    from llmquant.study.experiment import path_of

    path = path_of(name).absolute()
    if path.is_dir():
        raise OptionError(f"{name!r} is a folder", hint="Give the name of a file.")
    if not path.parent.is_dir():
        raise OptionError(f"the folder of {name} does not exist", hint="Make the folder first.")
    return path


def junit_xml(found: Comparison, rows: Sequence[Row], *, fail_on: str | None) -> str:
    """Write one test case per variant: it fails if the variant is worse, and is skipped while undecided.

    Args:
        fail_on: with ``undecided``, an undecided variant fails.
    """
    from xml.etree import ElementTree

    from llmquant.results.report.verdict import pooled_decimals, pooled_difference
    from llmquant.study.neutral import printable

    suite = ElementTree.Element("testsuite", name="llmquant", tests=str(len(rows)))
    counts = {"failure": 0, "skipped": 0}
    for row in rows:
        case = ElementTree.SubElement(suite, "testcase", classname=printable(row.model), name=printable(row.variant))
        if _passes(row):
            continue
        fails = row.verdict == "worse" or fail_on == "undecided"
        kind = "failure" if fails else "skipped"
        counts[kind] += 1
        text = row.no_verdict or f"{row.verdict} {row.evaluator_note}"
        if row.difference is not None:
            difference = pooled_difference(row, pooled_decimals([row]))
            text = f"{row.verdict} over {', '.join(row.mean_of)}: {difference} {row.unit}"
            text += f"; unknown in {row.no_interval}" * bool(row.no_interval)
        ElementTree.SubElement(case, kind, message=printable(text))
    suite.set("failures", str(counts["failure"]))
    suite.set("skipped", str(counts["skipped"]))
    suite.set("errors", "0")
    if found.record.started_at:
        suite.set("timestamp", found.record.started_at[:19])
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"


def _passes(row: Row) -> bool:
    return row.verdict in ("better", "no worse") and not row.no_interval
