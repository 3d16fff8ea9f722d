"""Files sent to and read from a Modal Volume: packed jobs, finished runs, and records for other machines."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import tempfile
import uuid
from pathlib import Path
from typing import Any

from llmquant.errors import StoreError
from llmquant.executors.modal.worker import STARTED
from llmquant.executors.shipping import bring_home, local_path
from llmquant.storage.atomic import make_folder, write_text
from llmquant.study.folders import list_files
from llmquant.study.job import Job

_log = logging.getLogger(__name__)


def local_bytes(job: Job) -> int:
    """Return the bytes of the local checkpoints and inputs that a job would send."""
    model = local_path(job.model)
    paths = [Path(path) for path in job.inputs.values()]
    return sum(size(path) for path in (paths if model is None else [*paths, model]))


def size(path: Path) -> int:
    """Return the size of a file or a folder in bytes."""
    files = list_files(path).values() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def new_key(study: str, number: int, submitted: float, timeout: float) -> str:
    """Make the name of a job's folder; the name holds everything that another process needs to know of the job.

    Args:
        submitted: time of submission, in seconds since the epoch.
        timeout: maximum time of the job, in seconds.
    """
    return f"{study}-{number}-{int(submitted)}-{int(timeout)}-{uuid.uuid4().hex[:8]}"


def read_key(key: str) -> tuple[str, int, float, float]:
    """Return the arguments of `new_key`."""
    study, number, submitted, timeout, _ = key.rsplit("-", 4)
    return study, int(number), float(submitted), float(timeout)


def send(volume: Any, packed: Path, key: str) -> None:  # Any: modal.Volume
    """Upload a packed job to the folder that its container reads."""
    with volume.batch_upload() as batch:
        batch.put_directory(str(packed), f"/jobs/{key}/packed")


def publish(volume: Any, record: Path, job_id: str) -> None:  # Any: modal.Volume
    """Upload the records of a study and of a submitted job for other machines."""
    import modal

    text = json.dumps({**json.loads(record.read_text(encoding="utf-8")), "job_id": job_id}, ensure_ascii=False)
    study = record.parent.parent
    with tempfile.TemporaryDirectory(prefix="llmquant-record-") as scratch:
        copy = Path(scratch) / record.name
        copy.write_text(text, encoding="utf-8")
        try:
            with volume.batch_upload(force=True) as batch:
                batch.put_file(str(study / "study.json"), f"/studies/{study.name}/study.json")
                batch.put_file(str(copy), f"/studies/{study.name}/jobs/{record.name}")
        except modal.exception.Error as error:  # the job runs, and this machine has its record
            _log.warning("Other machines cannot attach to study %s: %s", study.name, error)


def recall(volume: Any, study: str, store: Path) -> None:  # Any: modal.Volume
    """Copy the records of a study into `store`; existing records stay.

    Raises:
        StoreError: if the study is missing from the Volume.
    """
    import modal

    try:
        found = [entry.path.lstrip("/") for entry in volume.iterdir(f"/studies/{study}", recursive=True)]
    except (FileNotFoundError, modal.exception.NotFoundError):
        found = []
    for path in (path for path in found if path.endswith(".json") and not (store / path).exists()):
        write_text(make_folder((store / path).parent) / Path(path).name, b"".join(volume.read_file(path)).decode())
    if not (store / "studies" / study / "study.json").exists():
        raise StoreError(
            f"study {study!r} is missing from this Modal Volume",
            hint='Give the Volume that the study was submitted with: --on "modal(volume=NAME)".',
        )


def fetch(volume: Any, key: str, store: Path, *, ended: bool) -> tuple[bool, bool]:  # Any: modal.Volume
    """Copy a job's new results into `store`.

    Returns:
        Whether the job's container has started, and whether all results so far were copied.
    """
    import modal

    study, number, _, _ = read_key(key)
    root = f"jobs/{key}/store"
    with tempfile.TemporaryDirectory(prefix="llmquant-arrived-") as scratch:
        try:
            entries = list(volume.iterdir(f"/{root}", recursive=True))
        except (FileNotFoundError, modal.exception.NotFoundError):
            return False, True
        for entry in entries:
            name = Path(entry.path.lstrip("/")).relative_to(root)
            if entry.type != modal.volume.FileEntryType.FILE or _is_known(name, store):
                continue
            target = Path(scratch) / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as stream:
                volume.read_file_into_fileobj(entry.path, stream)
            if target.stat().st_size < entry.size:
                return True, False
            # A journal that has grown since may name runs that were not listed; the next fetch copies both.
            os.truncate(target, entry.size)
        bring_home(Path(scratch), store, study, number, ended=ended)
    return True, True


def tidy(volume: Any, key: str) -> None:  # Any: modal.Volume
    """Delete the packed files of a job that has ended, if its container did not delete them."""
    import modal

    with contextlib.suppress(FileNotFoundError, modal.exception.Error):  # a file left over only costs space
        volume.remove_file(f"/jobs/{key}/packed", recursive=True)


def _is_known(name: Path, store: Path) -> bool:
    """Return whether a file of a worker's store need not be fetched: its run is stored here, or is not finished."""
    if name.parts[0] != "runs":
        return name.name == STARTED
    return len(name.parts) > 1 and (name.parts[1].startswith(".") or (store / "runs" / name.parts[1]).exists())
