"""The main job: run a study here or elsewhere, submit one, or wait for one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from llmquant.cache import Cache
from llmquant.call import Call, Json
from llmquant.comparison import StudyRecord
from llmquant.errors import OptionError, UnsupportedError
from llmquant.experiment import Digest, Experiment, ModelRequest, RunId, VectorGrid
from llmquant.plan import Planned, resolve
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.protocols import Executor, Offer
from llmquant.run import Run
from llmquant.scheduler import Progress, Scheduler
from llmquant.store import Store
from llmquant.study import Study
from llmquant.study_results import Comparison

Model = str | Path | ModelRequest
Plugin = str | Call | Mapping[str, Json]


def compare(
    models: Model | Sequence[Model],
    quantizers: Sequence[Plugin] = (),
    evaluators: Sequence[Plugin] = (),
    *,
    vectors: VectorGrid | Mapping[str, Sequence[int | str]] | None = None,
    baseline: str | None = None,
    limit: int | None = 100,
    seed: int = 0,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
    timeout_s: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare quantizations of one model or several, each against its own baseline.

    Args:
        models: Hub ids (``org/name@revision``), folders, ``.gguf`` files, embedders (``bigemma3(dim=768)``).
        quantizers: presets or calls such as ``bnb_4bit(quant_type=fp4)``; empty for the defaults.
        evaluators: calls such as ``lm_eval(coqa)``; empty for the defaults.
        vectors: forms of an embedder's vectors: ``{"dims": [768, 256], "codecs": ["float16", "int8"]}``.
        baseline: what the others are held against; ``None`` takes the first ``*_baseline``.
        limit: documents a task, of retrieval queries; ``None`` for all.
        executor: a name, a call such as ``local(threads=2)``, or an executor.
        store: folder of the results; what it holds already is reused.
        fresh: repeat what is stored, and read local weights again; nothing is deleted.
        timeout_s: longest time for one experiment.
        progress: show how it goes on.

    Returns:
        The comparison; experiments that failed are in it with their reason.

    Raises:
        RequestError: if the request is wrong; nothing was started.
    """
    study = make_study(models, quantizers, evaluators, vectors=vectors, baseline=baseline, limit=limit, seed=seed)
    return run_study(study, executor=executor, store=store, fresh=fresh, timeout_s=timeout_s, progress=progress)


def make_study(
    models: Model | Sequence[Model],
    quantizers: Sequence[Plugin] = (),
    evaluators: Sequence[Plugin] = (),
    *,
    vectors: VectorGrid | Mapping[str, Sequence[int | str]] | None = None,
    baseline: str | None = None,
    limit: int | None = 100,
    seed: int = 0,
) -> Study:
    """Build a study from what people write.

    Raises:
        OptionError: if a call cannot be parsed, or one string stands where a list belongs.
    """
    for name, value in (("quantizers", quantizers), ("evaluators", evaluators)):
        if isinstance(value, str):
            raise OptionError(f"{name} must be a list, found {value!r}", hint=f"Write {name}=[{value!r}].")
    several = [models] if isinstance(models, str | Path | ModelRequest) else models
    return Study(
        tuple(model if isinstance(model, ModelRequest) else ModelRequest(str(model)) for model in several),
        tuple(Call.of(quantizer) for quantizer in quantizers),
        tuple(Call.of(evaluator) for evaluator in evaluators),
        baseline,
        limit,
        seed,
        vectors if isinstance(vectors, VectorGrid) else VectorGrid.from_json(vectors or {}),
    )


