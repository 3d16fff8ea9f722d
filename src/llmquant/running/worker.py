"""The worker: one job, from its record to runs in the store. ``python -m llmquant.running.worker RECORD STORE``.

The worker loads the model once, checks that it produces text, evaluates each experiment and writes its run. A failed
experiment is stored as a failed run; the others continue.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import PluginError, ReferenceFailedError, describe
from llmquant.planning.lookup import restore_subject
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import LoadedModel
from llmquant.plugins.options import located, verify_inputs
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.running.checked_results import checked_results
from llmquant.running.fetching import fetch
from llmquant.running.host_lock import host_lock
from llmquant.running.output import flush_output, give_back, keep_output, log_since, log_size
from llmquant.running.provenance import provenance
from llmquant.storage.blanking import blank_secrets
from llmquant.storage.cache import Cache
from llmquant.storage.journal import JobRecord, Journal, end_with_parent, finished_ids, log_tail
from llmquant.storage.store import Store
from llmquant.study.call import Json
from llmquant.study.experiment import Digest, Documents, Experiment, ModelUse
from llmquant.study.job import Job
from llmquant.study.run import REFERENCE_FILE, Failure, FailureKind, Run

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.registry import Chosen
    from llmquant.retrieval.loaded import LoadedEmbedder
    from llmquant.study.run import Result

    Subject = LoadedModel | LoadedEmbedder

_log = logging.getLogger(__name__)
_STARTED, _STARTED_AT = datetime.now(UTC), time.monotonic()
_LONGEST = 4000  # characters of a message


def work(record: Path, store: Store) -> bool:
    """Run the job at `record` and write its runs into `store`; evaluators of other packages run last.

    Returns:
        Whether experiments are left for a new process, because an evaluator has changed this process.
    """
    job, journal = JobRecord.read(record).job, Journal(record)
    before = finished_ids(record)  # by an earlier process of this job
    asked = [(Experiment.from_json(data), attempt) for data, attempt in job.experiments]
    experiments = sorted((e for e in asked if e[0].run_id not in before), key=lambda e: not e[0].evaluator.is_built_in)
    cache = Cache(Cache.default().root, who=_who(job, asked[0][0]), waiting=functools.partial(_wait, journal, ""))
    journal.write("fetching")
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=record.parent) as scratch:
        context = _context(job, cache, Path(scratch))
        started = _now()
        try:
            for spec in job.plugins:
                registry().register(PluginSpec(**spec))
            failures = fetch([e for e, _ in experiments if e.evaluator.is_built_in], context)
            for each in experiments:
                if error := failures.get(each[0].run_id):
                    _commit(store, journal, _failed(each, error, started, record, "data"), {}, record, 0)
            experiments = [e for e in experiments if e[0].run_id not in failures]
            if not experiments:
                journal.write("end")
                return False
            journal.write("loading")
            subject = _load_guarded(job, experiments[0][0], context, journal)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # models, quantizers and their backends may raise anything, and call sys.exit
            _log.exception("the model could not be loaded")
            for each in experiments:
                _commit(store, journal, _failed(each, error, started, record), {}, record, 0)
        else:
            journal.write("loaded")
            for experiment, attempt in experiments:
                alone = experiment.hardware is not None
                who = f"{_who(job, experiment)} · {experiment.evaluator.label}"
                wait = functools.partial(_wait, journal, experiment.run_id)
                with host_lock(cache, exclusive=alone, who=who, waiting=wait):
                    unchanged = _evaluate(experiment, attempt, subject, context, store, journal, record)
                if not unchanged and experiment is not experiments[-1][0]:
                    return True
    journal.write("end")
    return False


def _who(job: Job, experiment: Experiment) -> str:
    return f"study {job.study}: {experiment.variant.quantizer.label}"


def _wait(journal: Journal, run_id: str, holders: str) -> None:
    _log.info("waiting for %s", holders)
    journal.write("waiting", run_id, who=holders)


def _load_guarded(job: Job, experiment: Experiment, context: Context, journal: Journal) -> Subject:
    """Load the model; settings that another package's quantizer or embedder changed are restored."""
    info = restore_subject(ModelUse.from_json(job.model), registry(), context.cache)
    if all(use is None or use.is_built_in for use in (experiment.variant.quantizer, info.embedder)):
        return _load(job, info, experiment, context, journal)
    from llmquant.running.guard import load_guarded

    if info.embedder is not None and info.embedder.is_built_in:  # its imports are none of the quantizer's
        registry().construct(registry().restore("embedder", info.embedder))
    subject: Subject = load_guarded(lambda: _load(job, info, experiment, context, journal), info, context.cache)
    return subject


