"""The code in a Modal container: runs one packed job in a child process and copies finished runs to the Volume.

::

    VOLUME/hf                                   files from the Hub
    VOLUME/llmquant/<kind>/<digest>.<unique>    entries of `llmquant.storage.cache`, complete and never changed
    VOLUME/llmquant/embeddings                  embeddings, in files that are written once
    VOLUME/jobs/<key>/{packed, store}           the packed job, until it has ended; its finished runs
    VOLUME/studies/<id>/{study.json, jobs}      records, for another machine

Containers do not see each other's locks, and if two containers write one file, the last commit wins. So a container
makes cache entries on its own disk, where its locks work, and copies complete entries to unique names on the Volume.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypedDict

from llmquant.executors.shipping import bring_home, unpack
from llmquant.executors.worker_process import how_it_ended, start, stop
from llmquant.machine.hardware import nvidia_gpus
from llmquant.storage.atomic import replacing
from llmquant.storage.journal import finished_ids, journal_path, log_path
from llmquant.study.experiment import Experiment

# The environment variable with the Volume's path in the container.
MOUNT_VARIABLE = "LLMQUANT_VOLUME"
STARTED = "started"
_EMBEDDINGS = "embeddings"
_MADE = re.compile("[0-9a-f]{32}")
# Time between two checks for finished runs. Modal asks that commits of a Volume are seconds apart.
_LEAVE_EVERY_S = 5.0
# Time reserved for copying the last runs, at most a quarter of the job's timeout.
_RESERVE_S = 30.0

_log = logging.getLogger(__name__)


class Order(TypedDict):
    """The request to a container: plain JSON, readable by every Python version.

    Attributes:
        volume: name of the Volume.
        key: the job's folder under ``jobs`` on the Volume; it holds ``packed`` and receives ``store``.
        study: id of the study.
        number: number of the job.
        timeout: maximum time of the job in seconds; Modal may allow its container more.
    """

    volume: str
    key: str
    study: str
    number: int
    timeout: float


class Outcome(TypedDict):
    """How a container's job ended.

    Attributes:
        code: exit code of the child process; negative for a signal.
        why: the reason as a clause, if the code is not 0.
        seconds: running time of the container.
        gpu: the driver's name of the GPU; empty without a GPU.
    """

    code: int
    why: str
    seconds: float
    gpu: str


def run_job(order: Order) -> Outcome:
    """Run a job in this container; Modal calls this function."""
    import modal

    volume = modal.Volume.from_name(order["volume"])

    def commit() -> None:
        try:
            volume.commit()
        except RuntimeError as error:
            # Open files of the worker prevent a reload of the Volume here; the commit itself succeeded.
            _log.info("the Volume was committed, but not reloaded: %s", error)

    try:
        volume.reload()
        return work(order, Path(os.environ[MOUNT_VARIABLE]), commit)
    except modal.exception.Error as error:
        # The client raises the container's exception unchanged: one of Modal's would look like a lost connection there.
        raise RuntimeError(f"{type(error).__name__}: {error}") from error


def work(order: Order, mount: Path, commit: Callable[[], None]) -> Outcome:
    """Run a packed job and copy its finished runs to the Volume, also if the job fails or runs out of time.

    Args:
        mount: path of the Volume.
        commit: makes files written there visible to others.
    """
    started = time.monotonic()
    folder = mount / "jobs" / order["key"]
    (folder / "store").mkdir(parents=True, exist_ok=True)
    (folder / "store" / STARTED).touch()
    commit()
    with tempfile.TemporaryDirectory(prefix="llmquant-job-") as scratch:
        cache, shared, done = Path(scratch, "cache"), mount / "llmquant", set[Path]()
        link_made(shared, cache)
        record, store = unpack(folder / "packed", Path(scratch, "work"))
        missing = take_over(folder / "store", record, store)

        def leave(*, ended: bool) -> None:
            bring_home(store, folder / "store", order["study"], order["number"], ended=ended)
            commit()
            if share_made(cache, shared, done):
                commit()

        deadline = started + order["timeout"] - min(_RESERVE_S, order["timeout"] / 4)
        try:
            code, why = 0, ""
            if missing:
                differs = environment(mount, cache, os.environ)
                code, why = _supervise(Path(scratch), record, store, differs, deadline, leave)
        finally:
            # The packed job is not needed again: a job that is started again is also sent again.
            shutil.rmtree(folder / "packed", ignore_errors=True)
            leave(ended=True)
    names = sorted({gpu.name for gpu in nvidia_gpus()})
    return Outcome(code=code, why=why, seconds=time.monotonic() - started, gpu=", ".join(names))


def take_over(left: Path, record: Path, store: Path) -> bool:
    """Continue the work of another container: Modal may move a job to another machine and call it again.

    Args:
        left: the store that the other container left, if there was one.
        record: path of the job's record here; finished experiments are removed from it.

    Returns:
        Whether experiments are left to run.
    """
    before = left.joinpath(*record.parts[-4:])
    if not journal_path(before).exists():
        return True
    shutil.copytree(left / "runs", store / "runs", dirs_exist_ok=True)
    for path in (journal_path, log_path):
        if path(before).exists():
            shutil.copyfile(path(before), path(record))
    finished = finished_ids(record)
    job = json.loads(record.read_text(encoding="utf-8"))
    job["experiments"] = [(e, n) for e, n in job["experiments"] if Experiment.from_json(e).run_id not in finished]
    record.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    return bool(job["experiments"])


def environment(mount: Path, cache: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the worker's own environment variables: paths of its caches, and the Hub token as ``HF_TOKEN``."""
    result = {"HF_HOME": str(mount / "hf"), "LLMQUANT_CACHE": str(cache)}
    token = inherited.get("HF_TOKEN", inherited.get("HUGGINGFACE_TOKEN"))
    return result if token is None else {**result, "HF_TOKEN": token}