def run_study(
    study: Study,
    *,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
    timeout_s: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Run a study, as `compare` does."""
    with open_executor(executor) as where:
        planned = resolve(study, registry(), Cache.default(), where, fresh=fresh)
        return execute(planned, where, store, fresh=fresh, timeout_s=timeout_s, progress=progress)


def submit_study(
    study: Study, *, executor: str | Executor, store: str | Path | Store = "results", fresh: bool = False
) -> str:
    """Submit a study to an executor whose jobs go on without this program, and return its id for `attach`.

    Raises:
        RequestError: as `run_study`; also if the executor's jobs end with this program.
    """
    with open_executor(executor) as where:
        planned = resolve(study, registry(), Cache.default(), where, fresh=fresh)
        submit(planned, where, store, fresh=fresh)
    return planned.record.study_id


def deploy_study(study: Study, *, executor: str | Executor) -> list[str]:
    """Make what an executor needs for a study's jobs and keep it there, so that such studies start sooner.

    Returns:
        What was made, by name.

    Raises:
        RequestError: as `run_study`; also if the executor keeps nothing.
    """
    with open_executor(executor) as where:
        deploy = getattr(where, "deploy", None)
        if deploy is None:
            raise UnsupportedError(f"the executor {where.name!r} has nothing to deploy", hint="Of ours, modal has.")
        planned = resolve(study, registry(), Cache.default(), where)
        with TemporaryDirectory(prefix="llmquant-empty-") as empty:  # what is stored needs an app as well
            made: list[str] = deploy(Scheduler(planned, registry(), Store(empty), where).jobs())
    return made


def attach(
    study: str,
    *,
    executor: str | Executor,
    store: str | Path | Store = "results",
    progress: bool = True,
    cancel: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Wait for a study that goes on without the program that submitted it, and bring home what it did.

    What was not submitted, or was lost, is not started: `compare` with the same arguments does that.

    Args:
        study: its id, as `compare` told it.
        executor: the one it was submitted to.
        store: need not know the study, where the executor keeps what is needed.
        cancel: asked when Ctrl-C comes.

    Raises:
        StoreError: if neither the store nor the executor knows the study.
    """
    store = store if isinstance(store, Store) else Store(store)
    with open_executor(executor) as where:
        if study not in store.studies():
            where.recall(study, store.root)
        planned = Planned(store.read_study(study, StudyRecord.from_json), {}, (), (), {})
        scheduler = Scheduler(planned, registry(), store, where)
        return _watched(scheduler, scheduler.wait, planned, where, store, progress, cancel)


def execute(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    *,
    fresh: bool = False,
    timeout_s: float | None = None,
    progress: bool = True,
    agree: Callable[[Offer], bool] = lambda offer: offer.agreed,
    cancel: Callable[[], bool] = lambda: True,
) -> Comparison:
    """Run what has been planned and is not in the store.

    Args:
        agree: asked before anything starts that is paid for.
        cancel: asked when Ctrl-C comes while jobs run that could go on without this program.

    Raises:
        RequestError: if the executor refuses, or nobody agrees to what it may cost; nothing was started.
    """
    scheduler, planned, store = _prepare(planned, executor, store, fresh, timeout_s, agree)
    return _watched(scheduler, scheduler.run, planned, executor, store, progress, cancel)


def submit(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    *,
    fresh: bool = False,
    agree: Callable[[Offer], bool] = lambda offer: offer.agreed,
) -> tuple[int, int]:
    """Submit what has been planned and is not in the store, and leave it to go on without this program.

    Returns:
        How many jobs go on, and how many experiments could not be submitted, as they wait for another's file.

    Raises:
        RequestError: as `execute`; also if the executor's jobs end with this program.
    """
    if not executor.outlives:
        raise UnsupportedError(
            f"jobs of the executor {executor.name!r} end with the program that starts them",
            hint="Leave out --detach, and use nohup, tmux or screen.",
        )
    scheduler, _, _ = _prepare(planned, executor, store, fresh, None, agree)
    try:
        waiting = scheduler.submit_all()
    finally:
        left = scheduler.stop(cancel=False)
    return left, waiting


def _prepare(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    fresh: bool,
    timeout_s: float | None,
    agree: Callable[[Offer], bool],
) -> tuple[Scheduler, Planned, Store]:
    """Check what is left to be checked; write the study's record."""
    if timeout_s is not None and timeout_s <= 0:
        raise OptionError(f"timeout must be above 0 s, found {timeout_s:g}")
    store = store if isinstance(store, Store) else Store(store)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    planned = replace(planned, record=replace(planned.record, started_at=now))
    scheduler = Scheduler(planned, registry(), store, executor, fresh=fresh, timeout_s=timeout_s)
    offer = scheduler.check()
    if offer is not None and not agree(offer):
        raise OptionError(
            f"nobody agreed to what this may cost: {offer.text}", hint="Give the executor a budget=DOLLARS or yes=true."
        )
    store.write_study(planned.record.study_id, planned.record.to_json())
    return scheduler, planned, store


def _watched(
    scheduler: Scheduler,
    work: Callable[[Callable[[Progress], None]], Mapping[RunId, Run]],
    planned: Planned,
    executor: Executor,
    store: Store,
    progress: bool,
    cancel: Callable[[], bool],
) -> Comparison:
    """Show how it goes on. Whatever happens, no job is left that nobody can find again."""
    from llmquant.report.progress import show_progress

    shown: AbstractContextManager[Callable[[Progress], None]] = (
        show_progress() if progress else nullcontext(lambda state: None)
    )
    try:
        with shown as watch:
            runs = work(watch)
    except KeyboardInterrupt:
        scheduler.stop(cancel=not executor.outlives or cancel())
        raise
    except BaseException:  # such as a disk that is full here
        scheduler.stop(cancel=not executor.outlives)
        raise
    return Comparison.of(planned.record, store, runs)


def run_experiment(
    experiment: Experiment,
    *,
    inputs: Mapping[Digest, Path] | None = None,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
) -> Run:
    """Run one experiment of a comparison again or elsewhere.

    Args:
        inputs: where the files are that its options name, by content.
    """
    record = StudyRecord(
        study_id=experiment.run_id,
        title=experiment.variant.model.name,
        experiments=(experiment,),
        baselines={},
        notes=(),
        limit=experiment.documents.limit if experiment.documents else None,
        seed=experiment.seed,
    )
    with open_executor(executor) as where:
        planned = Planned(record, {}, (), (), dict(inputs or {}))
        return execute(planned, where, store, fresh=fresh, progress=False).runs[experiment.run_id]


def register(spec: PluginSpec) -> None:
    """Add a plugin from a notebook or script.

    Raises:
        PluginError: if its classes cannot be imported by a worker process.
    """
    registry().register(spec)


@contextmanager
def open_executor(executor: str | Executor) -> Iterator[Executor]:
    """Open an executor by name, and close it afterwards; one that was given stays the giver's.

    Raises:
        RequestError: if there is none of this name, or an option is wrong.
    """
    if not isinstance(executor, str):
        yield executor
        return
    call = Call.parse(executor)
    if call.name == "local":  # the default means one thing, whatever else is installed
        call = replace(call, name="llmquant/local")
    opened: Executor = registry().construct(registry().choose("executor", call))
    try:
        yield opened
    finally:
        opened.close()
