"""Run jobs on Modal's GPUs: one container per job; finished runs are fetched from a Volume."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llmquant.errors import MissingDependencyError, RequestError, RunError, UnsupportedError
from llmquant.executors.modal import app as modal_app
from llmquant.executors.modal import image as modal_image
from llmquant.executors.modal import money as modal_money
from llmquant.executors.modal import volume as modal_volume
from llmquant.executors.modal.image import ImagePlan
from llmquant.executors.modal.options import SHORTEST_S, ModalOptions
from llmquant.executors.modal.worker import Order
from llmquant.executors.shipping import pack
from llmquant.plugins.executor import JobState, Offer
from llmquant.storage.journal import JobRecord
from llmquant.study.job import Device, Job

_LARGE_BYTES = 2**30
# Time between two requests to Modal for a job's state, and between two reads of the job's files.
_ASK_EVERY_S, _FETCH_EVERY_S = 1.0, 3.0
_CANCEL_S = 10.0

_log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """A job as this process knows it.

    Attributes:
        submitted: time of submission, in seconds since the epoch.
        timeout: maximum time of the job, in seconds.
        outcome: the return value of the job's container.
        seconds: paid time of the job; ``None`` while the job may run.
        own: submitted by this executor and not left, so the job ends when this executor closes.
    """

    call: str
    key: str
    submitted: float
    timeout: float
    state: JobState = "queued"
    why: str = "the container no longer exists"
    outcome: Mapping[str, Any] | None = None  # Any: an Outcome, as the client returns it
    seconds: float | None = None
    cancelled: bool = False
    own: bool = False
    asked: float = -math.inf
    fetched: float = -math.inf


class ModalExecutor:
    """Runs jobs in containers on Modal.

    The containers continue if this process ends without `close`; any process can collect their results.

    Args:
        gpu: one GPU type, or several, of which Modal uses the first free one; see `ModalOptions` for all arguments.

    Raises:
        MissingDependencyError: if Modal's client is not installed.
    """

    def __init__(
        self,
        *,
        gpu: str | Sequence[str] = "A100",
        timeout: int = 3600,
        max_parallel: int = 4,
        volume: str = "llmquant",
        secret: str = "huggingface-secret",
        budget: float | None = None,
        yes: bool = False,
        app: str = "llmquant",
        python_version: str = "",
        packages: Sequence[str] = (),
        cpus: int = 4,
        memory_gib: int = 32,
        ship_model: bool = False,
    ) -> None:
        self.options = ModalOptions(
            (gpu,) if isinstance(gpu, str) else tuple(gpu),
            timeout,
            max_parallel,
            volume,
            secret,
            budget,
            yes,
            app,
            python_version,
            tuple(packages),
            cpus,
            memory_gib,
            ship_model,
        )
        if find_spec("modal") is None:
            raise MissingDependencyError(
                "Modal's client is not installed", hint='Install it: pip install "llmquant[modal]"'
            )
        self._jobs: dict[str, _Watched] = {}
        self._offered: float | None = None
        self._checked: list[Job] = []
        self._functions: dict[ImagePlan, Any] = {}  # Any: modal.Function

    name = "modal"
    outlives = True
    installs = True
    threads: int | None = None

    @property
    def device(self) -> Device:
        """The device of the workers."""
        return "cuda" if self.options.gpus[0].count else "cpu"

    @property
    def hardware(self) -> str:
        """Name the GPU, or all GPUs that jobs may run on."""
        if self.device == "cpu":
            return f"cpu (Modal), {self.options.cpus} cores"
        return " or ".join(str(gpu) for gpu in self.options.gpus)

    @property
    def slots(self) -> int:
        """The maximum number of simultaneous jobs."""
        return self.options.max_parallel

    @property
    def notices(self) -> tuple[str, ...]:
        """Warn that timings on several GPU types are not comparable."""
        if len(self.options.gpus) == 1:
            return ()
        return (f"timings and memory may come from any of {self.hardware}; to compare timings, give one GPU",)

    @functools.cached_property
    def rates(self) -> modal_money.Rates:
        """Modal's rates for this workspace, or the dated table if Modal does not return them."""
        import modal

        try:
            return modal_money.rates_from(modal.Workspace.from_context().billing.rates())
        except modal.exception.Error as error:
            _log.info("Modal's rates could not be read (%s); using the %s", error, modal_money.TABLE.source)
            return modal_money.TABLE

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer:
        """Refuse jobs that Modal cannot run or the budget does not allow, without starting anything.

        Raises:
            RequestError: if the token or the secret is missing, a plugin cannot be shipped, Python differs, large
                local files would be sent, or the maximum cost is above the budget.
        """
        modal_image.plan_for(jobs, self.options)
        self._checked += jobs
        for job in jobs:
            self._check_size(modal_volume.local_bytes(job))
        self._check_account()
        for job_id in running:  # their remaining cost counts; the jobs are not changed
            self._watch(job_id)
        worst = modal_money.estimate(len(jobs), self.options, self.rates)
        modal_money.check_budget(worst, self.options.budget, self._committed)
        self._offered = (self._offered or 0.0) + worst.dollars
        return Offer(str(worst), worst.dollars, agreed=self.options.yes or self.options.budget is not None)

    def submit(self, job: Path, store: Path) -> str:
        """Submit a job. Its time limit is the timeout, or less if the budget or the confirmed cost leaves less.

        Raises:
            RequestError: if too little of the budget is left for a job.
            RunError: if Modal does not accept the job.
        """
        import modal

        record = JobRecord.read(job).job
        timeout = self._affordable_s()
        # One app for all jobs, so that `max_parallel` limits all of them.
        function = self._function(modal_image.plan_for([*self._checked, record], self.options))
        key = modal_volume.new_key(record.study, record.number, time.time(), timeout)
        order = Order(
            volume=self.options.volume, key=key, study=record.study, number=record.number, timeout=int(timeout)
        )
        with tempfile.TemporaryDirectory(prefix="llmquant-pack-") as scratch:
            packed = Path(scratch) / "packed"
            pack(job, store, packed, with_model=True)
            self._check_size(modal_volume.size(packed))
            try:
                modal_volume.send(self._volume, packed, key)
                job_id = f"{function.spawn(order).object_id}/{key}"
            except modal.exception.Error as error:
                raise RunError(
                    f"Modal did not accept job {record.number}: {error}",
                    hint="Run the same command again; running jobs are continued and stored runs are reused.",
                ) from error
        self._watch(job_id).own = True
        modal_volume.publish(self._volume, job, job_id)
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Fetch new results from the Volume, and return the job's state."""
        import modal

        watched, now = self._watch(job_id), time.monotonic()
        if watched.seconds is not None or now - watched.asked < _ASK_EVERY_S:
            return watched.state
        watched.asked = now
        over = self._over(watched)
        if over is None and now - watched.fetched < _FETCH_EVERY_S:
            return watched.state
        watched.fetched = now
        try:
            begun, complete = modal_volume.fetch(self._volume, watched.key, store, ended=over is not None)
        except modal.exception.Error as error:  # the next call fetches again
            _log.info("Modal's Volume could not be read: %s", error)
            return watched.state
        if begun:
            watched.state = "running"
        if over is not None and complete:
            watched.state, watched.why = over
            ran = max(0.0, min(time.time() - watched.submitted, watched.timeout))  # the clock may have been set back
            watched.seconds = ran if watched.outcome is None else float(watched.outcome["seconds"])
            modal_volume.tidy(self._volume, watched.key)
        return watched.state

    def why_lost(self, job_id: str) -> str:
        """Describe how a lost job ended."""
        return self._watch(job_id).why

    def dollars(self, job_id: str) -> float | None:
        """Return the estimated cost of a job that has ended; for a lost job, the maximum."""
        watched = self._watch(job_id)
        if watched.seconds is None:
            return None
        driver_name = str(watched.outcome["gpu"]) if watched.outcome else ""
        return modal_money.cost(watched.seconds, driver_name, self.options, self.rates)

    def cancel(self, job_id: str) -> None:
        """End the job and its container; finished runs can still be collected."""
        import modal

        watched = self._watch(job_id)
        if watched.seconds is not None or watched.cancelled:
            return
        call = modal.FunctionCall.from_id(watched.call)
        with contextlib.suppress(modal.exception.NotFoundError):
            call.cancel(terminate_containers=True)
        watched.cancelled, watched.asked, watched.fetched = True, -math.inf, -math.inf
        # A result shows that the call has ended; an exception of the worker, of any class, is raised here unchanged.
        with contextlib.suppress(Exception):
            call.get(timeout=_CANCEL_S)
        modal_volume.tidy(self._volume, watched.key)

    def leave(self, job_id: str) -> None:
        """Let the job continue without this program."""
        self._watch(job_id).own = False

    def recall(self, study: str, store: Path) -> None:
        """Copy the records of a study submitted on another machine into `store`.

        Raises:
            RequestError: if the token is missing; `StoreError` if the study is missing from the Volume.
        """
        self._check_account()
        modal_volume.recall(self._volume, study, store)

    def deploy(self, jobs: Sequence[Job]) -> list[str]:
        """Deploy the app for these jobs and similar ones, which then start without building an image.

        Returns:
            The app's name.

        Raises:
            RequestError: as `check`, except for the budget.
        """
        self._check_account()
        return [modal_app.deploy(modal_image.plan_for(jobs, self.options), self.options)]

    def close(self) -> None:
        """Cancel the running jobs that this executor submitted and did not leave."""
        for job_id, watched in self._jobs.items():
            if watched.own and watched.seconds is None:
                self.cancel(job_id)

    @functools.cached_property
    def _volume(self) -> Any:  # Any: modal.Volume
        import modal

        return modal.Volume.from_name(self.options.volume, create_if_missing=True)

    @property
    def _committed(self) -> float:
        """Dollars that are spent, or reserved for running jobs."""
        open_s = sum(watched.timeout for watched in self._jobs.values() if watched.seconds is None)
        ended = (self.dollars(job_id) for job_id in self._jobs)
        return sum(x for x in ended if x is not None) + modal_money.cost(open_s, "", self.options, self.rates)

    def _affordable_s(self) -> float:
        limit = self.options.budget if self.options.budget is not None else self._offered
        if limit is None:
            if not self.options.yes:
                raise RequestError("the cost was not confirmed", hint="Give budget=DOLLARS or yes=True.")
            return self.options.timeout
        per_second = modal_money.cost(1.0, "", self.options, self.rates)
        seconds = min(self.options.timeout, (limit - self._committed) / per_second)
        if seconds < SHORTEST_S:
            raise RequestError(
                f"budget ${limit:.2f}: ${self._committed:.2f} is spent or reserved, "
                f"${max(0.0, limit - self._committed):.2f} is left, too little for another job",
                hint="Run the same command again with a higher budget; stored runs are reused.",
            )
        return seconds

    def _check_size(self, size: int) -> None:
        if size > _LARGE_BYTES and not self.options.ship_model:
            raise UnsupportedError(
                f"{size / 2**30:.1f} GiB of local files would be sent to Modal",
                hint="Give the model by its Hub id, or set ship_model=True.",
            )

    def _check_account(self) -> None:
        """Refuse if the token or the secret is missing."""
        import modal

        try:
            self._volume.hydrate()
            if self.options.secret:
                modal.Secret.from_name(self.options.secret).hydrate()
        except modal.exception.AuthError as error:
            raise _stranger(error) from error
        except modal.exception.NotFoundError as error:
            raise RequestError(
                f"Modal has no secret {self.options.secret!r}",
                hint=f'Run: modal secret create {self.options.secret} HF_TOKEN=...   or set secret="" for none.',
            ) from error
        except modal.exception.Error as error:
            raise RequestError(f"Modal cannot be reached or refused the request: {error}") from error

    def _function(self, plan: ImagePlan) -> Any:  # Any: modal.Function
        if plan not in self._functions:
            function = modal_app.standing(plan, self.options)
            if function is None:
                _log.warning("Deploying an app on Modal; building its image may take minutes")
                modal_app.deploy(plan, self.options)
                function = modal_app.standing(plan, self.options)
            self._functions[plan] = function
        return self._functions[plan]

    def _watch(self, job_id: str) -> _Watched:
        if job_id not in self._jobs:
            call, _, key = job_id.partition("/")
            _, _, submitted, timeout = modal_volume.read_key(key)
            self._jobs[job_id] = _Watched(call, key, submitted, timeout)
        return self._jobs[job_id]

    def _over(self, watched: _Watched) -> tuple[JobState, str] | None:
        """Ask Modal how a call ended; ``None`` if the call has not ended or Modal does not answer."""
        import modal

        try:
            outcome: Mapping[str, Any] = modal.FunctionCall.from_id(watched.call).get(timeout=0)  # Any: an Outcome
        except modal.exception.AuthError as error:
            raise _stranger(error) from error
        except modal.exception.FunctionTimeoutError:
            return "lost", "Modal ended the container at its timeout"
        except TimeoutError:
            return ("lost", "the job was cancelled") if watched.cancelled else None
        except (
            modal.exception.ConnectionError,
            modal.exception.ServiceError,
            modal.exception.InternalError,
            modal.exception.ResourceExhaustedError,
        ) as error:
            _log.info("Modal does not answer: %s", error)
            return None
        except modal.exception.Error as error:
            return "lost", "the job was cancelled" if watched.cancelled else f"Modal says: {error}"
        except Exception as error:  # an exception of the worker is raised here unchanged
            return "lost", f"the container failed: {type(error).__name__}: {error}"
        watched.outcome = outcome
        return "ended" if outcome["code"] == 0 else "lost", str(outcome["why"])


def from_options(options: ModalOptions) -> ModalExecutor:
    """Construct the executor from its options."""
    return ModalExecutor(**vars(options))


def _stranger(error: Exception) -> RequestError:
    return RequestError(f"the Modal token is missing or invalid: {error}", hint="Run: modal token new")
