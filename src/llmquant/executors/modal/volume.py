"""What goes to a Modal Volume and comes from it: packed jobs, what they finished, and records for other machines."""

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
    """Return how many bytes of local checkpoints and inputs a job would be sent with."""
    model = local_path(job.model)
    paths = [Path(path) for path in job.inputs.values()]
    return sum(size(path) for path in (paths if model is None else [*paths, model]))


def size(path: Path) -> int:
    """Return how many bytes a file or a folder holds."""
    files = list_files(path).values() if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def new_key(study: str, number: int, submitted: float, timeout: float) -> str:
    """Make the name of a job's folder, which tells another process what it has to know of the job.

    Args:
        submitted: seconds since the epoch.
        timeout: most seconds that the job may run.
    """
    return f"{study}-{number}-{int(submitted)}-{int(timeout)}-{uuid.uuid4().hex[:8]}"


def read_key(key: str) -> tuple[str, int, float, float]:
    """Return what `new_key` was given."""
    study, number, submitted, timeout, _ = key.rsplit("-", 4)
    return study, int(number), float(submitted), float(timeout)


def send(volume: Any, packed: Path, key: str) -> None:  # Any: modal.Volume
    """Put a packed job where its container looks for it."""
    with volume.batch_upload() as batch:
        batch.put_directory(str(packed), f"/jobs/{key}/packed")


def publish(volume: Any, record: Path, job_id: str) -> None:  # Any: modal.Volume
    """Put the records of a study and of a job that was submitted where other machines find them."""
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
        except modal.exception.Error as error:  # the job runs, and is known here
            _log.warning("other machines cannot attach to %s: %s", study.name, error)


def recall(volume: Any, study: str, store: Path) -> None:  # Any: modal.Volume
    """Bring the records of a study into `store`; those that are there stay.

    Raises:
        StoreError: if the Volume has no such study.
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
            f"there is no study {study!r} on this Volume of Modal's",
            hint="Name the Volume that it was submitted with: modal(volume=NAME).",
        )


def fetch(volume: Any, key: str, store: Path, *, ended: bool) -> tuple[bool, bool]:  # Any: modal.Volume
    """Bring home what is new of a job.

    Returns:
        Whether its container has begun, and whether all that it has left so far is here.
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
            # A journal that has grown since may name runs that were not listed; the next look brings both.
            os.truncate(target, entry.size)
        bring_home(Path(scratch), store, study, number, ended=ended)
    return True, True


def tidy(volume: Any, key: str) -> None:  # Any: modal.Volume
    """Delete what a job that has ended was sent with, if its container did not come to it."""
    import modal

    with contextlib.suppress(FileNotFoundError, modal.exception.Error):  # it costs some space, no more
        volume.remove_file(f"/jobs/{key}/packed", recursive=True)


def _is_known(name: Path, store: Path) -> bool:
    """Say whether a file of a worker's store need not be fetched: its run is at home or not finished."""
    if name.parts[0] != "runs":
        return name.name == STARTED
    return len(name.parts) > 1 and (name.parts[1].startswith(".") or (store / "runs" / name.parts[1]).exists())
