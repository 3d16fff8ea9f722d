"""The main job: run a study here or elsewhere, submit one, or wait for one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from llmquant.errors import OptionError, UnsupportedError
from llmquant.planning.resolve import Planned, resolve
from llmquant.plugins.executor import Executor, Offer
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.results.comparison import Comparison
from llmquant.running.progress import Progress
from llmquant.running.scheduler import Scheduler
from llmquant.storage.cache import Cache
from llmquant.storage.store import Store
from llmquant.study.experiment import Digest, Experiment, RunId, VectorGrid
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run
from llmquant.study.study import Model, Plugin, Study

Watch = Callable[[Progress], None]


class Ui(Protocol):
    """What whoever started a study is told and asked, at the four moments that there are."""

    def planned(self, planned: Planned, executor: Executor) -> None:
        """Hear what will run, before anything is asked, paid for or started."""
        ...

    def agree(self, offer: Offer) -> bool:
        """Say whether to start jobs that are paid for."""
        ...

    def progress(self) -> AbstractContextManager[Watch]:
        """Show how the study stands: inside the block, what it gives is called about ten times a second."""
        ...

    def interrupted(self, study: str) -> bool:
        """Say, after Ctrl-C, whether to end jobs that could continue without this program."""
        ...


@dataclass(frozen=True)
class Submitted:
    """A study whose jobs continue without this program.

    Attributes:
        study_id: for `attach`.
        jobs: how many run.
        waiting: experiments that wait for another's file; `compare` with the same arguments starts them.
    """

    study_id: str
    jobs: int
    waiting: int


class Quiet:
    """Shows nothing; agrees to what an executor's options agree to, and ends what runs when it is interrupted."""

    def planned(self, planned: Planned, executor: Executor) -> None:
        """Say nothing."""

    def agree(self, offer: Offer) -> bool:
        """Agree where a budget or ``yes`` does."""
        return offer.agreed

    def progress(self) -> AbstractContextManager[Watch]:
        """Show nothing."""
        return nullcontext(lambda state: None)

    def interrupted(self, study: str) -> bool:
        """End what runs."""
        return True


