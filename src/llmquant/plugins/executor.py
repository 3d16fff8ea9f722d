"""The contract of executors: where jobs run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from llmquant.study.job import Device, Job

JobState = Literal["queued", "running", "ended", "lost"]


@dataclass(frozen=True)
class Offer:
    """What jobs cost at most.

    Attributes:
        text: a line for people: how many jobs, on what, the hours and the dollars, where the rates come from.
        agreed: the executor's options agree to it already, by a budget or by ``yes``.
    """

    text: str
    dollars: float
    agreed: bool


class Executor(Protocol):
    """Where jobs run. The folder is the contract: a worker leaves runs in its store, `collect` brings them here.

    Attributes:
        name: such as ``local``; the ids of its jobs mean something to executors of this name alone.
        outlives: jobs go on when the program that submitted them ends, and can be taken up by another.
        installs: it installs what the workers need; what is installed here does not matter.
        hardware: such as ``cpu AMD EPYC 9654`` or ``L40S``: part of the identity of hardware experiments only.
        device: what the workers compute on.
        slots: how many jobs run at a time.
        threads: CPU threads a worker; ``None`` leaves torch's default.
        notices: what a person should know before starting, such as a GPU that is busy.
    """

    @property
    def name(self) -> str: ...  # noqa: D102 - in Attributes
    @property
    def outlives(self) -> bool: ...  # noqa: D102
    @property
    def installs(self) -> bool: ...  # noqa: D102
    @property
    def hardware(self) -> str: ...  # noqa: D102
    @property
    def device(self) -> Device: ...  # noqa: D102
    @property
    def slots(self) -> int: ...  # noqa: D102
    @property
    def threads(self) -> int | None: ...  # noqa: D102
    @property
    def notices(self) -> tuple[str, ...]: ...  # noqa: D102

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer | None:
        """Refuse jobs that could not run, before anything is started or paid for, and say what the rest cost at most.

        Args:
            running: ids of jobs of the study that another program submitted: they count towards a limit, and are not
                touched.

        Returns:
            ``None`` where nothing is paid for. Submitting them afterwards is within the offer.

        Raises:
            RequestError: naming what is wrong: no access, a plugin that cannot be shipped, more than the budget.
        """
        ...

    def submit(self, job: Path, store: Path) -> str:
        """Start the job whose record is at `job`; return an id that any later process can use."""
        ...

    def collect(self, job_id: str, store: Path) -> JobState:
        """Copy what is new into `store`, whole or partial, and say how the job stands."""
        ...

    def why_lost(self, job_id: str) -> str:
        """Say, in a clause, how a lost job ended."""
        ...

    def dollars(self, job_id: str) -> float | None:
        """Say about what a job that has ended cost; ``None`` where nothing is paid for or it is not known."""
        ...

    def cancel(self, job_id: str) -> None:
        """End the job; return when it has ended."""
        ...

    def leave(self, job_id: str) -> None:
        """Let the job go on without this program: `close` will not end it. Called where `outlives`."""
        ...

    def recall(self, study: str, store: Path) -> None:
        """Bring the records of a study that was submitted on another machine into `store`.

        Raises:
            StoreError: if the executor knows no such study, or keeps none.
        """
        ...

    def close(self) -> None:
        """Release what the executor holds; cancel the running jobs that it submitted and did not leave, no others."""
        ...
