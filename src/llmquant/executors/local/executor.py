"""Run jobs on this machine: a fresh process a job, as many at a time as the GPUs are enough for."""

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
from llmquant.study.job import Device, Job

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Worker:
    """A process that this one started, the GPUs it may use and the store its runs go to."""

    process: subprocess.Popen[bytes]
    gpus: tuple[str, ...]
    store: Path


class LocalExecutor:
    """Processes on this machine. They end when this process does, however it ends.

    Args:
        device: ``auto`` takes the GPUs when there are some. ``CUDA_VISIBLE_DEVICES`` is respected.
        threads: CPU threads per worker; ``None`` is ``OMP_NUM_THREADS``, else the physical cores this process may use.
        gpus_per_job: more than 1 for models that one GPU cannot hold.
        max_parallel: most jobs at a time; ``None`` is as many as the GPUs are enough for, and 1 on the CPU.
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
        """What the workers compute on.

        Raises:
            UnsupportedError: if a GPU is asked for and none can be used.
        """
        wanted = self._options.device
        if wanted == "cpu":
            return "cpu"
        found = default_device()
        if wanted == "cuda" and found != "cuda":
            raise UnsupportedError(
                "device=cuda, but no CUDA GPU can be used here",
                hint="See `llmquant doctor`; a CPU build of torch cannot use a GPU either.",
            )
        if wanted == "mps" and found != "mps":
            raise UnsupportedError("device=mps, but this is not a Mac with Apple silicon")
        return found if wanted == "auto" else wanted

    @functools.cached_property
    def hardware(self) -> str:
        """Name what the numbers of hardware evaluators depend on."""
        if self.device == "cuda":
            name = self._gpus[0].name
            return name if self._options.gpus_per_job == 1 else f"{self._options.gpus_per_job} x {name}"
        return cpu_label(self.device, self.threads)

    @property
    def slots(self) -> int:
        """How many jobs run at a time."""
        most = self._options.max_parallel
        if self.device != "cuda":
            return most or 1
        room = len(self._gpus) // self._options.gpus_per_job
        return min(room, most or room)

    @property
    def notices(self) -> tuple[str, ...]:
        """Say what else is running on the GPUs that will be used, and which will not be."""
        if self.device != "cuda":
            return ()
        left = [gpu for gpu in nvidia_gpus() if gpu not in self._gpus]
        busy = (
            f"GPU {gpu.index} ({gpu.name}) is busy: {gpu.used_mib} of {gpu.total_mib} MiB are in use by other "
            f"processes ({', '.join(gpu.processes) or 'not visible from here'}); timings and memory may suffer"
            for gpu in self._gpus
            if gpu.processes or gpu.used_mib > 1024
        )
        unused = (
            f"GPU {gpu.index} ({gpu.name}) is not used: the GPUs of a study are of one kind, here "
            f"{self._gpus[0].name}; choose others with CUDA_VISIBLE_DEVICES"
            for gpu in left
            if gpu.name != self._gpus[0].name
        )
        return (*busy, *unused)

    def check(self, jobs: Sequence[Job], *, running: Sequence[str] = ()) -> None:
        """Refuse nothing: what could not run here was refused with the plan, and nothing is paid for."""

    def submit(self, job: Path, store: Path) -> str:
        """Start a worker process for the job; return its pid and where it keeps its journal and log.

        These are in a folder of their own: a log may hold a token until `collect` has blanked it.
        """
        gpus = self._free_gpus() if self.device == "cuda" else ()
        environment = {"CUDA_VISIBLE_DEVICES": ",".join(gpus), "OMP_NUM_THREADS": str(self.threads)}
        scratch = make_folder()
        record = record_path(scratch, job.parent.parent.name, int(job.stem))
        record.parent.mkdir(parents=True)
        shutil.copyfile(job, record)
        # Plugins that were registered may lie beside the script or notebook, which only this process searches.
        process = start(scratch, record, store, search=[path for path in sys.path if path], environment=environment)
        job_id = f"{process.pid}:{record}"
        self._workers[job_id] = _Worker(process, gpus, store)
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Bring the journal and the log to the store, where the runs are already, and say how the job stands."""
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
        """Say how a lost worker ended."""
        worker = self._workers.get(job_id)
        code = worker.process.poll() if worker else None
        return "the worker is gone" if code is None else how_it_ended(code)

    def dollars(self, job_id: str) -> None:
        """Nothing is paid for."""

    def cancel(self, job_id: str) -> None:
        """End the worker and its children, asked first, then killed; bring home what a worker of this process did."""
        worker = self._workers.get(job_id)
        if worker is None:
            stop_other(int(job_id.partition(":")[0]), _folder(job_id))
            return
        stop(worker.process)
        try:
            _bring_home(job_id, worker.store, ended=True)
        except StoreError as error:  # a full disk must not keep other workers from being ended
            _log.warning("%s", error)

    def leave(self, job_id: str) -> None:
        """Refuse: workers end with this process.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError("jobs of the local executor end with the program that started them")

    def recall(self, study: str, store: Path) -> None:
        """Refuse: what there is, is in the store.

        Raises:
            StoreError: always.
        """
        raise StoreError(
            f"{store} knows no study {study}, and the local executor keeps none",
            hint="Name the store it was run in, or the executor with --on.",
        )

    def close(self) -> None:
        """End what still runs, and delete what killed programs left."""
        for job_id in list(self._workers):
            self.cancel(job_id)
        delete_abandoned()

    @functools.cached_property
    def _gpus(self) -> tuple[Gpu, ...]:
        """Return the GPUs that are of the first one's kind: timings on others are not comparable."""
        every, wanted = nvidia_gpus(), self._options.gpus_per_job
        gpus = tuple(gpu for gpu in every if gpu.name == every[0].name)
        if len(gpus) < wanted:
            raise UnsupportedError(f"gpus_per_job={wanted}, but {len(gpus)} GPUs of one kind can be used here")
        return gpus

    def _free_gpus(self) -> tuple[str, ...]:
        taken = {gpu for worker in self._workers.values() if worker.process.poll() is None for gpu in worker.gpus}
        free = [gpu.uuid for gpu in self._gpus if gpu.uuid not in taken]
        if len(free) < self._options.gpus_per_job:
            raise UnsupportedError(f"all GPUs are taken by {self.slots} jobs of this executor")
        return tuple(free[: self._options.gpus_per_job])


def from_options(options: LocalOptions) -> LocalExecutor:
    """Construct the executor from its options."""
    return LocalExecutor(
        device=options.device,
        threads=options.threads,
        gpus_per_job=options.gpus_per_job,
        max_parallel=options.max_parallel,
    )


def _bring_home(job_id: str, store: Path, *, ended: bool) -> None:
    """Copy what is new of a job's journal and log; delete its folder when it has ended."""
    record, scratch = _record(job_id), _folder(job_id)
    bring_home(scratch, store, record.parents[1].name, int(record.stem), ended=ended)
    if ended:
        shutil.rmtree(scratch, ignore_errors=True)


def _record(job_id: str) -> Path:
    return Path(job_id.partition(":")[2])


def _folder(job_id: str) -> Path:
    return _record(job_id).parents[3]
