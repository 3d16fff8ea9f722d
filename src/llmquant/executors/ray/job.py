"""The part of a Ray job that runs on the cluster: an actor that starts the worker and reports its progress."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from llmquant.executors.shipping import bring_log, record_path, unpack
from llmquant.executors.worker_process import start, stop
from llmquant.machine.hardware import cpu_label, nvidia_gpus
from llmquant.storage.journal import journal_path, log_path
from llmquant.study.job import Device

NAMESPACE = "llmquant"
# Ray keeps larger arguments in its object store, where they are lost when the calling program ends.
INLINE_BYTES = 64 * 2**10
PIECE_BYTES = 4 * 2**20
_UNASKED_S = 5.0


@dataclass(frozen=True)
class Report:
    """The state of a job.

    Attributes:
        code: the worker's exit code; ``None`` while the worker runs.
        node: Ray's id of the machine.
        journal: the journal's bytes from the requested offset.
        log: the log's bytes from the requested offset.
        runs: size in bytes of each finished run's tar file, by the run's name in the worker's store.
    """

    code: int | None
    node: str
    journal: bytes
    log: bytes
    runs: dict[str, int]


class RayJob:
    """Runs one job in a child process, so that a crash or a limit ends only the child.

    If no request arrives for some seconds after the job's end, the actor puts the results on a `Shelf` and frees its
    resources for the next job.

    Args:
        job_id: study, number and a unique name.
        search: folders that may contain registered plugins, if the folders exist here.
        packed: a packed job as a tar file, in pieces; empty if the packed job is on a shelf.
    """

    def __init__(self, job_id: str, device: Device, threads: int, search: list[str], *packed: bytes) -> None:
        study, number = place_of(job_id)
        self._job_id = job_id
        self._folder = Path(tempfile.mkdtemp(prefix="llmquant-ray-"))
        extract(b"".join(packed) or _take_down(packed_name(job_id)), self._folder / "packed")
        record, self._store = unpack(self._folder / "packed", self._folder / "work")
        self._record = record_path(self._store, study, number)
        self._log = self._folder / "job.log"
        self._tars: dict[str, bytes] = {}
        environment = {"OMP_NUM_THREADS": str(threads)}
        if device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        # Ray puts the `working_dir` of its runtime environment into the working folder.
        search = [str(Path.cwd()), *(path for path in search if Path(path).is_dir())]
        self._child = start(self._folder, record, self._store, search=search, environment=environment)
        self._asked = time.monotonic()
        self._one_at_a_time = threading.Lock()
        threading.Thread(target=self._make_room, daemon=True, name="make-room").start()

    def report(self, journal_from: int, log_from: int) -> Report:
        """Return the job's state, and the new bytes from the two offsets."""
        import ray

        with self._one_at_a_time:
            self._asked = time.monotonic()
            code = self._child.poll()
            journal = _read(journal_path(self._record), journal_from)
            bring_log(log_path(self._record), self._log, ended=code is not None)
            log = _read(self._log, log_from)
            for run in (self._store / "runs").glob("[!.]*"):
                if run.name not in self._tars:
                    self._tars[run.name] = tar(run)
            sizes = {name: len(data) for name, data in self._tars.items()}
            return Report(code, ray.get_runtime_context().get_node_id(), journal, log, sizes)

    def piece(self, run: str, offset: int) -> bytes:
        """Return the next bytes of a finished run's tar file."""
        self._asked = time.monotonic()
        return self._tars[run][offset : offset + PIECE_BYTES]

    def end(self) -> None:
        """End the worker and its children."""
        if self._child.poll() is None:
            stop(self._child)

    def tidy(self) -> None:
        """Delete the job's files on this machine; must be the last call."""
        self.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _make_room(self) -> None:
        """Wait until the job has ended and requests have stopped; then move results to a shelf and end this process."""
        import ray

        code = self._child.wait()
        ended = time.monotonic()
        while time.monotonic() - max(ended, self._asked) < _UNASKED_S:
            time.sleep(1)
        report = self.report(0, 0)
        with self._one_at_a_time:
            things = {"code": str(code).encode(), "node": report.node.encode(), **self._tars}
            things |= {"journal": _whole(journal_path(self._record)), "log": _whole(self._log)}
            put_up(done_name(self._job_id), things)
            shutil.rmtree(self._folder, ignore_errors=True)
            ray.kill(ray.get_runtime_context().current_actor)
            time.sleep(60)  # until this process has ended: a report from here would be outdated


class Shelf:
    """Holds a job's results for later requests without using a CPU, with the methods of `RayJob`."""

    def __init__(self) -> None:
        self._things: dict[str, bytes] = {}

    def add(self, name: str, piece: bytes) -> None:
        """Append a piece."""
        self._things[name] = self._things.get(name, b"") + piece

    def piece(self, name: str, offset: int) -> bytes:
        """Return the next bytes from an offset."""
        return self._things[name][offset : offset + PIECE_BYTES]

    def report(self, journal_from: int, log_from: int) -> Report:
        """Return the job's final state, and the new bytes from the two offsets."""
        runs = {
            name: len(data) for name, data in self._things.items() if name not in ("code", "node", "journal", "log")
        }
        code, node = int(self._things["code"]), self._things["node"].decode()
        return Report(code, node, self.piece("journal", journal_from), self.piece("log", log_from), runs)

    def end(self) -> None:
        """Do nothing: there is no worker."""

    def tidy(self) -> None:
        """Do nothing: there are no files."""


def put_up(name: str, things: dict[str, bytes]) -> None:
    """Store data on a shelf that stays when this process ends."""
    import ray

    # No CPU is requested, because this job may use all CPUs.
    shelf = ray.remote(Shelf).options(name=name, namespace=NAMESPACE, lifetime="detached", num_cpus=0).remote()
    for key, data in things.items():
        for start_at in range(0, max(1, len(data)), PIECE_BYTES):
            ray.get(shelf.add.remote(key, data[start_at : start_at + PIECE_BYTES]))


def place_of(job_id: str) -> tuple[str, int]:
    """Return the study and the number of a job."""
    study, number, _ = job_id.split("/")
    return study, int(number)


def packed_name(job_id: str) -> str:
    """Return the name of the shelf with a packed job."""
    return f"{job_id}/packed"


def done_name(job_id: str) -> str:
    """Return the name of the shelf with a job's results."""
    return f"{job_id}/done"


def hardware(device: Device, threads: int) -> str:
    """Name a cluster machine's hardware, on which the results of hardware evaluators depend."""
    if device == "cuda":
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray hides the GPUs from tasks that request none
        return ", ".join(sorted({gpu.name for gpu in nvidia_gpus()}))
    return cpu_label(device, threads)


def tar(folder: Path) -> bytes:
    """Return a folder's content as a tar file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    return buffer.getvalue()


def extract(data: bytes, folder: Path) -> None:
    """Write out what `tar` returned."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, filter="data")


def _take_down(name: str) -> bytes:
    """Return a shelf's data, and end the shelf."""
    import ray

    shelf, data = ray.get_actor(name, namespace=NAMESPACE), b""
    while piece := ray.get(shelf.piece.remote("packed", len(data))):
        data += piece
    ray.kill(shelf)
    return data


def _read(path: Path, offset: int) -> bytes:
    if not path.exists():
        return b""
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read(PIECE_BYTES)


def _whole(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""
