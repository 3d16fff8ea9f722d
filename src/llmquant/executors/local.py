"""Run jobs on this machine: a fresh process a job, one at a time on the CPU, one a GPU when there are several."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

import psutil

from llmquant.errors import UnsupportedError
from llmquant.executors.local_options import LocalOptions
from llmquant.hardware import Gpu, cpu_name, default_device, nvidia_gpus
from llmquant.protocols import Device, JobState

_KILL_AFTER_S = 5.0


class LocalExecutor:
    """Processes on this machine. They end when this process does, however it ends.

    Args:
        device: ``auto`` takes the GPUs when there are some. ``CUDA_VISIBLE_DEVICES`` is respected.
        threads: CPU threads a worker; ``None`` leaves torch's default, the physical cores.
    """

    def __init__(self, *, device: Literal["auto", "cpu", "cuda", "mps"] = "auto", threads: int | None = None) -> None:
        self._options = LocalOptions(device, threads)
        self._workers: dict[str, tuple[subprocess.Popen[bytes], str | None]] = {}

    @property
    def threads(self) -> int | None:
        """CPU threads a worker."""
        return self._options.threads

    @functools.cached_property
    def device(self) -> Device:
        """What the workers compute on.

        Raises:
            UnsupportedError: if a GPU is asked for and none can be used.
        """
        found = default_device()
        wanted = self._options.device
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
            return ", ".join(sorted({gpu.name for gpu in self._gpus}))
        threads = self.threads or psutil.cpu_count(logical=False) or 1
        return f"{self.device} {cpu_name()}, {threads} threads"

    @property
    def slots(self) -> int:
        """How many jobs run at a time."""
        return len(self._gpus) if self.device == "cuda" else 1

    @property
    def notices(self) -> tuple[str, ...]:
        """Say what else is running on the GPUs that will be used."""
        if self.device != "cuda":
            return ()
        return tuple(
            f"GPU {gpu.index} ({gpu.name}) is busy: {gpu.used_mib} of {gpu.total_mib} MiB are in use by other "
            f"processes ({', '.join(gpu.processes) or 'not visible from here'}); timings and memory may suffer"
            for gpu in self._gpus
            if gpu.processes or gpu.used_mib > 1024
        )

    def submit(self, job: Path, store: Path) -> str:
        """Start a worker process for the job; return its pid and start time."""
        environment = dict(os.environ, PYTHONUNBUFFERED="1", TOKENIZERS_PARALLELISM="false", TQDM_DISABLE="1")
        environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        # Plugins that were registered may lie beside the script or notebook, which only this process searches.
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        gpu = None
        if self.device == "cuda":
            taken = {used for process, used in self._workers.values() if process.poll() is None}
            gpu = next(g.index for g in self._gpus if g.index not in taken)
            environment["CUDA_VISIBLE_DEVICES"] = gpu
        elif self.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if self.threads is not None:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        command = [sys.executable, "-m", "llmquant.pipeline", str(job), str(store), "--attached"]
        with job.with_suffix(".log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        job_id = f"{process.pid}:{psutil.Process(process.pid).create_time():.2f}"
        self._workers[job_id] = (process, gpu)
        return job_id

    def collect(self, job_id: str, store: Path) -> JobState:
        """Say how the job stands; its runs are in the store already."""
        worker = self._workers.get(job_id)
        if worker is None:
            return "running" if _alive(job_id) else "lost"
        code = worker[0].poll()
        if code is None:
            return "running"
        _close_input(worker[0])
        return "ended" if code == 0 else "lost"

    def why_lost(self, job_id: str) -> str:
        """Say how a lost worker ended."""
        worker = self._workers.get(job_id)
        code = worker[0].poll() if worker else None
        if code == -9:
            return "the worker was killed (signal 9); on Linux that is often the system running out of memory"
        if code is not None and code < 0:
            return f"the worker crashed (signal {-code})"
        return f"the worker ended with exit code {code}" if code is not None else "the worker is gone"

    def cancel(self, job_id: str) -> None:
        """End the worker and its children: asked first, then killed."""
        pid, _, _ = job_id.partition(":")
        if not _alive(job_id):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(int(pid))
            family = [*parent.children(recursive=True), parent]
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.terminate()
            _, left = psutil.wait_procs(family, timeout=_KILL_AFTER_S)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(left, timeout=_KILL_AFTER_S)
        if job_id in self._workers:
            self._workers[job_id][0].wait()
            _close_input(self._workers[job_id][0])

    def close(self) -> None:
        """End what still runs."""
        for job_id in list(self._workers):
            self.cancel(job_id)

    @functools.cached_property
    def _gpus(self) -> tuple[Gpu, ...]:
        return nvidia_gpus()


def from_options(options: LocalOptions) -> LocalExecutor:
    """Construct the executor from its options."""
    return LocalExecutor(device=options.device, threads=options.threads)


def _close_input(process: subprocess.Popen[bytes]) -> None:
    """Close our end of the pipe that kept the worker alive."""
    if process.stdin is not None:
        process.stdin.close()


def _alive(job_id: str) -> bool:
    pid, _, started = job_id.partition(":")
    try:
        process = psutil.Process(int(pid))
        return abs(process.create_time() - float(started)) < 1 and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
