"""A job's record and journal: how the scheduler and a worker process talk, through files alone."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llmquant.blanking import blank_secrets
from llmquant.protocols import Job
from llmquant.run import SCHEMA_VERSION, check_schema

JournalEvent = Literal["loading", "loaded", "started", "progress", "finished", "end"]


@dataclass(frozen=True)
class Entry:
    """One line of a journal.

    Attributes:
        at: seconds since the epoch.
        run_id: of the experiment; empty for events of the whole job: its progress is that of a quantization.
        done: with `total`, how far it is; 0 where that means nothing.
    """

    event: JournalEvent
    at: float
    run_id: str = ""
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class JobRecord:
    """A job as its study's folder keeps it.

    Attributes:
        job_id: the executor's; ``None`` until it is submitted.
        ended: somebody has seen its end and brought home what it did.
        dollars: about what it cost; ``None`` where nothing is paid for.
    """

    job: Job
    job_id: str | None = None
    ended: bool = False
    dollars: float | None = None

    @classmethod
    def read(cls, path: Path) -> JobRecord:
        """Read a job's record.

        Raises:
            StoreError: if a newer version wrote it.
        """
        data = json.loads(path.read_text(encoding="utf-8"))
        check_schema(data, "a job")
        fields = {key: value for key, value in data.items() if key in Job.__dataclass_fields__}
        experiments = tuple((e, a) for e, a in fields["experiments"])
        job = Job(**{**fields, "experiments": experiments, "plugins": tuple(fields["plugins"])})
        return cls(job, data["job_id"], data["ended"], data["dollars"])

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the content of the record's file."""
        own = {"job_id": self.job_id, "ended": self.ended, "dollars": self.dollars}
        return {"schema_version": SCHEMA_VERSION, **own, **asdict(self.job)}


def journal_path(record: Path) -> Path:
    """Return where the journal of the job at `record` is."""
    return record.with_suffix(".journal")


def log_path(record: Path) -> Path:
    """Return where the log of the job at `record` is."""
    return record.with_suffix(".log")


class Journal:
    """Written by the worker, a line an event; a line cut by a crash is ignored by readers."""

    def __init__(self, record: Path) -> None:
        self._path = journal_path(record)
        self._progress_at = 0.0

    def write(self, event: JournalEvent, run_id: str = "", *, done: int = 0, total: int = 0) -> None:
        """Append an event; progress at most five times a second."""
        now = time.time()
        if event == "progress":
            if now - self._progress_at < 0.2 and done < total:
                return
            self._progress_at = now
        with self._path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(asdict(Entry(event, now, run_id, done, total))) + "\n")


def read_journal(record: Path, offset: int) -> tuple[list[Entry], int]:
    """Read the whole lines behind `offset`.

    Returns:
        The entries, and the offset to go on from.
    """
    try:
        with journal_path(record).open("rb") as stream:
            stream.seek(offset)
            data = stream.read()
    except FileNotFoundError:
        return [], offset
    whole = data[: data.rfind(b"\n") + 1]
    return [Entry(**_fields(line)) for line in whole.splitlines()], offset + len(whole)


def log_tail(text: str, lines: int = 30) -> str:
    """Return the last lines of a log, without progress bars and with secrets blanked."""
    shown = [line.rsplit("\r", 1)[-1].rstrip() for line in text.splitlines()]
    return blank_secrets("\n".join([line for line in shown if line][-lines:]))


def end_with_parent() -> None:
    """End this process when the one that started it is gone: its end of our standard input closes."""

    def watch() -> None:
        # Not `sys.stdin`: its lock, held by this thread while Python shuts down, would abort the process.
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()


def _fields(line: bytes) -> Mapping[str, Any]:  # Any: the fields of Entry
    fields: Mapping[str, Any] = json.loads(line)
    return fields
