"""Runs on disk: a plain folder, written atomically, by as many processes as like to.

::

    STORE/runs/<run_id>/{run.json, samples/<task>.parquet, files/, log.txt}      <run_id>-2 is its second attempt
    STORE/studies/<study_id>/{study.json, jobs/<n>.json, jobs/<n>.journal, jobs/<n>.log}

A run is written beside its place and renamed. A second writer's rename loses and its run is dropped.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import shutil
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import psutil

from llmquant.blanking import blank_run
from llmquant.errors import DamagedError, StoreError
from llmquant.experiment import RunId, path_of
from llmquant.job import JobRecord
from llmquant.reading import MOST_BYTES, brief, load, read_as, stored
from llmquant.run import Run, Sample

T = TypeVar("T")

_SCORE = "score:"
_REMADE = "Delete its run's folder; the run is made again."
# Of samples that are read together: each of them may be long.
_ROWS = 1024

_log = logging.getLogger(__name__)
_ABANDONED_S = 7 * 86400.0


class Store:
    """A folder of runs and studies.

    Args:
        root: the folder; it is made when something is put in it.
    """

    def __init__(self, root: Path | str) -> None:
        self.root = path_of(root).absolute()

    @classmethod
    def existing(cls, root: Path | str) -> Store:
        """Open a store to read from.

        Raises:
            StoreError: if there is no store, or it holds no study.
        """
        store = cls(root)
        if not store.root.is_dir():
            raise StoreError(f"there is no store at {store.root}", hint="Give the folder that `--store` named.")
        if not store.studies():
            raise StoreError(f"{store.root} holds no study", hint="Run: llmquant compare MODEL --store " + str(root))
        return store

    # -- runs ---------------------------------------------------------------------------------------------------------

    def attempts(self, run_id: RunId) -> list[int]:
        """List the attempts that are stored, in order."""
        found = [1] if (self._runs / run_id).is_dir() else []
        for path in self._runs.glob(f"{run_id}-*"):
            number = path.name.removeprefix(f"{run_id}-")
            if re.fullmatch("[2-9]|[1-9][0-9]+", number):
                found.append(int(number))
        return sorted(found)

    def run(self, run_id: RunId) -> Run | None:
        """Read the newest completed attempt of a run, else the newest failed one, else ``None``.

        Raises:
            DamagedError: if none can be read.
            StoreError: if one was written by a newer version.
        """
        newest: Run | None = None
        damaged: DamagedError | None = None
        for attempt in reversed(self.attempts(run_id)):
            try:
                run = self.attempt(run_id, attempt)
            except DamagedError as error:
                damaged = error
                continue
            if run.status == "completed":
                return run
            newest = newest or run
        if newest is None and damaged is not None:
            raise damaged
        return newest

    def attempt(self, run_id: RunId, attempt: int) -> Run:
        """Read one attempt.

        Raises:
            DamagedError: if it cannot be read, or is another run's.
            StoreError: if it was written by a newer version.
        """

        def read(data: Any) -> Run:  # Any: a JSON value
            run = Run.from_json(data)
            if (run.run_id, run.attempt) != (run_id, attempt):
                raise DamagedError(f"it is attempt {run.attempt} of run {run.run_id}, which belongs elsewhere")
            return run

        return load(self.folder(run_id, attempt) / "run.json", read, hint=_REMADE)

    def runs(self) -> dict[RunId, Run]:
        """Read every run of the store, one attempt each, as `run` chooses it."""
        ids = {RunId(path.name.partition("-")[0]) for path in self._runs.glob("[!.]*")}
        found = {run_id: self.run(run_id) for run_id in sorted(ids)}
        return {run_id: run for run_id, run in found.items() if run is not None}

    def folder(self, run_id: RunId, attempt: int = 1) -> Path:
        """Return where an attempt is or would be."""
        return self._runs / (run_id if attempt == 1 else f"{run_id}-{attempt}")

    def begin(self, run_id: RunId) -> Path:
        """Make a folder to write a run into; `commit` puts it in its place."""
        partial = self._runs / f".partial-{run_id}-{os.getpid()}@{platform.node()}-{uuid.uuid4().hex[:8]}"
        (partial / "files").mkdir(parents=True)
        return partial

    def commit(self, run: Run, partial: Path, samples: Mapping[str, Sequence[Sample]]) -> bool:
        """Write a run into its partial folder, secrets blanked, and put that in its place.

        Args:
            samples: by task.

        Returns:
            Whether it was put there; ``False`` if another process was first, whose run stays.

        Raises:
            StoreError: if the disk is full or cannot be written.
        """
        try:
            run, samples = blank_run(run, samples, partial / "files")
            for task, scored in samples.items():
                if scored:
                    _write_samples(partial / "samples" / f"{quote(task, safe='')}.parquet", scored)
            write_json(partial / "run.json", run.to_json())
            if not any((partial / "files").iterdir()):
                (partial / "files").rmdir()
            partial.rename(self.folder(run.run_id, run.attempt))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            raise StoreError(
                f"run {run.run_id} could not be stored in {self.root}: {error.strerror or error}",
                hint="Free some space and give the same command again; what is stored is reused.",
            ) from error
        return True

    def samples(self, run: Run) -> dict[str, list[Sample]]:
        """Read a run's samples by task.

        Raises:
            DamagedError: if they cannot be read.
        """
        folder = self.folder(run.run_id, run.attempt) / "samples"
        return {unquote(path.stem): _read_samples(path) for path in sorted(folder.glob("*.parquet"))}

    def files(self, run: Run) -> Path:
        """Return the folder of what an evaluator kept with a run; it need not be there.

        The store's own path has no links in it, so that a link below it can be told.
        """
        return self.root.resolve() / self.folder(run.run_id, run.attempt).relative_to(self.root) / "files"

    def log(self, run: Run) -> Path:
        """Return where a run's log is."""
        return self.folder(run.run_id, run.attempt) / "log.txt"

    def sweep(self) -> None:
        """Delete what writers left when they died: those of this host at once, others after a week."""
        for left in self._runs.glob(".partial-*"):
            pid, _, host = left.name.split("-", 2)[2].rpartition("-")[0].partition("@")
            dead = host == platform.node() and not psutil.pid_exists(int(pid))
            if dead or time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)

    # -- studies ------------------------------------------------------------------------------------------------------

    def studies(self) -> list[str]:
        """List the ids of the studies, the newest last."""
        files = sorted((self.root / "studies").glob("*/study.json"), key=lambda file: file.stat().st_mtime)
        return [file.parent.name for file in files]

    def write_study(self, study_id: str, data: Mapping[str, Any]) -> None:  # Any: a JSON object
        """Write a study's record."""
        folder = self.root / "studies" / study_id
        try:
            (folder / "jobs").mkdir(parents=True, exist_ok=True)
            write_json(folder / "study.json", data)
        except OSError as error:
            raise StoreError(f"cannot write to {self.root}: {error.strerror or error}") from error

    def read_study(self, study_id: str, read: Callable[[Any], T]) -> T:  # Any: a JSON value
        """Read a study's record.

        Args:
            read: makes the record of its content.

        Raises:
            DamagedError: if it cannot be read, or is another's.
            StoreError: if it was written by a newer version.
        """

        def check(data: Any) -> T:  # Any: a JSON value
            found = read(data)
            if data["study_id"] != study_id:
                raise DamagedError(f"it says that it is study {brief(data['study_id'])}")
            return found

        hint = "Delete its folder; the same study writes it again."
        return load(self.root / "studies" / study_id / "study.json", check, hint=hint)

    def new_job(self, study_id: str) -> tuple[int, Path]:
        """Reserve the next job of a study.

        Returns:
            Its number, and where its record belongs.
        """
        folder = self.root / "studies" / study_id / "jobs"
        folder.mkdir(parents=True, exist_ok=True)
        taken = (int(file.stem) for file in folder.glob("*.json") if re.fullmatch("[0-9]+", file.stem))
        number = 1 + max(taken, default=0)
        while True:
            try:
                (folder / f"{number}.json").touch(exist_ok=False)
            except FileExistsError:
                number += 1
            else:
                return number, folder / f"{number}.json"

    def jobs(self, study_id: str) -> list[Path]:
        """List the records of a study's jobs, the oldest first, without those that were only reserved."""
        files = (self.root / "studies" / study_id / "jobs").glob("*.json")
        written = (f for f in files if re.fullmatch("[0-9]+", f.stem) and f.is_file() and f.stat().st_size)
        return sorted(written, key=lambda file: int(file.stem))

    def dollars(self, study_id: str) -> dict[RunId, float]:
        """Share out what the study's jobs cost among their runs, by how long these took."""
        found: dict[RunId, float] = {}
        for path in self.jobs(study_id):
            try:
                record = JobRecord.read(path)
                asked = record.asked()
                runs = [self.attempt(*one) for one in asked if self.folder(*one).is_dir()]
            except DamagedError as error:
                _log.warning("what a job cost is left out: %s", error)
                continue
            if record.dollars is None:
                continue
            together = sum(run.seconds for run in runs)
            for run in runs:
                share = run.seconds / together if together else 1 / len(runs)
                found[run.run_id] = found.get(run.run_id, 0.0) + record.dollars * share
        return found

    @property
    def _runs(self) -> Path:
        return self.root / "runs"


