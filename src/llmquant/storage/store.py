"""Runs on disk: a plain folder, written atomically by any number of processes, readable by this user only.

::

    STORE/runs/<run_id>/{run.json, samples/<task>.parquet, files/, log.txt}      <run_id>-2 is its second attempt
    STORE/prompts/prompts-<digest>.parquet                                       texts of prompts, each once
    STORE/studies/<study_id>/{study.json, jobs/<n>.json, jobs/<n>.journal, jobs/<n>.log}

A run is written next to its final path and renamed. A second writer's rename fails and its run is dropped.
A file of samples contains its task's name, because a long name is shortened in the file name.
A run comes with the texts of its prompts; `Store.sweep` moves them into one folder, where equal files are one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from llmquant.errors import DamagedError, OptionError, StoreError
from llmquant.storage.atomic import begin_folder, file_mode, make_folder, publish_folder, sweep, write_text
from llmquant.storage.blanking import blank_run, blanker
from llmquant.storage.journal import JobRecord
from llmquant.storage.prompt_files import PREFIX, read_prompts, write_prompts
from llmquant.storage.sample_files import REMADE, read_samples, write_samples
from llmquant.study.experiment import RunId, path_of, visible
from llmquant.study.folders import near
from llmquant.study.reading import LARGEST, brief, load
from llmquant.study.run import Run, Sample

T = TypeVar("T")

_KEPT = "kept"
_PROMPTS = "prompts"

_log = logging.getLogger(__name__)


class Store:
    """A folder of runs and studies.

    Args:
        root: the folder; created with the first run or study.

    Raises:
        OptionError: if the path is empty.
    """

    def __init__(self, root: Path | str) -> None:
        if not str(root).strip():
            raise OptionError("the store's path is empty", hint="Give a folder. Is a variable empty?")
        if not isinstance(root, str | os.PathLike):
            raise OptionError(f"store is {root!r}, not a path", hint='Give the path of a folder, such as "results".')
        self.root = path_of(root).absolute()
        self._held: dict[Path, int] = {}

    def __repr__(self) -> str:
        return f"Store({str(self.root)!r})"

    @classmethod
    def existing(cls, root: Path | str) -> Store:
        """Open a store to read from.

        Raises:
            StoreError: if there is no store, or it contains no study.
        """
        store = cls(root)
        if store.root.is_file():
            hint = "report reads a store's folder, or the JSON that `llmquant report STORE --format json` writes."
            raise StoreError(f"{root} is a file, and a store is a folder", hint=hint)
        if not store.root.is_dir():
            hint = near(store.root) or "Give the folder that `--store` named."
            raise StoreError(f"there is no store at {store.root}", hint=hint)
        if not store.studies():
            raise StoreError(f"{store.root} contains no study", hint="Run: llmquant compare MODEL --store " + str(root))
        return store

    # -- runs ---------------------------------------------------------------------------------------------------------

    def attempts(self, run_id: RunId) -> list[int]:
        """List the stored attempts in order."""
        found = [1] if (self._runs / run_id).is_dir() else []
        for path in self._runs.glob(f"{run_id}-*"):
            number = path.name.removeprefix(f"{run_id}-")
            if re.fullmatch("[2-9]|[1-9][0-9]+", number):
                found.append(int(number))
        return sorted(found)

    def run(self, run_id: RunId) -> Run | None:
        """Read the newest completed attempt of a run, else the newest failed one, else ``None``.

        Raises:
            DamagedError: if no attempt can be read.
            StoreError: if an attempt was written by a newer version.
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

    def readable(self, run_id: RunId) -> Run | None:
        """Read a run like `run`; a damaged run counts as missing, with a warning, and is repeated.

        Raises:
            StoreError: if it was written by a newer version.
        """
        try:
            return self.run(run_id)
        except DamagedError as error:
            _log.warning("%s; the run is repeated", error.message)
            return None

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

        return load(self.folder(run_id, attempt) / "run.json", read, hint=REMADE)

    def runs(self) -> dict[RunId, Run]:
        """Read every run of the store, one attempt each, as `run` chooses it."""
        ids = {RunId(path.name.partition("-")[0]) for path in self._runs.glob("[!.]*")}
        found = {run_id: self.run(run_id) for run_id in sorted(ids)}
        return {run_id: run for run_id, run in found.items() if run is not None}

    def folder(self, run_id: RunId, attempt: int = 1) -> Path:
        """Return the path of an attempt, whether or not it exists."""
        return self._runs / (run_id if attempt == 1 else f"{run_id}-{attempt}")

    def begin(self) -> Path:
        """Make a folder to write a run into; `commit` moves it to its final path."""
        partial, self._held[partial] = begin_folder(self._runs)
        (partial / "files").mkdir()
        return partial

    def keep(
        self, run: Run, partial: Path, samples: Mapping[str, Sequence[Sample]], prompts: Mapping[str, str] | None = None
    ) -> None:
        """Save an unfinished run in case its writer is killed, see `kept`.

        Args:
            run: the run with all measurements so far.
            samples: samples of tasks that were not saved yet.
            prompts: texts of these samples' prompts by hash; they stay part of the run.
        """
        if prompts:
            blank = blanker()
            write_prompts(partial, {digest: blank(text) for digest, text in prompts.items()})
        for task, scored in samples.items():
            if scored:
                write_samples(make_folder(partial / _KEPT) / "samples", visible(task), scored)
        make_folder(partial / _KEPT)
        write_json(partial / _KEPT / "run.json", run.to_json())

    def kept(self, run_id: RunId, attempt: int) -> tuple[Run, dict[str, list[Sample]], Path] | None:
        """Read a run saved by a killed writer: its samples by task, and the folder of its files."""
        for file in self._runs.glob(f".*/{_KEPT}/run.json"):
            try:
                run = load(file, Run.from_json, hint="")
                if (run.run_id, run.attempt) == (run_id, attempt):
                    samples = dict(read_samples(path) for path in sorted((file.parent / "samples").glob("*.parquet")))
                    return run, samples, file.parents[1] / "files"
            except DamagedError as error:  # cut by what killed its writer
                _log.warning("%s", error)
        return None

    def commit(self, run: Run, partial: Path, samples: Mapping[str, Sequence[Sample]]) -> bool:
        """Write a run into its partial folder, secrets blanked, and move the folder to its final path.

        Args:
            samples: samples by task.

        Returns:
            Whether the run was stored; ``False`` if another process was first, whose run stays.

        Raises:
            StoreError: if the disk is full or cannot be written.
        """
        shutil.rmtree(partial / _KEPT, ignore_errors=True)  # not blanked
        try:
            run, samples = blank_run(run, samples, partial / "files")
            for task, scored in samples.items():
                if scored:
                    write_samples(partial / "samples", visible(task), scored)
            with contextlib.suppress(OSError):  # there are files, or an evaluator has deleted the folder
                (partial / "files").rmdir()
            publish_folder(partial, self.folder(run.run_id, run.attempt), "run.json", _json_text(run.to_json()))
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            self._let_go(partial)
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                return False
            message = f"run {run.run_id} could not be stored in {self.root}: {error.strerror or error}"
            raise StoreError(message, hint=_what_to_do(error)) from error
        self._let_go(partial)
        return True

    def _let_go(self, partial: Path) -> None:
        os.close(self._held.pop(partial))

    def samples(self, run: Run) -> dict[str, list[Sample]]:
        """Read a run's samples by task.

        Raises:
            DamagedError: if they cannot be read.
        """
        folder = self.folder(run.run_id, run.attempt) / "samples"
        return dict(read_samples(path) for path in sorted(folder.glob("*.parquet")))

    def prompts(self, hashes: Collection[str]) -> dict[str, str]:
        """Read the texts of prompts by `Sample.prompt`; texts that were not kept are missing.

        Raises:
            DamagedError: if a file of prompts cannot be read.
        """
        return read_prompts(self.root / _PROMPTS, hashes) if hashes else {}

    def prompt(self, digest: str) -> str | None:
        """Read the text of one prompt; ``None`` if it was not kept.

        Raises:
            DamagedError: if a file of prompts cannot be read.
        """
        return self.prompts([digest]).get(digest)

    def files(self, run: Run) -> Path:
        """Return the folder of an evaluator's files for a run; the folder may be missing.

        The store's own path is resolved, so that links below it can be detected.
        """
        return self.root.resolve() / self.folder(run.run_id, run.attempt).relative_to(self.root) / "files"

    def log(self, run: Run) -> Path:
        """Return the path of a run's log."""
        return self.folder(run.run_id, run.attempt) / "log.txt"

    def sweep(self) -> None:
        """Delete partial folders of dead writers, after a week on a disk without locks, and collect runs' prompts."""
        sweep(self._runs)
        for file in self._runs.glob(f"[!.]*/{PREFIX}*.parquet"):
            with contextlib.suppress(OSError):  # another process was first, or the next sweep moves it
                file.replace(make_folder(self.root / _PROMPTS) / file.name)

    # -- studies ------------------------------------------------------------------------------------------------------

    def studies(self) -> list[str]:
        """List the ids of the studies, the most recently started one last, even if the clock was set back before it."""
        files = (self.root / "studies").glob("*/study.json")
        return [file.parent.name for file in sorted(files, key=lambda file: (_order(file), file))]

    def write_study(self, study_id: str, data: Mapping[str, Any]) -> None:  # Any: a JSON object
        """Delete partial folders of dead writers, which may fill the disk, and write a study's record.

        Raises:
            StoreError: if the disk is full or cannot be written.
        """
        self.sweep()
        folder = self.root / "studies" / study_id
        earlier = max(map(_order, folder.parent.glob("*/study.json")), default=0)
        try:
            make_folder(folder / "jobs")
            write_json(folder / "study.json", {**data, "order": max(_started_ms(data), earlier + 1)})
        except OSError as error:
            message = f"cannot write to {self.root}: {error.strerror or error}"
            raise StoreError(message, hint=_what_to_do(error)) from error

    def read_study(self, study_id: str, read: Callable[[Any], T]) -> T:  # Any: a JSON value
        """Read a study's record.

        Args:
            read: function that makes the record from its content.

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
            The job's number, and the path of its record.
        """
        folder = self.root / "studies" / study_id / "jobs"
        make_folder(folder)
        taken = (int(file.stem) for file in folder.glob("*.json") if re.fullmatch("[0-9]+", file.stem))
        number = 1 + max(taken, default=0)
        while True:
            try:
                (folder / f"{number}.json").touch(file_mode(), exist_ok=False)
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
        """Divide the cost of the study's jobs among their runs, in proportion to the runs' times."""
        found: dict[RunId, float] = {}
        for path in self.jobs(study_id):
            try:
                record = JobRecord.read(path)
                asked = record.asked()
                runs = [self.attempt(*one) for one in asked if self.folder(*one).is_dir()]
            except DamagedError as error:
                _log.warning("the cost of a job is left out: %s", error)
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
    write_text(path, _json_text(data))


def _json_text(data: Mapping[str, Any]) -> str:  # Any: a JSON object
    return json.dumps(data, indent=1, ensure_ascii=False, allow_nan=False)


def _what_to_do(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return "It is a file, and a store is a folder: give another one."
    cure = "Free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "Make it writable"
    return f"{cure} and run the same command again; stored runs are reused."


def _order(study: Path) -> int:
    """Return what sorts a study, in milliseconds since the epoch; a study without a start time is the oldest."""
    try:
        order = load(study, lambda data: int(data.get("order") or _started_ms(data)), hint="")
    except (StoreError, AttributeError, TypeError):
        return 0
    return order if order < LARGEST else 0


def _started_ms(study: Mapping[str, Any]) -> int:  # Any: a JSON object
    at = study.get("started_at")
    found = datetime.fromisoformat(at) if at else datetime(1970, 1, 1)
    return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)
