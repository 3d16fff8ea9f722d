"""Run jobs on a Ray cluster: one actor per job, which outlives the program that submitted the job."""

from __future__ import annotations

import contextlib
import functools
import logging
import shutil
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llmquant.errors import StoreError, UnsupportedError
from llmquant.executors.ray.cluster import Cluster, import_ray
from llmquant.executors.ray.job import (
    INLINE_BYTES,
    NAMESPACE,
    RayJob,
    Report,
    done_name,
    extract,
    packed_name,
    place_of,
    put_up,
    tar,
)
from llmquant.executors.ray.options import RayOptions
from llmquant.executors.shipping import bring_home, pack, record_path
from llmquant.executors.worker_process import how_it_ended
from llmquant.plugins.executor import JobState
from llmquant.storage.atomic import replacing
from llmquant.storage.journal import journal_path, log_path
from llmquant.study.job import Device, Job

_NODES_LOST = 3
_CANCEL_S = 20.0
_PENDING_S = 8.0
_LEAVE_S = 0.5
# Ray puts at most 10 MB of a call's arguments into the call itself.
_INLINE_ALL_BYTES = 8 * 2**20

_log = logging.getLogger(__name__)


@dataclass
class _Watched:
    """A job as this process knows it.

    Attributes:
        actor: the job's actor, or the shelf with the job's results.
        arrived: folder with the part of the worker's store that has arrived.
        store: the store that the job was collected into; ``None`` if the job was never collected.
        question: a requested report that has not arrived; ``None`` if no report is requested.
        node: Ray's id of the job's machine; empty until the job has started.
        over: the job's final state, and the reason if the job was lost.
    """

    actor: Any  # Any: a handle of Ray's
    arrived: Path
    store: Path | None = None
    question: Any = None  # Any: a reference of Ray's
    node: str = ""
    nodes_lost: int = 0
    over: tuple[JobState, str] | None = None


