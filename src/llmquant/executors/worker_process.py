"""A worker process on its own machine: its folder, its start, its end and the description of its end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import filelock
import psutil

from llmquant.executors import supervisor
from llmquant.storage.journal import log_path

# Longer than the supervisor needs to end a worker and its children.
_ENDED_AFTER_S = 15.0
_FOLDERS = "llmquant-worker-"
# A process starts between the creation of a folder and its lock.
_STARTED_AFTER_S = 600.0


def make_folder() -> Path:
    """Make a folder for a job on this machine, private to the user, and delete abandoned folders."""
    delete_abandoned()
    return Path(tempfile.mkdtemp(prefix=_FOLDERS))


def delete_abandoned() -> None:
    """Delete the folders of jobs whose programs and workers were killed: their logs may hold tokens."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with contextlib.suppress(OSError):  # another program deletes the folder too
            if folder.lstat().st_uid == os.getuid() and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def is_held(folder: Path) -> bool:
    """Return whether a folder's worker or supervisor is starting or running."""
    if not (folder / supervisor.LOCK).exists():
        return folder.is_dir() and time.time() - folder.stat().st_mtime < _STARTED_AFTER_S
    lock = filelock.FileLock(folder / supervisor.LOCK)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        return True
    lock.release()
    return False


def start(
    folder: Path, record: Path, store: Path, *, search: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start a worker process for a job; all its processes end when this process ends.

    Args:
        folder: a folder from `make_folder`, or another folder of this job alone, for the worker's temporary files.
        record: path of the job's record; journal and log are written next to it.
        search: folders with Python modules, in addition to the installed packages.
        environment: environment variables that differ from those of this process.
    """
    short = dict.fromkeys(
        ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT"), "5"
    )  # seconds; the client tries six times
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    quiet |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(search)}
    quiet["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir(exist_ok=True)
    worker = [sys.executable, "-m", "llmquant.running.worker", str(record), str(store), "--attached"]
    # -P: the supervisor must import the installed `ray`, not `llmquant.executors.ray`.
    command = [sys.executable, "-P", supervisor.__file__, str(folder), *worker]
    with log_path(record).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**short, **os.environ, **quiet, **environment},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Terminate, then kill, a worker started by this process, with its children."""
    process.terminate()
    try:
        process.wait(timeout=_ENDED_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def stop_other(pid: int, folder: Path) -> None:
    """End a worker started by another process, if the worker is running."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        if not is_held(folder):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            end(psutil.Process(pid))
        until = time.monotonic() + _ENDED_AFTER_S
        while is_held(folder) and time.monotonic() < until:
            time.sleep(0.05)


def how_it_ended(code: int) -> str:
    """Describe an exit code in a clause."""
    if code == -9:
        return "the worker was killed (signal 9); on Linux often because the system ran out of memory"
    return f"the worker crashed (signal {-code})" if code < 0 else f"the worker ended with exit code {code}"