def _load(job: Job, info: ModelInfo, experiment: Experiment, context: Context, journal: Journal) -> Subject:
    """Fetch, quantize and load the model, and check that it works."""
    gc.disable()  # while importing; each collection would scan what was imported before
    import torch

    if experiment.variant.model.embedder is None:
        import transformers.modeling_utils  # noqa: F401 - what every class of models imports
    from llmquant.loading.causal_lm import check_causality, load_causal_lm, materialize, sanity_check
    from llmquant.loading.embedder import load_embedder
    from llmquant.loading.quantized import quantized_checkpoint
    from llmquant.loading.row_independence import check_row_independence
    from llmquant.loading.small_files import check_small_files

    gc.freeze()  # later collections take milliseconds: with what was imported, each would take 0.3 s
    gc.enable()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    torch.manual_seed(context.seed)
    chosen = registry().restore("quantizer", experiment.variant.quantizer)
    verify_inputs(chosen.options, context.inputs)
    independent = replace(chosen, options=located(chosen.options, context.inputs)).row_independent
    label = experiment.variant.quantizer.label
    if info.embedder is not None:
        embedder = registry().construct(registry().restore("embedder", info.embedder))
        subject = load_embedder(info, embedder, registry().construct(chosen), chosen.use, chosen.options, context)
        subject = replace(subject, row_independent=independent)
        _log.info("loaded %s as %s in %.1f s", info.source, label, subject.load.seconds)
        return subject
    check_small_files(info, context.cache)
    reporting = replace(context, progress=lambda done, total: journal.write("progress", done=done, total=total))
    path = quantized_checkpoint(materialize(info, context.cache), info, chosen, reporting, threads=job.threads)
    journal.write("loading")
    model: LoadedModel = load_causal_lm(path, info, registry().construct(chosen), chosen.options, context)
    model = replace(model, row_independent=independent and info.row_independent)
    _log.info("loaded %s as %s in %.1f s", info.source, label, model.load.seconds)
    _log.info("sanity check: %s", sanity_check(model))
    if model.applied.method == "none":
        check_causality(model)
    if model.row_independent:
        _log.info("row independence: %s", check_row_independence(model, label))
    return model


