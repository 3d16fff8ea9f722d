"""A worker process on the machine it runs on: its start, its end, and how that is told."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from llmquant.job import log_path

_KILL_AFTER_S = 5.0


def start(
    record: Path, store: Path, *, search: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start the pipeline on a job; it ends when its standard input is closed, as it is when this process ends.

    Args:
        record: the job's; its journal and log are written beside it.
        search: folders that Python finds modules in, beside those of the installed packages.
        environment: what differs from this process's.
    """
    quiet = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    quiet |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": os.pathsep.join(search)}
    command = [sys.executable, "-m", "llmquant.pipeline", str(record), str(store), "--attached"]
    with log_path(record).open("ab") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env={**os.environ, **quiet, **environment},
            start_new_session=True,
        )


def end_family(pid: int) -> None:
    """End a process and its children: asked first, then killed."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        left = [*parent.children(recursive=True), parent]
        for end in (psutil.Process.terminate, psutil.Process.kill):
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end(process)
            until = time.monotonic() + _KILL_AFTER_S
            while (left := [process for process in left if lives(process)]) and time.monotonic() < until:
                time.sleep(0.02)


def lives(process: psutil.Process) -> bool:
    """Say whether a process runs; one that has ended and that its parent has not asked about does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def how_it_ended(code: int) -> str:
    """Say, in a clause, what an exit code means."""
    if code == -9:
        return "the worker was killed (signal 9); on Linux that is often the system running out of memory"
    return f"the worker crashed (signal {-code})" if code < 0 else f"the worker ended with exit code {code}"