def write_json(path: Path, data: Mapping[str, Any]) -> None:  # Any: a JSON object
    """Write a JSON file atomically."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
    try:
        with partial.open("w", encoding="utf-8") as stream:
            json.dump(data, stream, indent=1, ensure_ascii=False, allow_nan=False)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _write_samples(path: Path, samples: Sequence[Sample]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    metrics = list(dict.fromkeys(metric for sample in samples for metric in sample.scores))
    columns: dict[str, pa.Array] = {
        "document": pa.array([s.document for s in samples], pa.string()),
        "occurrence": pa.array([s.occurrence for s in samples], pa.int32()),
        "prompt": pa.array([s.prompt for s in samples], pa.string()),
        "group": pa.array([s.group for s in samples], pa.string()),
        "answer": pa.array([s.answer for s in samples], pa.string()),
        "target": pa.array([s.target for s in samples], pa.string()),
        **{f"{_SCORE}{m}": pa.array([s.scores.get(m) for s in samples], pa.float64()) for m in metrics},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, compression="zstd")


def _read_samples(path: Path) -> list[Sample]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found: list[Sample] = []
    with stored(str(path), _REMADE):
        if not path.is_file():  # of a pipe no end would come
            raise OSError("it is not a file")
        size = 0
        try:
            for batch in pq.ParquetFile(path).iter_batches(_ROWS):
                size += batch.nbytes
                if size > MOST_BYTES:  # a few bytes on disk can say a great deal
                    raise OSError(f"it holds more than {MOST_BYTES:,} bytes")
                found += map(_sample, batch.to_pylist())
        except pa.ArrowException as error:
            raise OSError(str(error)) from error
    return found


def _sample(row: Mapping[str, Any]) -> Sample:  # Any: a table's columns
    values = {key: value for key, value in row.items() if not key.startswith(_SCORE)}
    scores = {k.removeprefix(_SCORE): v for k, v in row.items() if k.startswith(_SCORE) and v is not None}
    return read_as(Sample, {**values, "scores": scores})