def _evaluate(
    experiment: Experiment,
    attempt: int,
    subject: Subject,
    context: Context,
    store: Store,
    journal: Journal,
    record: Path,
) -> bool:
    """Run one experiment and store its result or failure; return whether others can follow in this process."""
    import torch

    from llmquant.running.guard import Snapshot

    if attempt in store.attempts(experiment.run_id):  # another process stored this attempt first
        journal.write("finished", experiment.run_id)
        return True
    log_from = log_size(record)
    partial = store.begin()
    started = _now()
    journal.write("started", experiment.run_id)
    _log.info("%s started", experiment.evaluator.label)
    finished: list[Result] = []
    failure = snapshot = None
    output = keep_output()
    try:
        snapshot = None if experiment.evaluator.is_built_in else Snapshot.take(subject)
        chosen = registry().restore("evaluator", experiment.evaluator)
        results = measure(
            chosen,
            _as_variant(subject, experiment),
            replace(
                context,
                seed=experiment.seed,
                documents=experiment.documents or Documents(),
                reference=_reference(experiment, store),
                files=partial / "files",
                progress=lambda done, total: journal.write("progress", experiment.run_id, done=done, total=total),
            ),
        )
        for result in results:
            finished.append(result)  # one by one: finished tasks are kept if the next task fails or kills this process
            with contextlib.suppress(OSError):  # a full disk, which may have room again when the run is finished
                kept = _run(experiment, attempt, subject, record, started, finished)
                store.keep(kept, partial, {result.task: result.samples}, result.prompts)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # evaluators and their backends may raise anything, and call sys.exit
        _log.exception("%s failed", experiment.evaluator.label)
        failure = _failure(error, record, log_from)
    changes = [] if snapshot is None else snapshot.undo()
    give_back(output)
    for change in changes:
        _log.warning("%s changed %s (%s)", experiment.evaluator.plugin, change.what, change.now)
    damaged = [change.what for change in changes if change.now == "damaged"]
    if damaged:
        finished = []
        failure = _culprit(experiment, damaged, failure, record, log_from)
    run = _run(experiment, attempt, subject, record, started, finished)
    run = replace(
        run,
        status="completed" if failure is None else "failed",
        failure=failure,
        provenance={**run.provenance, "changed_by_evaluator": [change.what for change in changes]},
    )
    try:
        _commit(store, journal, run, {result.task: result.samples for result in finished}, record, log_from, partial)
    except Exception as error:  # a full disk, or a result that cannot be written
        _log.exception("%s could not be stored", experiment.evaluator.label)
        run = replace(run, status="failed", measurements=(), details={}, failure=_failure(error, record, log_from))
        shutil.rmtree(partial / "samples", ignore_errors=True)
        _commit(store, journal, run, {}, record, log_from, partial if partial.exists() else None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        _log.info("%.0f MiB are allocated on the GPU", torch.cuda.memory_allocated() / 2**20)
    return all(change.now == "restored" for change in changes)


def measure(evaluator: Chosen, subject: Subject, context: Context) -> Iterator[Result]:
    """Run an evaluator on what is loaded; each result is checked as it comes.

    Raises:
        PluginError: if a result is not in order.
    """
    from accelerate.utils import set_seed

    set_seed(context.seed)
    verify_inputs(evaluator.options, context.inputs)
    yield from checked_results(registry().construct(evaluator).evaluate(subject, context), evaluator.use.plugin)


def _run(
    experiment: Experiment, attempt: int, subject: Subject, record: Path, started: str, finished: Sequence[Result]
) -> Run:
    """Return the unfinished run."""
    return Run(
        experiment,
        "failed",
        tuple(measurement for result in finished for measurement in result.measurements),
        {**asdict(subject.applied), "layers_left": list(subject.applied.layers_left)},
        _provenance(subject, record),
        started,
        _now(),
        {result.task: dict(result.details) for result in finished},
        attempt=attempt,
    )


def _culprit(
    experiment: Experiment, damaged: Sequence[str], failure: Failure | None, record: Path, log_from: int
) -> Failure:
    package, _, name = experiment.evaluator.plugin.rpartition("/")
    error = PluginError(
        f"evaluator {name!r} of package {package} changed {' and '.join(damaged)}",
        hint="The results are not stored; the next experiments run in a new process.",
    )
    found = _failure(error, record, log_from)
    return found if failure is None else replace(failure, message=f"{failure.message}\n{found.message}")


def _failed(
    asked: tuple[Experiment, int], error: BaseException, started: str, record: Path, kind: FailureKind | None = None
) -> Run:
    experiment, attempt = asked
    failure, where = _failure(error, record, 0), _provenance(None, record)
    failure = failure if kind is None else replace(failure, kind=kind)
    return Run(experiment, "failed", (), None, where, started, _now(), failure=failure, attempt=attempt)


def _failure(error: BaseException, record: Path, log_from: int) -> Failure:
    from llmquant.loading.memory import is_out_of_memory

    kind: FailureKind = "out_of_memory" if is_out_of_memory(error) else "error"
    if isinstance(error, ReferenceFailedError):
        kind = "reference_failed"
    message = blank_secrets(describe(error))
    if len(message) > _LONGEST:  # for example a complete HTTP response
        message = f"{message[: _LONGEST // 2]} [...] {message[-_LONGEST // 2 :]}"
    return Failure(kind, message, log_tail(log_since(record, log_from)))


def _provenance(subject: Subject | None, record: Path) -> dict[str, Json]:
    return {**provenance(subject), "executor": JobRecord.read(record).job.executor}


def _commit(
    store: Store,
    journal: Journal,
    run: Run,
    samples: Mapping[str, Any],  # Any: Sequence[Sample]
    record: Path,
    log_from: int,
    partial: Path | None = None,
) -> None:
    partial = partial or store.begin()
    (partial / "log.txt").write_text(blank_secrets(log_since(record, log_from)), encoding="utf-8")
    store.commit(run, partial, samples)
    journal.write("finished", run.run_id)


def _context(job: Job, cache: Cache, scratch: Path) -> Context:
    inputs = {Digest(digest): Path(path) for digest, path in job.inputs.items()}
    seed = job.experiments[0][0]["seed"]
    return Context(job.device, seed, Documents(), cache, inputs, None, scratch, lambda done, total: None)


def _as_variant(subject: Subject, experiment: Experiment) -> Subject:
    """Return the embedder with the experiment's form of vectors."""
    vectors = experiment.variant.vectors
    if vectors is None or isinstance(subject, LoadedModel):
        return replace(subject)  # a copy whose fields no other experiment sees
    return replace(subject, vectors=vectors)


def _reference(experiment: Experiment, store: Store) -> Path | None:
    """Return the file that the baseline left; ``None`` for the baseline and for evaluators without a reference."""
    if experiment.reference is None:
        return None
    run = store.run(experiment.reference)
    path = None if run is None else store.folder(run.run_id, run.attempt) / "files" / REFERENCE_FILE
    if path is None or not path.is_file():
        raise ReferenceFailedError(f"the baseline's run {experiment.reference} left no {REFERENCE_FILE}")
    return path


def _now() -> str:
    """Return the time, independent of changes to the system clock after this process started."""
    return (_STARTED + timedelta(seconds=time.monotonic() - _STARTED_AT)).isoformat(timespec="milliseconds")


def main() -> None:
    """Run the job given on the command line."""
    parser = argparse.ArgumentParser(prog="python -m llmquant.running.worker", description=__doc__)
    parser.add_argument("record", type=Path, help="path of the job's record")
    parser.add_argument("store", type=Path, help="folder of the store for the job's runs")
    parser.add_argument("--attached", action="store_true", help="end when standard input closes")
    arguments = parser.parse_args()
    if arguments.attached:
        end_with_parent()
    logging.raiseExceptions = False  # an evaluator may have closed the log
    log = logging.StreamHandler(open(2, "w", encoding="utf-8", closefd=False))  # noqa: SIM115 - not `sys.stderr`
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", handlers=[log])
    code = 0
    try:
        if work(arguments.record, Store(arguments.store)):
            _start_again()
    except BaseException:  # for example a full disk
        _log.exception("the worker failed")
        code = 1
    flush_output()
    os._exit(code)  # threads and exit handlers that an evaluator left may never end


def _start_again() -> None:
    """Replace this process by a new one that runs the rest of the job, with the same pid and log."""
    flush_output()
    for entry in list(Path("/dev/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own descriptor; a GPU left open would keep its memory
            os.set_inheritable(int(entry.name), int(entry.name) < 3)
    os.execv(sys.executable, sys.orig_argv)


if __name__ == "__main__":
    main()
