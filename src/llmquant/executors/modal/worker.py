"""What runs in a container on Modal: one packed job in a child process, its runs left on the Volume as they finish.

::

    VOLUME/hf                                   what is fetched from the Hub
    VOLUME/llmquant/<kind>/<digest>.<unique>    made things of `llmquant.storage.cache`, whole and never changed
    VOLUME/llmquant/embeddings                  vectors, in files that are written once
    VOLUME/jobs/<key>/{packed, store}           what was sent, until the job has ended; what has finished
    VOLUME/studies/<id>/{study.json, jobs}      records, for another machine

Containers do not see each other's locks, and of a file that two have written the last commit wins. So a container makes
things on its own disk, under locks that hold there, and puts them on the Volume whole, each under a name of its own.
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
from llmquant.storage.journal import journal_path, log_path, read_journal
from llmquant.study.experiment import Experiment

# The image says with it where the Volume is.
MOUNT_VARIABLE = "LLMQUANT_VOLUME"
STARTED = "started"
_EMBEDDINGS = "embeddings"
_MADE = re.compile("[0-9a-f]{32}")
# Between looks at what is finished. Modal asks for commits of a Volume to be seconds apart.
_LEAVE_EVERY_S = 5.0
# What a container keeps of its time to bring the last runs out; never more than a quarter of it.
_RESERVE_S = 30.0

_log = logging.getLogger(__name__)


class Order(TypedDict):
    """What a container is asked to do: plain JSON, so that no Python version is needed to read it.

    Attributes:
        volume: the Volume's name.
        key: the job's folder on it, under ``jobs``; it holds ``packed`` and gets ``store``.
        study: the study's id.
        number: the job's.
        timeout: seconds that the job may take; Modal may allow its container more.
    """

    volume: str
    key: str
    study: str
    number: int
    timeout: float


class Outcome(TypedDict):
    """How a container's job ended.

    Attributes:
        code: of the child process; negative for a signal.
        why: a clause, where the code is not 0.
        seconds: from the start of the container's work.
        gpu: the driver's name of it; empty without one.
    """

    code: int
    why: str
    seconds: float
    gpu: str


def run_job(order: Order) -> Outcome:
    """Do a job in this container. Modal calls this."""
    import modal

    volume = modal.Volume.from_name(order["volume"])
    volume.reload()

    def commit() -> None:
        try:
            volume.commit()
        except RuntimeError as error:
            # What the worker holds open keeps the Volume from showing others' changes here; ours are kept.
            _log.info("the Volume was committed, but not reloaded: %s", error)

    return work(order, Path(os.environ[MOUNT_VARIABLE]), commit)


def work(order: Order, mount: Path, commit: Callable[[], None]) -> Outcome:
    """Run the pipeline on a packed job and leave what it finished, also when it fails or runs out of time.

    Args:
        mount: where the Volume is.
        commit: makes what was written there seen by others.
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
            # What was sent has done its work; a job that is started again is sent again.
            shutil.rmtree(folder / "packed", ignore_errors=True)
            leave(ended=True)
    names = sorted({gpu.name for gpu in nvidia_gpus()})
    return Outcome(code=code, why=why, seconds=time.monotonic() - started, gpu=", ".join(names))


def take_over(left: Path, record: Path, store: Path) -> bool:
    """Go on where another container was: Modal may move a job to another machine, and then calls it anew.

    Returns:
        Whether anything is left to do.

    Args:
        left: the store that the other one left, if there was one.
        record: the job's here, from which what is finished is taken out.
    """
    before = left.joinpath(*record.parts[-4:])
    if not journal_path(before).exists():
        return True
    shutil.copytree(left / "runs", store / "runs", dirs_exist_ok=True)
    for path in (journal_path, log_path):
        if path(before).exists():
            shutil.copyfile(path(before), path(record))
    finished = {entry.run_id for entry in read_journal(record, 0)[0] if entry.event == "finished"}
    job = json.loads(record.read_text(encoding="utf-8"))
    job["experiments"] = [(e, n) for e, n in job["experiments"] if Experiment.from_json(e).run_id not in finished]
    record.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    return bool(job["experiments"])


def environment(mount: Path, cache: Path, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return what differs in the worker's: where its caches are, and the Hub's token under the name it reads."""
    result = {"HF_HOME": str(mount / "hf"), "LLMQUANT_CACHE": str(cache)}
    token = inherited.get("HF_TOKEN", inherited.get("HUGGINGFACE_TOKEN"))
    return result if token is None else {**result, "HF_TOKEN": token}


def link_made(shared: Path, cache: Path) -> None:
    """Show in a container's cache what is on the Volume: made things as they are, and the folder of vectors."""
    (shared / _EMBEDDINGS).mkdir(parents=True, exist_ok=True)
    cache.mkdir(parents=True)
    (cache / _EMBEDDINGS).symlink_to(shared / _EMBEDDINGS)
    for made in sorted(shared.glob("*/[!.]*.*")):
        link = cache / made.parent.name / made.name.partition(".")[0]
        if made.parent.name != _EMBEDDINGS and made.is_dir() and not link.is_symlink():
            link.parent.mkdir(exist_ok=True)
            link.symlink_to(made)


def share_made(cache: Path, shared: Path, done: set[Path]) -> bool:
    """Put on the Volume what was made here; say whether there was any.

    Args:
        done: what is there already; what is put there is added.
    """
    made = {
        path
        for path in cache.glob("*/*")
        if _MADE.fullmatch(path.name) and path.parent.name != _EMBEDDINGS and path.is_dir() and not path.is_symlink()
    }
    for path in sorted(made - done):
        target = shared / path.parent.name / f"{path.name}.{uuid.uuid4().hex[:8]}"
        partial = target.with_name(f".{target.name}")
        shutil.copytree(path, partial, symlinks=True)
        partial.rename(target)
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
                return code, "" if code == 0 else _why(code)
    finally:
        stop(child)


def _why(code: int) -> str:
    return how_it_ended(code) + (": give it more memory_gib" if code == -9 else "")