class RayExecutor:
    """Runs jobs on a Ray cluster whose machines have the same packages installed.

    Finished runs are copied while a job runs. Weights do not pass through Ray: a local checkpoint must be at the same
    path on every machine. A job whose machine is lost continues on another machine.

    Args:
        address: ``auto``, ``local`` or an address for ``ray.init``; see `RayOptions` for all arguments.
    """

    name = "ray"
    installs = False

    def __init__(
        self,
        *,
        address: str = "auto",
        device: Literal["auto", "cpu", "cuda"] = "auto",
        num_gpus: float | None = None,
        num_cpus: float = 1.0,
        threads: int | None = None,
        max_parallel: int | None = None,
        accelerator_type: str = "",
    ) -> None:
        self._options = RayOptions(address, device, num_gpus, num_cpus, threads, max_parallel, accelerator_type)
        self._cluster = Cluster(self._options)
        self._jobs: dict[str, _Watched] = {}
        self._own: set[str] = set()

    @property
    def threads(self) -> int:
        """CPU threads per worker."""
        return self._options.worker_threads

    @property
    def outlives(self) -> bool:
        """Whether jobs continue when this program ends; not on a cluster started by this program."""
        return not self._cluster.own

    @property
    def device(self) -> Device:
        """The device of the workers.

        Raises:
            UnsupportedError: if GPUs are requested and the cluster has none.
        """
        return self._cluster.device

    @functools.cached_property
    def hardware(self) -> str:
        """Name the hardware of the machines that may run a job, on which the results of hardware evaluators depend.

        Raises:
            UnsupportedError: if no machine of the cluster has room for a job.
        """
        return self._cluster.hardware()

    @functools.cached_property
    def slots(self) -> int:
        """The maximum number of simultaneous jobs."""
        return self._cluster.slots()

    @property
    def notices(self) -> tuple[str, ...]:
        """Report a cluster started here, and different GPU types, whose timings are not comparable."""
        return self._cluster.notices()

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> None:
        """Check that a machine of the cluster is large enough for a job; running is free.

        Raises:
            UnsupportedError: if no machine is large enough.
        """
        self._cluster.roomy_nodes()

    def submit(self, job: Path, store: Path) -> str:
        """Create the job's actor, which waits in Ray while the cluster is full; return a unique job id.

        Raises:
            UnsupportedError: if a checkpoint needs another local folder.
        """
        job_id = f"{job.parent.parent.name}/{job.stem}/{uuid.uuid4().hex[:12]}"
        actor = self._start(job_id, store)
        self._jobs[job_id] = _Watched(actor, _folder(), store)
        self._own.add(job_id)
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Copy new results, and return the job's state."""
        from ray.exceptions import ActorUnavailableError, RayActorError

        watched = self._watched(job_id)
        watched.store = store
        if watched.over is not None:
            return watched.over[0]
        try:
            while True:
                report = self._ask(watched, job_id, wait_s=0.5 if watched.node else 0.0)
                if report is None:
                    return "running" if watched.node else "queued"
                watched.node = report.node
                self._receive(watched, report, job_id, store)
                if report.code is None:
                    return "running"
                if not report.log and not report.journal:
                    break  # everything has arrived
        except ActorUnavailableError:  # Ray does not know yet whether the job is lost
            return "running"
        except RayActorError as error:
            return self._after_loss(watched, job_id, store, error)
        bring_home(watched.arrived, store, *place_of(job_id), ended=True)
        how: tuple[JobState, str] = ("ended", "") if report.code == 0 else ("lost", how_it_ended(report.code))
        watched.over = how
        self._dismiss(watched)
        return how[0]

    def why_lost(self, job_id: str) -> str:
        """Describe how a lost job ended."""
        over = self._watched(job_id).over
        return over[1] if over else "the job no longer exists on the Ray cluster"

    def dollars(self, job_id: str) -> None:
        """Return ``None``: running is free."""

    def cancel(self, job_id: str) -> None:
        """End the worker and its children, and copy the finished runs."""
        ray = import_ray()
        watched = self._watched(job_id)
        if watched.over is not None:
            return
        try:
            # If the job never ran, killing the actor is enough: a worker that is just starting ends with its actor.
            if watched.node or watched.store is None:
                ray.get(watched.actor.end.remote(), timeout=_CANCEL_S if watched.node else _PENDING_S)
                watched.question = None
                report = self._ask(watched, job_id, wait_s=_CANCEL_S)
                if report is not None and watched.store is not None:
                    watched.node = report.node
                    self._receive(watched, report, job_id, watched.store)
                    bring_home(watched.arrived, watched.store, *place_of(job_id), ended=True)
        except ray.exceptions.RayError as error:  # the actor waits for room or has ended: there is nothing to copy
            _log.info("%s: %s", job_id, error)
        except StoreError as error:  # a full disk must not prevent ending the other workers
            _log.warning("%s", error)
        watched.over = ("lost", "the job was cancelled")
        self._dismiss(watched)

    def leave(self, job_id: str) -> None:
        """Let the job continue, or wait for room, without this program.

        Raises:
            UnsupportedError: if the cluster ends with this program.
        """
        if not self.outlives:
            raise UnsupportedError(
                "the Ray cluster was started for this study and ends with this program",
                hint="Start a cluster with `ray start --head`.",
            )
        # A request that Ray accepts shows that Ray has accepted the actor, even if the answer has to wait.
        watched = self._watched(job_id)
        if watched.over is None:
            with contextlib.suppress(import_ray().exceptions.RayError):  # the next `collect` reports the error
                self._ask(watched, job_id, wait_s=_LEAVE_S)
        self._own.discard(job_id)

    def recall(self, study: str, store: Path) -> None:
        """Raise a `StoreError`: a Ray cluster keeps jobs, but no studies."""
        raise StoreError(
            f"study {study} is missing from {store}, and a Ray cluster keeps no studies",
            hint="Give the store that the study was started with, on any machine with access to its folder.",
        )

    def close(self) -> None:
        """End the running jobs that this executor submitted and did not leave; leave or end the cluster."""
        for job_id, watched in self._jobs.items():
            if job_id in self._own:
                self.cancel(job_id)
            else:
                shutil.rmtree(watched.arrived, ignore_errors=True)
        self._cluster.close()

    def _start(self, job_id: str, store: Path) -> Any:  # Any: a handle of Ray's
        """Pack a job without its stored runs, and create its actor; ``None`` if nothing is left to run."""
        ray = self._cluster.join()
        with tempfile.TemporaryDirectory(prefix="llmquant-packed-") as scratch:
            left = pack(record_path(store, *place_of(job_id)), store, Path(scratch, "packed"), with_model=False)
            packed = tar(Path(scratch, "packed"))
        if not left:
            return None
        pieces = [packed[start : start + INLINE_BYTES] for start in range(0, len(packed), INLINE_BYTES)]
        if len(packed) > _INLINE_ALL_BYTES:
            put_up(packed_name(job_id), {"packed": packed})
            pieces = []
        # Only the folders of a script or notebook: installed packages exist on every machine.
        search = [
            p for p in sys.path if p and not any(Path(p).is_relative_to(x) for x in (sys.prefix, sys.base_prefix))
        ]
        actor = ray.remote(RayJob).options(
            name=job_id, namespace=NAMESPACE, lifetime="detached", max_restarts=0, **self._cluster.needs
        )
        return actor.remote(job_id, self.device, self.threads, search, *pieces)

    def _watched(self, job_id: str) -> _Watched:
        """Return the state of a job; find the actor of a job submitted by another process."""
        if job_id not in self._jobs:
            self._cluster.join()
            watched = _Watched(_actor(job_id) or _actor(done_name(job_id)), _folder())
            if watched.actor is None:
                watched.over = ("lost", "the job no longer exists on the Ray cluster")
            self._jobs[job_id] = watched
        return self._jobs[job_id]

    def _ask(self, watched: _Watched, job_id: str, *, wait_s: float) -> Report | None:
        """Request a report, or check whether the requested report has arrived."""
        if watched.question is None:
            record = record_path(watched.arrived, *place_of(job_id))
            watched.question = watched.actor.report.remote(_size(journal_path(record)), _size(log_path(record)))
        ray = import_ray()
        ready, _ = ray.wait([watched.question], timeout=wait_s)
        if not ready:
            return None
        question, watched.question = watched.question, None
        report: Report = ray.get(question)
        return report

    def _receive(self, watched: _Watched, report: Report, job_id: str, store: Path) -> None:
        """Fetch new runs, and copy everything that has arrived into the store."""
        for name, size in report.runs.items():
            if not (store / "runs" / name).exists():
                data = b""
                while len(data) < size:
                    data += import_ray().get(watched.actor.piece.remote(name, len(data)))
                with replacing(watched.arrived / "runs" / name) as coming:
                    extract(data, coming)
        record = record_path(watched.arrived, *place_of(job_id))
        record.parent.mkdir(parents=True, exist_ok=True)
        for path, data in ((journal_path(record), report.journal), (log_path(record), report.log)):
            with path.open("ab") as stream:
                stream.write(data)
        bring_home(watched.arrived, store, *place_of(job_id))

    def _after_loss(self, watched: _Watched, job_id: str, store: Path, error: Exception) -> JobState:
        """Continue with the job's shelf, or on another machine if its machine was lost; else mark the job as lost."""
        watched.question = None
        shelf = _actor(done_name(job_id))
        if shelf is not None and watched.actor != shelf:
            watched.actor = shelf
            return "running"
        alive = {node["NodeID"] for node in import_ray().nodes() if node["Alive"]}
        if watched.node and watched.node not in alive and watched.nodes_lost < _NODES_LOST:
            watched.nodes_lost += 1
            watched.node = ""
            shutil.rmtree(watched.arrived)  # the new worker's journal and log continue those in the store
            watched.arrived = _folder()
            watched.actor = self._start(job_id, store)
            if watched.actor is not None:
                return "queued"
            how: tuple[JobState, str] = ("ended", "")
        else:
            last = str(error).strip().splitlines() or ["the reason is unknown"]
            how = ("lost", f"Ray lost the job: {last[0]}")
        watched.over = how
        shutil.rmtree(watched.arrived, ignore_errors=True)
        return how[0]

    def _dismiss(self, watched: _Watched) -> None:
        """Free the actor's resources in the cluster."""
        ray = import_ray()
        shutil.rmtree(watched.arrived, ignore_errors=True)
        with contextlib.suppress(ray.exceptions.RayError):  # the actor may have ended already
            if watched.node:
                ray.get(watched.actor.tidy.remote(), timeout=_CANCEL_S)
            ray.kill(watched.actor)


def from_options(options: RayOptions) -> RayExecutor:
    """Construct the executor from its options."""
    return RayExecutor(**vars(options))


def _actor(name: str) -> Any:  # Any: a handle of Ray's
    """Find an actor by name; ``None`` if there is no such actor."""
    try:
        return import_ray().get_actor(name, namespace=NAMESPACE)
    except ValueError:
        return None


def _folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="llmquant-arrived-"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