def link_made(shared: Path, cache: Path) -> None:
    """Link the Volume's cache entries and its folder of embeddings into a container's cache."""
    (shared / _EMBEDDINGS).mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True)
    (cache / _EMBEDDINGS).symlink_to(shared / _EMBEDDINGS)
    for made in sorted(shared.glob("*/[!.]*.*")):
        link = cache / made.parent.name / made.name.partition(".")[0]
        if made.parent.name != _EMBEDDINGS and made.is_dir() and not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(made)


def share_made(cache: Path, shared: Path, done: set[Path]) -> bool:
    """Copy new cache entries to the Volume; return whether there were any.

    Args:
        done: entries that are on the Volume already; copied entries are added.
    """
    made = {
        path
        for path in cache.glob("*/*")
        if _MADE.fullmatch(path.name) and path.parent.name != _EMBEDDINGS and path.is_dir() and not path.is_symlink()
    }
    for path in sorted(made - done):
        with replacing(shared / path.parent.name / f"{path.name}.{uuid.uuid4().hex[:8]}") as partial:
            shutil.copytree(path, partial, symlinks=True)
    new = bool(made - done)
    done |= made
    return new


def _supervise(
    folder: Path,
    record: Path,
    store: Path,
    environment: Mapping[str, str],
    deadline: float,
    leave: Callable[..., None],
) -> tuple[int, str]:
    search = [path for path in sys.path if path]
    child = start(folder, record, store, search=search, environment=environment)
    try:
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return -9, "the job took longer than its timeout on Modal"
            try:
                code = child.wait(timeout=min(_LEAVE_EVERY_S, left))
            except subprocess.TimeoutExpired:
                leave(ended=False)
            else:
                more = "; give the job more memory_gib" if code == -9 else ""
                return code, "" if code == 0 else how_it_ended(code) + more
    finally:
        stop(child)
