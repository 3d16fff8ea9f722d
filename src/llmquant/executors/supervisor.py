"""A process between a program and its worker; it ends all processes of the worker when program or worker ends.

Run as a file, ``python -P supervisor.py FOLDER COMMAND...``. The program that starts it keeps its standard input open.
When standard input closes, which happens however the program ends, or on SIGTERM, the supervisor ends the worker and
all processes that the worker started, in any session. The supervisor runs no third-party code, so a worker that holds
Python's lock cannot block it. POSIX only.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time

import filelock
import psutil

LOCK = "lock"
_KILL_AFTER_S = 5.0
_PR_SET_CHILD_SUBREAPER = 36


def main(folder: str, *command: str) -> None:
    """Run the command, and exit with the command's exit code or signal.

    Args:
        folder: the job's folder; this process holds its lock, and deletes the folder if the program has ended.
    """
    if sys.platform == "linux":  # a process that loses its parent becomes a child of this process
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    lock = filelock.FileLock(os.path.join(folder, LOCK))  # noqa: PTH118 - no more imports than needed
    lock.acquire(timeout=0)
    asked: list[int] = []
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGTERM, lambda number, frame: asked.append(number))
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    alone = False
    while worker.poll() is None and not asked and not alone:
        ready, _, _ = select.select([0, woken], [], [])
        if woken in ready:
            os.read(woken, 1024)
        alone = 0 in ready and not os.read(0, 1024)
    if (left := _living()) and worker.poll() is not None:
        names = ", ".join(f"{process.pid} ({_name(process)})" for process in left)
        print(f"ended processes that the worker left running: {names}", file=sys.stderr)  # noqa: T201 - the worker's log
    _end()
    if alone:
        shutil.rmtree(folder, ignore_errors=True)
    _end_like(worker.wait())


def _living() -> list[psutil.Process]:
    """List the running descendants of this process, without zombies."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.name()
    return "ended"


def _end() -> None:
    """Terminate every descendant process, and kill the remaining ones after `_KILL_AFTER_S`."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        sent = set[int]()
        until = time.monotonic() + _KILL_AFTER_S
        while (left := _living()) and time.monotonic() < until:
            for process in left:
                if process.pid not in sent:
                    sent.add(process.pid)
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.send_signal(number)
            time.sleep(0.02)


def _end_like(code: int) -> None:
    """End with an exit code, or by the signal that a negative one stands for, without a core file."""
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL cannot be set
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
