"""A job's record and journal: files through which scheduler and worker communicate."""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import math
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmquant.errors import RequestError
from llmquant.storage.blanking import blank_secrets
from llmquant.study.experiment import Experiment, RunId
from llmquant.study.job import Job
from llmquant.study.reading import Count, NumberFromZero, Positive, load, loads, nested, read_as, stored
from llmquant.study.run import SCHEMA_VERSION, check_schema

_log = logging.getLogger(__name__)
_PR_SET_PDEATHSIG = 1
LOG_BYTES = 2**20

JournalEvent = Literal["fetching", "loading", "loaded", "waiting", "started", "progress", "finished", "end"]


@dataclass(frozen=True)
class Entry:
    """One line of a journal.

    Attributes:
        event: what happened.
        at: time in seconds since the epoch.
        run_id: run id of the experiment; empty for events of the whole job, whose progress is the quantization's.
        done: progress, out of `total`; 0 for other events.
        total: what `done` counts up to; 0 for other events.
        who: who holds the machine that the experiment waits for; empty for other events.
    """

    event: JournalEvent
    at: float
    run_id: str = ""
    done: Count = 0
    total: Count = 0
    who: str = ""


@dataclass(frozen=True)
class JobRecord:
    """A job's record in its study's folder.

    Attributes:
        job_id: the executor's id of the job; ``None`` until the job is submitted.
        ended: whether the job has ended and its results were copied.
        dollars: estimated cost in dollars; ``None`` if running is free.
    """

    job: Job
    job_id: str | None = None
    ended: bool = False
    dollars: NumberFromZero | None = None

    @classmethod
    def read(cls, path: Path) -> JobRecord:
        """Read a job's record.

        Raises:
            DamagedError: if the file is not a job's record.
            StoreError: if a newer version wrote it.
        """
        return load(path, cls.from_json, hint=f"Delete {path.name}; what its job did is kept.")

    @classmethod
    def from_json(cls, data: Any) -> JobRecord:  # Any: a JSON value
        """Read what `to_json` wrote.

        Raises:
            DamagedError: if the data is something else.
            StoreError: if a newer version wrote it.
        """
        check_schema(data, "a job")
        with stored("a job"):
            return read_as(cls, nested(Job, "job", data), beside={"schema_version": Positive})

    def asked(self) -> list[tuple[RunId, int]]:
        """List the job's runs with their attempts.

        Raises:
            DamagedError: if an experiment cannot be read.
        """
        return [(Experiment.from_json(data).run_id, attempt) for data, attempt in self.job.experiments]

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the content of the record's file."""
        own = {"job_id": self.job_id, "ended": self.ended, "dollars": self.dollars}
        return {"schema_version": SCHEMA_VERSION, **own, **asdict(self.job)}


def journal_path(record: Path) -> Path:
    """Return the path of the journal of the job at `record`."""
    return record.with_suffix(".journal")


def log_path(record: Path) -> Path:
    """Return the path of the log of the job at `record`."""
    return record.with_suffix(".log")


class Journal:
    """The journal, written by the worker with one line per event; readers ignore a line cut by a crash."""

    def __init__(self, record: Path) -> None:
        self._path = journal_path(record)
        self._progress_at = -math.inf

    def write(self, event: JournalEvent, run_id: str = "", *, done: int = 0, total: int = 0, who: str = "") -> None:
        """Append an event; progress at most five times per second."""
        if event == "progress":
            now = time.monotonic()
            if now - self._progress_at < 0.2 and done < total:
                return
            self._progress_at = now
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(Entry(event, time.time(), run_id, done, total, who))) + "\n")


def read_journal(record: Path, offset: int) -> tuple[list[Entry], int]:
    """Read the complete lines from `offset`; a damaged line is left out with a warning.

    Returns:
        The entries, and the offset to continue from.
    """
    try:
        with journal_path(record).open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [entry for line in whole.splitlines() if (entry := _entry(line, record))], offset + len(whole)


def finished_ids(record: Path) -> set[str]:
    """Return the run ids of a job's finished experiments."""
    return {entry.run_id for entry in read_journal(record, 0)[0] if entry.event == "finished"}


def read_log(record: Path, start: int = 0) -> str:
    """Read a job's log from an offset: complete lines; the first and the last ones if there are over `LOG_BYTES`."""
    with contextlib.suppress(FileNotFoundError), log_path(record).open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(start)
        if size - start <= LOG_BYTES:
            return stream.read().decode(errors="replace")
        # Half a line might end in half a token, which could not be recognized.
        head = stream.read(LOG_BYTES // 2).rpartition(b"\n")[0]
        stream.seek(size - LOG_BYTES // 2)
        tail = stream.read().partition(b"\n")[2]
        left_out = f"\n[{size - start - len(head) - len(tail):,} bytes of the log are left out here]\n"
        return head.decode(errors="replace") + left_out + tail.decode(errors="replace")
    return ""


def log_tail(text: str, lines: int = 30) -> str:
    """Return the last lines of a log, without progress bars and with secrets blanked."""
    shown = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return blank_secrets("\n".join([line for line in shown if line][-lines:]))


def end_with_parent() -> None:
    """End this process when its parent ends, which closes this process's standard input.

    On Linux the kernel does this, even while third-party code holds Python's lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)

    def watch() -> None:
        # Not `sys.stdin`: its lock, held by this thread while Python shuts down, would abort the process.
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _entry(line: bytes, record: Path) -> Entry | None:
    try:
        return read_as(Entry, loads(line.decode()), "the entry")
    except (ValueError, RequestError) as error:  # a disk that lost power leaves zeros
        _log.warning("a line of %s is left out: %s", journal_path(record), error)
        return None