class WithProgress(Quiet):
    """Shows how the study stands, in a terminal and in a notebook."""

    def progress(self) -> AbstractContextManager[Watch]:
        """Show a line per running experiment."""
        from llmquant.results.report.progress import show_progress

        return show_progress()


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
        baseline: what the others are compared with; ``None`` takes the first ``*_baseline``.
        limit: maximum documents per task (for retrieval: queries per task); ``None`` is all.
        executor: a name, a call such as ``local(threads=2)``, or an executor.
        store: folder of the results; what it holds already is reused.
        fresh: repeat what is stored, and read local weights again; nothing is deleted.
        timeout_s: longest time for one experiment.
        progress: show how the study stands.

    Returns:
        The comparison; experiments that failed are in it with their reason.

    Raises:
        RequestError: if the request is wrong; nothing was started.
    """
    study = Study.of(models, quantizers, evaluators, vectors=vectors, baseline=baseline, limit=limit, seed=seed)
    ui = WithProgress() if progress else Quiet()
    return run_study(study, executor=executor, store=store, fresh=fresh, timeout_s=timeout_s, ui=ui)


def run_study(
    study: Study,
    *,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
    timeout_s: float | None = None,
    ui: Ui | None = None,
) -> Comparison:
    """Run a study: what `compare`, the command line and notebooks do.

    Args:
        ui: what is told and asked meanwhile; ``None`` is `Quiet`.

    Raises:
        RequestError: if the request is wrong, the executor refuses, or the cost was not confirmed; nothing was started.
    """
    with open_executor(executor) as where:
        planned = resolve(study, registry(), Cache.default(), where, fresh=fresh)
        return _run(planned, where, store, fresh, timeout_s, ui or Quiet())


def submit_study(
    study: Study,
    *,
    executor: str | Executor,
    store: str | Path | Store = "results",
    fresh: bool = False,
    ui: Ui | None = None,
) -> Submitted:
    """Submit a study to an executor whose jobs continue without this program.

    Raises:
        RequestError: as `run_study`; also if the executor's jobs end with this program.
    """
    with open_executor(executor) as where:
        if not where.outlives:
            raise UnsupportedError(
                f"jobs of the executor {where.name!r} end with the program that starts them",
                hint="Leave out --detach, and use nohup, tmux or screen.",
            )
        planned = resolve(study, registry(), Cache.default(), where, fresh=fresh)
        scheduler = _begin(planned, where, store, fresh, None, ui or Quiet())
        try:
            waiting = scheduler.submit_all()
        finally:
            left = scheduler.stop(cancel=False)
    return Submitted(planned.record.study_id, left, waiting)


def attach(
    study: str, *, executor: str | Executor, store: str | Path | Store = "results", ui: Ui | None = None
) -> Comparison:
    """Wait for a study that runs without the program that submitted it, and bring home what it did.

    What was not submitted, or was lost, is not started: `compare` with the same arguments does that.

    Args:
        study: its id, as `submit_study` returned it.
        executor: the one it was submitted to.
        store: need not know the study, where the executor keeps what is needed.

    Raises:
        StoreError: if neither the store nor the executor knows the study.
    """
    store = store if isinstance(store, Store) else Store(store)
    with open_executor(executor) as where:
        if study not in store.studies():
            where.recall(study, store.root)
        planned = Planned(store.read_study(study, StudyRecord.from_json), {}, (), (), {})
        scheduler = Scheduler(planned, registry(), store, where)
        scheduler.take_up()
        return _watched(scheduler.wait, scheduler, ui or Quiet(), where)


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
        return _run(planned, where, store, fresh, None, Quiet()).runs[experiment.run_id]


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
            raise UnsupportedError(f"executor {where.name!r} does not support deploy", hint="Use --on modal.")
        planned = resolve(study, registry(), Cache.default(), where)
        with TemporaryDirectory(prefix="llmquant-empty-") as empty:  # what is stored needs an app as well
            made: list[str] = deploy(Scheduler(planned, registry(), Store(empty), where).jobs())
    return made


def _run(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    fresh: bool,
    timeout_s: float | None,
    ui: Ui,
) -> Comparison:
    scheduler = _begin(planned, executor, store, fresh, timeout_s, ui)
    return _watched(scheduler.run, scheduler, ui, executor)


def _begin(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    fresh: bool,
    timeout_s: float | None,
    ui: Ui,
) -> Scheduler:
    """Show, price and ask; then write the study's record and take up its jobs that run already."""
    if timeout_s is not None and not timeout_s > 0:
        raise OptionError(f"timeout must be above 0 s, found {timeout_s:g}")
    ui.planned(planned, executor)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    planned = replace(planned, record=replace(planned.record, started_at=now))
    store = store if isinstance(store, Store) else Store(store)
    scheduler = Scheduler(planned, registry(), store, executor, fresh=fresh, timeout_s=timeout_s)
    _ask(scheduler, ui)
    store.write_study(planned.record.study_id, planned.record.to_json())
    if not fresh and scheduler.take_up():  # jobs were lost meanwhile, and what they had to do is not priced yet
        _ask(scheduler, ui)
    return scheduler


def _ask(scheduler: Scheduler, ui: Ui) -> None:
    """Have the executor refuse what could not run, and whoever pays agree to what the rest may cost."""
    offer = scheduler.check()
    if offer is not None and not ui.agree(offer):
        raise OptionError(
            f"the cost was not confirmed: {offer.text}", hint="Give the executor a budget=DOLLARS or yes=true."
        )


def _watched(
    work: Callable[[Watch], Mapping[RunId, Run]], scheduler: Scheduler, ui: Ui, executor: Executor
) -> Comparison:
    """Show how it stands. Whatever happens, no job is left that nobody can find again."""
    try:
        with ui.progress() as watch:
            runs = work(watch)
    except KeyboardInterrupt:
        scheduler.stop(cancel=not executor.outlives or ui.interrupted(scheduler.record.study_id))
        raise
    except BaseException:  # such as a disk that is full here
        scheduler.stop(cancel=not executor.outlives)
        raise
    return Comparison.of(scheduler.record, scheduler.store, runs)


def register(spec: PluginSpec) -> None:
    """Add a plugin from a notebook or script.

    Raises:
        PluginError: if its classes cannot be imported by a worker process.
    """
    registry().register(spec)
