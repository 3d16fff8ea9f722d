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
    """The maximum cost of some jobs.

    Attributes:
        text: description for people: number of jobs, hardware, hours, dollars, and the source of the rates.
        dollars: the maximum cost in dollars.
        agreed: whether the executor's options confirm the cost already, by a budget or ``yes``.
    """

    text: str
    dollars: float
    agreed: bool


class Executor(Protocol):
    """Runs jobs. The contract is a folder: a worker writes runs into its store, and `collect` copies them here.

    Attributes:
        name: name such as ``local``; job ids are only valid for executors of the same name.
        outlives: whether jobs continue when the program that submitted them ends; another program can take them up.
        installs: whether the executor installs the workers' packages, so that packages installed here do not matter.
        hardware: hardware such as ``cpu AMD EPYC 9654`` or ``L40S``; part of the identity of hardware experiments.
        device: device of the workers.
        slots: maximum number of simultaneous jobs.
        threads: CPU threads per worker; ``None`` leaves torch's default.
        notices: notices for people before the start, such as a busy GPU.
    """

    name: str
    outlives: bool
    installs: bool
    hardware: str
    device: Device
    slots: int
    threads: int | None
    notices: tuple[str, ...]

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer | None:
        """Refuse jobs that cannot run before anything is started or paid for, and return the maximum cost.

        Args:
            running: ids of the study's jobs that another program submitted; these jobs count towards a budget and are
                not changed.

        Returns:
            The maximum cost of submitting the jobs; ``None`` if running is free.

        Raises:
            RequestError: if access is missing, a plugin cannot be shipped, or the cost is above the budget.
        """
        ...

    def submit(self, job: Path, store: Path) -> str:
        """Start the job whose record is at `job`; return an id that any later process can use."""
        ...

    def collect(self, job_id: str, store: Path) -> JobState:
        """Copy new results into `store`, complete or partial, and return the job's state."""
        ...

    def why_lost(self, job_id: str) -> str:
        """Describe in a clause how a lost job ended."""
        ...

    def dollars(self, job_id: str) -> float | None:
        """Return the estimated cost of a job that has ended; ``None`` if running is free or the cost is unknown."""
        ...

    def cancel(self, job_id: str) -> None:
        """End the job; return when it has ended."""
        ...

    def leave(self, job_id: str) -> None:
        """Let the job continue without this program: `close` does not end it. Called only if `outlives`."""
        ...

    def recall(self, study: str, store: Path) -> None:
        """Copy the records of a study submitted on another machine into `store`.

        Raises:
            StoreError: if the executor does not have the study, or keeps no studies.
        """
        ...

    def close(self) -> None:
        """Release resources; cancel only running jobs that this executor submitted and did not leave."""
        ...
