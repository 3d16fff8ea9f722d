"""Run jobs on this machine: one new process per job, as many at a time as the GPUs allow."""

from __future__ import annotations

import functools
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmquant.errors import StoreError, UnsupportedError
from llmquant.executors.local.options import LocalOptions
from llmquant.executors.shipping import bring_home, record_path
from llmquant.executors.worker_process import (
    delete_abandoned,
    how_it_ended,
    is_held,
    make_folder,
    start,
    stop,
    stop_other,
)
from llmquant.machine.hardware import Gpu, cpu_label, cpu_threads, default_device, nvidia_gpus
from llmquant.plugins.executor import JobState
from llmquant.study.counting import counted
from llmquant.study.job import Device, Job

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Worker:
    """A worker process started by this process, the GPUs it may use and the store for its runs."""

    process: subprocess.Popen[bytes]
    gpus: tuple[str, ...]
    store: Path


class LocalExecutor:
    """Runs jobs in processes on this machine. The processes end when this process ends, for whatever reason.

    Args:
        device: device of the workers; ``auto`` uses the GPUs if there are any. ``CUDA_VISIBLE_DEVICES`` is respected.
        threads: CPU threads per worker; ``None`` is ``OMP_NUM_THREADS``, else the number of physical cores available to
            this process.
        gpus_per_job: GPUs per job; more than 1 for models that one GPU cannot hold.
        max_parallel: maximum number of simultaneous jobs; ``None`` is as many as the GPUs allow, and 1 on the CPU.
    """

    name = "local"
    outlives = False
    installs = False

    def __init__(
        self,
        *,
        device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
        threads: int | None = None,
        gpus_per_job: int = 1,
        max_parallel: int | None = None,
    ) -> None:
        self._options = LocalOptions(device, threads, gpus_per_job, max_parallel)
        self._workers: dict[str, _Worker] = {}

    @property
    def threads(self) -> int:
        """CPU threads per worker."""
        return self._options.threads or cpu_threads()

    @functools.cached_property
    def device(self) -> Device:
        """The device of the workers.

        Raises:
            UnsupportedError: if a GPU is requested and none can be used.
        """
        wanted = self._options.device
        if wanted == "cpu":
            return "cpu"
        found = default_device()
        several = self._options.gpus_per_job > 1
        if (wanted == "cuda" or several) and found != "cuda":
            asked = f"gpus_per_job={self._options.gpus_per_job}" if several else "device=cuda"
            raise UnsupportedError(
                f"{asked}, but no CUDA GPU can be used here",
                hint="See `llmquant doctor`; a CPU build of torch cannot use a GPU either.",
            )
        if wanted == "mps" and found != "mps":
            raise UnsupportedError("device=mps, but this is not a Mac with Apple silicon")
        return found if wanted == "auto" else wanted

    @functools.cached_property
    def hardware(self) -> str:
        """Name the hardware that the results of hardware evaluators depend on."""
        if self.device == "cuda":
            name = self._gpus[0].name
            return name if self._options.gpus_per_job == 1 else f"{self._options.gpus_per_job} x {name}"
        return cpu_label(self.device, self.threads)

    @property
    def slots(self) -> int:
        """The number of simultaneous jobs."""
        most = self._options.max_parallel
        if self.device != "cuda":
            return most or 1
        room = len(self._gpus) // self._options.gpus_per_job
        return min(room, most or room)

    @property
    def notices(self) -> tuple[str, ...]:
        """List other processes on the GPUs to be used, and the GPUs that are not used."""
        if self.device != "cuda":
            return ()
        left = [gpu for gpu in nvidia_gpus() if gpu not in self._gpus]
        busy = (
            f"GPU {gpu.index} ({gpu.name}) is busy: {gpu.used_mib} of {gpu.total_mib} MiB are in use by other "
            f"processes ({', '.join(gpu.processes) or 'not visible from here'}); timings and memory may be wrong"
            for gpu in self._gpus
            if gpu.processes or gpu.used_mib > 1024
        )
        unused = (
            f"GPU {gpu.index} ({gpu.name}) is not used: all GPUs of a study must be of one type, here "
            f"{self._gpus[0].name}; choose others with CUDA_VISIBLE_DEVICES"
            for gpu in left
            if gpu.name != self._gpus[0].name
        )
        return (*busy, *unused)

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> None:
        """Refuse nothing: planning has refused what cannot run here, and running is free."""

    def submit(self, job: Path, store: Path) -> str:
        """Start a worker process for the job; return its pid and the path of its record.

        Journal and log are in a private folder: a log may hold a token until `collect` has blanked it.
        """
        gpus = self._free_gpus() if self.device == "cuda" else ()
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "OMP_NUM_THREADS": str(self.threads)}
        scratch = make_folder()
        record = record_path(scratch, job.parent.parent.name, int(job.stem))
        record.parent.mkdir(parents=True)
        shutil.copyfile(job, record)
        # Registered plugins may be in the folder of the script or notebook, which only this process searches.
        process = start(scratch, record, store, search=[path for path in sys.path if path], environment=environment)
        job_id = f"{process.pid}:{record}"
        self._workers[job_id] = _Worker(process, gpus, store)
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Copy the journal and the log to the store, where the runs are already, and return the job's state."""
        worker = self._workers.get(job_id)
        if worker is None:
            state: JobState = "running" if is_held(_folder(job_id)) else "lost"
        else:
            code = worker.process.poll()
            state = "running" if code is None else "ended" if code == 0 else "lost"
        _bring_home(job_id, store, ended=state != "running")
        if worker is not None and state != "running":
            stop(worker.process)
        return state

    def why_lost(self, job_id: str) -> str:
        """Describe how a lost worker ended."""
        worker = self._workers.get(job_id)
        code = worker.process.poll() if worker else None
        return "the worker process no longer exists" if code is None else how_it_ended(code)

    def dollars(self, job_id: str) -> None:
        """Return ``None``: running is free."""

    def cancel(self, job_id: str) -> None:
        """Terminate, then kill, the worker and its children; copy the results of a worker of this process."""
        worker = self._workers.get(job_id)
        if worker is None:
            stop_other(int(job_id.partition(":")[0]), _folder(job_id))
            return
        stop(worker.process)
        try:
            _bring_home(job_id, worker.store, ended=True)
        except StoreError as error:  # a full disk must not prevent ending the other workers
            _log.warning("%s", error)

    def leave(self, job_id: str) -> None:
        """Raise an `UnsupportedError`: the workers end with this process."""
        raise UnsupportedError("jobs of the local executor end with the program that started them")

    def recall(self, study: str, store: Path) -> None:
        """Raise a `StoreError`: all results are in the store."""
        raise StoreError(
            f"study {study} is missing from {store}, and the local executor keeps no studies",
            hint="Give the study's store with --store, or its executor with --on.",
        )

    def close(self) -> None:
        """End the running jobs, and delete the folders of killed programs."""
        for job_id in list(self._workers):
            self.cancel(job_id)
        delete_abandoned()

    @functools.cached_property
    def _gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs of the first GPU's type: timings on different types are not comparable."""
        every, wanted = nvidia_gpus(), self._options.gpus_per_job
        gpus = tuple(gpu for gpu in every if gpu.name == every[0].name)
        if len(gpus) < wanted:
            raise UnsupportedError(f"gpus_per_job={wanted}, but only {len(gpus)} GPUs of one type can be used here")
        return gpus

    def _free_gpus(self) -> tuple[str, ...]:
        taken = {gpu for worker in self._workers.values() if worker.process.poll() is None for gpu in worker.gpus}
        free = [gpu.uuid for gpu in self._gpus if gpu.uuid not in taken]
        if len(free) < self._options.gpus_per_job:
            raise UnsupportedError(f"all GPUs are in use by {counted(self.slots, 'job')} of this executor")
        return tuple(free[: self._options.gpus_per_job])


def from_options(options: LocalOptions) -> LocalExecutor:
    """Construct the executor from its options."""
    return LocalExecutor(**vars(options))


def _bring_home(job_id: str, store: Path, *, ended: bool) -> None:
    """Copy the new part of a job's journal and log; delete the job's folder when the job has ended."""
    record, scratch = _record(job_id), _folder(job_id)
    bring_home(scratch, store, record.parents[1].name, int(record.stem), ended=ended)
    if ended:
        shutil.rmtree(scratch, ignore_errors=True)


def _record(job_id: str) -> Path:
    return Path(job_id.partition(":")[2])


def _folder(job_id: str) -> Path:
    return _record(job_id).parents[3]
