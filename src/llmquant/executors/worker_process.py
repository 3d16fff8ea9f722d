"""A worker process on the machine it runs on: its folder, its start, its end, and how that is told."""

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

# What the supervisor takes at most to end a worker and its children, and some more.
_ENDED_AFTER_S = 15.0
_FOLDERS = "llmquant-worker-"
# Between a folder and its lock lies the start of a process.
_STARTED_AFTER_S = 600.0


def make_folder() -> Path:
    """Make a folder for a job on this machine, private to the user, in place of abandoned ones."""
    delete_abandoned()
    return Path(tempfile.mkdtemp(prefix=_FOLDERS))


def delete_abandoned() -> None:
    """Delete the folders of jobs whose programs and workers were killed: their logs may hold tokens."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDERS}*"):
        with contextlib.suppress(OSError):  # another program deletes it too
            if folder.lstat().st_uid == os.getuid() and not is_held(folder):
                shutil.rmtree(folder, ignore_errors=True)


def is_held(folder: Path) -> bool:
    """Say whether the worker of a folder, or what stands beside it, starts or still runs."""
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
    """Start the pipeline on a job; nothing of it is left when this process ends.

    Args:
        folder: from `make_folder`, or another that only this job uses; the worker's temporary files lie in it.
        record: the job's; its journal and log are written beside it.
        search: folders that Python finds modules in, beside those of the installed packages.
        environment: what differs from this process's.
    """
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    quiet |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(search)}
    quiet["TMPDIR"] = str(folder / "tmp")
    (folder / "tmp").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "llmquant.running.worker", str(record), str(store), "--attached"]
    if os.name == "posix":
        # -P: the supervisor must not take a module of ours, such as `ray`, for an installed one.
        command = [sys.executable, "-P", supervisor.__file__, str(folder), *command]
    with log_path(record).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **quiet, **environment},
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a worker that this process started, with its children: asked first, then killed."""
    process.terminate()
    try:
        process.wait(timeout=_ENDED_AFTER_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdin is not None:
        process.stdin.close()


def stop_other(pid: int, folder: Path) -> None:
    """End a worker that another process started, if it runs."""
    for end in (psutil.Process.terminate, psutil.Process.kill):
        if not is_held(folder):
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            end(psutil.Process(pid))
        until = time.monotonic() + _ENDED_AFTER_S
        while is_held(folder) and time.monotonic() < until:
            time.sleep(0.05)


def how_it_ended(code: int) -> str:
    """Say, in a clause, what an exit code means."""
    if code == -9:
        return "the worker was killed (signal 9); on Linux that is often the system running out of memory"
    return f"the worker crashed (signal {-code})" if code < 0 else f"the worker ended with exit code {code}"
