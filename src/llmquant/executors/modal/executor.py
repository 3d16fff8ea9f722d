"""Run jobs on Modal's GPUs: a container a job, its runs fetched from a Volume as they finish."""

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
# Between two questions to Modal about one job, and between two looks at its files.
_ASK_EVERY_S, _FETCH_EVERY_S = 1.0, 3.0
_CANCEL_S = 10.0

_log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """A job as this process knows it.

    Attributes:
        submitted: seconds since the epoch.
        timeout: most seconds that it may run.
        outcome: what its container returned.
        seconds: that it is paid for; ``None`` while it may run.
        own: submitted by this executor and not left: it ends when this executor closes.
    """

    call: str
    key: str
    submitted: float
    timeout: float
    state: JobState = "queued"
    why: str = "its container is gone"
    outcome: Mapping[str, Any] | None = None  # Any: an Outcome, as the client returns it
    seconds: float | None = None
    cancelled: bool = False
    own: bool = False
    asked: float = -math.inf
    fetched: float = -math.inf


class ModalExecutor:
    """Containers on Modal. They go on when this process ends without `close`; any process can collect from them.

    Args:
        gpu: one, or several of which Modal takes the first that is free; see `ModalOptions` for the others.

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
        """What the workers compute on."""
        return "cuda" if self.options.gpus[0].count else "cpu"

    @property
    def hardware(self) -> str:
        """Name the GPU, or those that it may be."""
        if self.device == "cpu":
            return f"cpu (Modal), {self.options.cpus} cores"
        return " or ".join(str(gpu) for gpu in self.options.gpus)

    @property
    def slots(self) -> int:
        """How many jobs run at a time."""
        return self.options.max_parallel

    @property
    def notices(self) -> tuple[str, ...]:
        """Say that several GPUs are no good ground for timings."""
        if len(self.options.gpus) == 1:
            return ()
        return (f"timings and memory may come from any of {self.hardware}; name one GPU to compare them",)

    @functools.cached_property
    def rates(self) -> modal_money.Rates:
        """Modal's rates for this workspace, else the dated table."""
        import modal

        try:
            return modal_money.rates_from(modal.Workspace.from_context().billing.rates())
        except modal.exception.Error as error:
            _log.info("Modal's rates could not be read (%s); using the %s", error, modal_money.TABLE.source)
            return modal_money.TABLE

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> Offer:
        """Refuse what Modal could not run or what the budget does not allow; nothing that costs is started.

        Raises:
            RequestError: without a token or the secret, if a plugin cannot be shipped or Python differs, if large
                local files would be sent, or if the worst case is above the budget.
        """
        self._plan(jobs)
        self._checked += jobs
        for job in jobs:
            self._check_size(modal_volume.local_bytes(job))
        self._check_account()
        for job_id in running:  # what they may still cost counts; they are not touched
            self._watch(job_id)
        worst = modal_money.estimate(len(jobs), self.options, self.rates)
        modal_money.check_budget(worst, self.options.budget, self._committed)
        self._offered = (self._offered or 0.0) + worst.dollars
        return Offer(str(worst), worst.dollars, agreed=self.options.yes or self.options.budget is not None)

    def submit(self, job: Path, store: Path) -> str:
        """Send a job. It may take its timeout, or less where the budget, or what was offered, leaves less.

        Raises:
            RequestError: if too little is left for a job.
            RunError: if Modal does not take it.
        """
        import modal

        record = JobRecord.read(job).job
        timeout = self._affordable_s()
        # One app for all of them, so that `max_parallel` holds.
        function = self._function(self._plan([*self._checked, record]))
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
                    f"Modal did not take job {record.number}: {error}",
                    hint="Give the same command again; what runs is taken up, and what is stored is reused.",
                ) from error
        self._watch(job_id).own = True
        modal_volume.publish(self._volume, job, job_id)
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Fetch what is new from the Volume, and say how the job stands."""
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
        except modal.exception.Error as error:  # the next look fetches again
            _log.info("Modal's Volume could not be read: %s", error)
            return watched.state
        if begun:
            watched.state = "running"
        if over is not None and complete:
            watched.state, watched.why = over
            ran = min(time.time() - watched.submitted, watched.timeout)
            watched.seconds = ran if watched.outcome is None else float(watched.outcome["seconds"])
            modal_volume.tidy(self._volume, watched.key)
        return watched.state

    def why_lost(self, job_id: str) -> str:
        """Say how a lost job ended."""
        return self._watch(job_id).why

    def dollars(self, job_id: str) -> float | None:
        """Say about what a job that has ended cost: of a lost one, at most."""
        watched = self._watch(job_id)
        if watched.seconds is None:
            return None
        driver_name = str(watched.outcome["gpu"]) if watched.outcome else ""
        return modal_money.cost(watched.seconds, driver_name, self.options, self.rates)

    def cancel(self, job_id: str) -> None:
        """End the job and its container; what was finished can still be collected."""
        import modal

        watched = self._watch(job_id)
        if watched.seconds is not None or watched.cancelled:
            return
        call = modal.FunctionCall.from_id(watched.call)
        with contextlib.suppress(modal.exception.NotFoundError):
            call.cancel(terminate_containers=True)
        watched.cancelled, watched.asked, watched.fetched = True, -math.inf, -math.inf
        # A result says that it has ended. Any: what the worker raised comes back as it was.
        with contextlib.suppress(Exception):
            call.get(timeout=_CANCEL_S)
        modal_volume.tidy(self._volume, watched.key)

    def leave(self, job_id: str) -> None:
        """Let the job go on without this program."""
        self._watch(job_id).own = False

    def recall(self, study: str, store: Path) -> None:
        """Bring the records of a study that was submitted on another machine into `store`.

        Raises:
            RequestError: without a token; `StoreError` if the Volume has no such study.
        """
        self._check_account()
        modal_volume.recall(self._volume, study, store)

    def deploy(self, jobs: Sequence[Job]) -> list[str]:
        """Deploy the app in which these jobs, and all that need the same, start without building an image.

        Returns:
            Its name.

        Raises:
            RequestError: as `check`, money apart.
        """
        self._check_account()
        return [modal_app.deploy(self._plan(jobs), self.options)]

    def close(self) -> None:
        """Cancel what this executor submitted, did not leave, and still runs."""
        for job_id, watched in self._jobs.items():
            if watched.own and watched.seconds is None:
                self.cancel(job_id)

    @functools.cached_property
    def _volume(self) -> Any:  # Any: modal.Volume
        import modal

        return modal.Volume.from_name(self.options.volume, create_if_missing=True)

    @property
    def _committed(self) -> float:
        """Dollars that were spent, or that what runs can still cost."""
        open_s = sum(watched.timeout for watched in self._jobs.values() if watched.seconds is None)
        ended = (self.dollars(job_id) for job_id in self._jobs)
        return sum(x for x in ended if x is not None) + modal_money.cost(open_s, "", self.options, self.rates)

    def _affordable_s(self) -> float:
        limit = self.options.budget if self.options.budget is not None else self._offered
        if limit is None:
            if not self.options.yes:
                raise RequestError("nobody agreed to what this may cost", hint="Give budget=DOLLARS or yes=True.")
            return self.options.timeout
        a_second = modal_money.cost(1.0, "", self.options, self.rates)
        seconds = min(self.options.timeout, (limit - self._committed) / a_second)
        if seconds < SHORTEST_S:
            raise RequestError(
                f"of ${limit:.2f}, all but ${max(0.0, limit - self._committed):.2f} is spent or promised to what runs",
                hint="Give the same command again with a higher budget; what is stored is reused.",
            )
        return seconds

    def _plan(self, jobs: Sequence[Job]) -> ImagePlan:
        needs = [modal_image.needs(job) for job in jobs]
        packages, modules, requires = (sorted({x for each in kind for x in each}) for kind in zip(*needs, strict=True))
        extra, version = self.options.packages, self.options.python_version
        return modal_image.plan_image(packages, modules, requires, extra=extra, python_version=version)

    def _check_size(self, size: int) -> None:
        if size > _LARGE_BYTES and not self.options.ship_model:
            raise UnsupportedError(
                f"{size / 2**30:.1f} GiB of local files would be sent to Modal",
                hint="Name the model by its Hub id, or say ship_model=True.",
            )

    def _check_account(self) -> None:
        """Refuse without a token or with a secret that is not there."""
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
                hint=f"Run: modal secret create {self.options.secret} HF_TOKEN=...   or give secret='' for none.",
            ) from error
        except modal.exception.Error as error:
            raise RequestError(f"Modal cannot be reached or refuses: {error}") from error

    def _function(self, plan: ImagePlan) -> Any:  # Any: modal.Function
        if plan not in self._functions:
            function = modal_app.standing(plan, self.options)
            if function is None:
                _log.warning("deploying an app on Modal; to build its image may take minutes")
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
        """Ask how a call ended; ``None`` if it has not, or Modal does not say now."""
        import modal

        try:
            outcome: Mapping[str, Any] = modal.FunctionCall.from_id(watched.call).get(timeout=0)  # Any: an Outcome
        except modal.exception.AuthError as error:
            raise _stranger(error) from error
        except modal.exception.FunctionTimeoutError:
            return "lost", "Modal ended the container at its timeout"
        except TimeoutError:
            return ("lost", "it was cancelled") if watched.cancelled else None
        except (
            modal.exception.ConnectionError,
            modal.exception.ServiceError,
            modal.exception.InternalError,
            modal.exception.ResourceExhaustedError,
        ) as error:
            _log.info("Modal does not answer: %s", error)
            return None
        except modal.exception.Error as error:
            return "lost", "it was cancelled" if watched.cancelled else f"Modal says: {error}"
        except Exception as error:  # what the worker raised comes back as it was
            return "lost", f"the container failed: {type(error).__name__}: {error}"
        watched.outcome = outcome
        return "ended" if outcome["code"] == 0 else "lost", str(outcome["why"])


def from_options(options: ModalOptions) -> ModalExecutor:
    """Construct the executor from its options."""
    return ModalExecutor(**vars(options))


def _stranger(error: Exception) -> RequestError:
    return RequestError(f"Modal does not know who you are: {error}", hint="Run: modal token new")
