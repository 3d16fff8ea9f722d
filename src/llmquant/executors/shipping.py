"""Send a job to a machine without a shared disk, and copy its results back; both as plain folders."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmquant.errors import ModelError, StoreError, UnsupportedError
from llmquant.storage.atomic import begin_folder, file_mode, make_folder, publish_folder
from llmquant.storage.blanking import blank_secrets
from llmquant.storage.journal import journal_path, log_path
from llmquant.study.experiment import Experiment, path_of
from llmquant.study.folders import list_files

_RECORD = "job.json"
_MODEL = "model"
# The parts of a log that are copied: its beginning while the job runs, and its end when the job has ended.
_LOG_BYTES = 8 * 2**20
_LOG_END_BYTES = 2**20


def pack(record: Path, store: Path, out: Path, *, with_model: bool) -> int:
    """Write everything that a job needs into the folder `out`.

    ::

        OUT/{job.json, inputs/<digest>, model/, store/runs/<run_id>, job.journal, job.log}

    Runs that are in the store already are left out; the job's journal and log are included, so that a job whose machine
    was lost can be packed again and continues. Packages, plugins' code and files from the Hub are not included.

    Args:
        record: path of the job's record in `store`.
        with_model: include local checkpoints; otherwise they must be at the same path on the worker's machine.

    Returns:
        The number of experiments left to run.

    Raises:
        ModelError: if a local checkpoint is missing.
        OptionError: if a folder contains something that cannot be sent.
        UnsupportedError: if a checkpoint needs another local folder.
    """
    job = json.loads(record.read_text(encoding="utf-8"))
    ids = [Experiment.from_json(e).run_id for e, _ in job["experiments"]]
    left = [
        (run_id, e, attempt)
        for run_id, (e, attempt) in zip(ids, job["experiments"], strict=True)
        if not _folder(store, run_id, attempt).is_dir()
    ]
    (out / "inputs").mkdir(parents=True)
    inputs = {digest: _pack_input(digest, Path(path), out, with_model) for digest, path in job["inputs"].items()}
    model = _pack_model(job["model"], out) if with_model else _with_source(job["model"], local_path(job["model"]))
    own = {run_id for run_id, _, _ in left}
    for run_id in {e["reference"] for _, e, _ in left} - own - {None}:
        for found in [store / "runs" / run_id, *(store / "runs").glob(f"{run_id}-*")]:
            if found.is_dir():
                shutil.copytree(found, out / "store" / "runs" / found.name)
    for path, name in ((journal_path(record), "job.journal"), (log_path(record), "job.log")):
        if path.exists():
            shutil.copyfile(path, out / name)
    text = json.dumps(
        {**job, "experiments": [x[1:] for x in left], "inputs": inputs, "model": model}, ensure_ascii=False
    )
    (out / _RECORD).write_text(text, encoding="utf-8")
    return len(left)


def unpack(packed: Path, work: Path) -> tuple[Path, Path]:
    """Prepare a packed job on the worker's machine. Checkpoints and inputs are read from `packed`.

    Args:
        packed: folder made by `pack`; only read.
        work: an empty folder for the job's store.

    Returns:
        The paths of the job's record and of its store, for the worker.
    """
    packed, store = packed.absolute(), work.absolute() / "store"
    job = json.loads((packed / _RECORD).read_text(encoding="utf-8"))
    job["inputs"] = {digest: str(packed / path) for digest, path in job["inputs"].items()}
    if (packed / _MODEL).is_dir():
        job["model"] = _with_source(job["model"], packed / _source(job["model"]))
    if (packed / "store").is_dir():
        shutil.copytree(packed / "store", store)
    (store / "runs").mkdir(parents=True, exist_ok=True)
    record = record_path(store, job["study"], job["number"])
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps(job, ensure_ascii=False), encoding="utf-8")
    for name, path in (("job.journal", journal_path(record)), ("job.log", log_path(record))):
        if (packed / name).exists():
            shutil.copyfile(packed / name, path)
    return record, store


def bring_home(work_store: Path, store: Path, study: str, number: int, *, ended: bool = False) -> None:
    """Copy a job's results into `store`: finished runs, and the present parts of journal and log.

    The function may be called repeatedly and by several processes. Runs that are in `store` already stay unchanged.

    Args:
        work_store: the worker's store, or the part of it that has arrived.
        ended: the worker has ended, so the log's last line is copied even if incomplete.

    Raises:
        StoreError: if `store` cannot be written.
    """
    source, record = record_path(work_store, study, number), record_path(store, study, number)
    try:
        # Read first, written last: a run that the journal calls finished is in its place by then.
        journal = _news(journal_path(source), journal_path(record), ended=False)
        for run in sorted((work_store / "runs").glob("[!.]*")):
            if not (store / "runs" / run.name).exists():
                _place(run, store / "runs" / run.name)
        bring_log(log_path(source), log_path(record), ended=ended)
        _write_at(journal_path(record), *journal)
    except OSError as error:
        raise StoreError(
            f"results of job {number} of {study} could not be copied to {store}: {error.strerror or error}",
            hint="Free some space and run the same command again; stored runs are reused.",
        ) from error


def bring_log(source: Path, home: Path, *, ended: bool) -> None:
    """Copy the new part of a log, tokens blanked: the first `_LOG_BYTES` and, after the job's end, the last lines."""
    size = source.stat().st_size if source.exists() else 0
    whole = ended and size <= _LOG_BYTES + 2 * _LOG_END_BYTES
    offset, data = _news(source, home, ended=whole, end=None if whole else _LOG_BYTES)
    if ended and not whole and offset <= _LOG_BYTES:
        with source.open("rb") as stream:
            stream.seek(size - _LOG_END_BYTES)
            last = stream.read().partition(b"\n")[2]
        left_out = f"[{size - offset - len(data) - len(last):,} bytes of the log are left out here]\n"
        data += left_out.encode() + _blanked(last)
    _write_at(home, offset, data)


def record_path(store: Path, study: str, number: int) -> Path:
    """Return the path of a job's record in a store."""
    return store / "studies" / study / "jobs" / f"{number}.json"


def _folder(store: Path, run_id: str, attempt: int) -> Path:
    return store / "runs" / (run_id if attempt == 1 else f"{run_id}-{attempt}")


def _pack_input(digest: str, path: Path, out: Path, with_model: bool) -> str:
    """Copy a file or a folder; without `with_model`, a folder must be on the worker's machine."""
    if path.is_dir() and not with_model:
        return str(path.absolute())
    name = f"inputs/{digest.rpartition(':')[2]}"
    if path.is_dir():
        _copy_folder(path, out / name)
    else:
        shutil.copyfile(path, out / name)
    return name


def _pack_model(model: Mapping[str, Any], out: Path) -> dict[str, Any]:  # Any: a ModelUse as JSON
    path = local_path(model)
    if path is None:
        return dict(model)
    if not path.exists():
        raise ModelError(f"local checkpoint {path} is missing")
    if path.is_file():  # a GGUF file is recognized by its suffix
        (out / _MODEL).mkdir()
        _link(path, out / _MODEL / path.name)
        return _with_source(model, Path(_MODEL, path.name))
    _copy_folder(path, out / _MODEL)
    return _with_source(model, Path(_MODEL))


def _copy_folder(folder: Path, out: Path) -> None:
    adapter = folder / "adapter_config.json"
    base = json.loads(adapter.read_text()).get("base_model_name_or_path") if adapter.is_file() else None
    if base and path_of(base).is_dir():
        raise UnsupportedError(
            f"{folder} is an adapter for {base}, another local folder, and cannot be sent to another machine",
            hint="Merge the adapter into its base and give the merged checkpoint.",
        )
    for name, file in list_files(folder).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        _link(file, out / name)


def _link(source: Path, target: Path) -> None:
    """Hard-link a file that may hold gigabytes, or copy the file if linking fails."""
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


def local_path(model: Mapping[str, Any]) -> Path | None:
    """Return the path of a local checkpoint; ``None`` for a Hub model and an embedder without a checkpoint."""
    source = _source(model)
    path = path_of(source).absolute()
    if model["embedder"] is None:
        return path if model["digest"].startswith("sha256:") else None
    is_path = source.startswith((".", "/", "~")) or source.endswith("/") or source.partition("@")[0].count("/") > 1
    return path if source and is_path else None


def _source(model: Mapping[str, Any]) -> str:
    """Return a model's source, or an embedder's checkpoint."""
    embedder = model["embedder"]
    return str(model["source"] if embedder is None else embedder["options"].get("checkpoint") or "")


def _with_source(model: Mapping[str, Any], path: Path | None) -> dict[str, Any]:
    if path is None:
        return dict(model)
    if model["embedder"] is None:
        return {**model, "source": str(path)}
    options = {**model["embedder"]["options"], "checkpoint": str(path)}
    return {**model, "embedder": {**model["embedder"], "options": options}}


def _place(run: Path, target: Path) -> None:
    """Copy a run next to its final path and rename the copy, as a writer of the store does."""
    partial, held = begin_folder(target.parent)
    try:
        shutil.copytree(run, partial, dirs_exist_ok=True)
        publish_folder(partial, target, "run.json", (run / "run.json").read_text(encoding="utf-8"))
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first
            raise
    finally:
        os.close(held)


def _news(source: Path, home: Path, *, ended: bool, end: int | None = None) -> tuple[int, bytes]:
    """Return the size of `home`, and the complete lines that follow in `source` up to `end`, tokens blanked."""
    offset = home.stat().st_size if home.exists() else 0
    data = b""
    with contextlib.suppress(FileNotFoundError), source.open("rb") as stream:
        stream.seek(offset)
        data = stream.read(-1 if end is None else max(0, end - offset))
    if not ended:  # half a token could not be recognized
        data = data[: 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))]
    return offset, _blanked(data)


def _blanked(data: bytes) -> bytes:
    """Blank tokens and keep the length of each line, so that the copy's size is the offset in the source."""
    lines = data.decode("latin-1").split("\n")
    blanked = blank_secrets("\n".join(lines)).split("\n")  # at once: line by line takes 40 times as long
    if len(blanked) != len(lines):  # a secret of several lines
        blanked = [blank_secrets(line) for line in lines]
    return "\n".join(new.ljust(len(old)) for old, new in zip(lines, blanked, strict=True)).encode("latin-1")


def _write_at(path: Path, offset: int, data: bytes) -> None:
    """Write at the end of the copy; two processes write the same bytes to the same offset."""
    if not data:
        return
    make_folder(path.parent)
    path.touch(file_mode())
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(data)
