"""The main job: run a study here or elsewhere, submit one, or wait for one."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

from llmquant.errors import OptionError, UnsupportedError
from llmquant.planning.hub_rows import refuse_missing_rows
from llmquant.planning.resolve import Planned, resolve
from llmquant.planning.room import refuse_too_large
from llmquant.plugins.executor import Executor, Offer
from llmquant.plugins.opening import open_executor
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.results.comparison import Comparison
from llmquant.results.slices import has_slices, needed
from llmquant.running.progress import Progress
from llmquant.running.scheduler import Scheduler
from llmquant.storage.cache import Cache
from llmquant.storage.store import Store
from llmquant.study.experiment import Digest, Experiment, RunId, VectorGrid
from llmquant.study.plain import plain_arguments
from llmquant.study.record import StudyRecord
from llmquant.study.run import Run
from llmquant.study.study import Model, Plugin, Study

Watch = Callable[[Progress], None]


class Ui(Protocol):
    """The four moments at which the caller of a study is informed or asked."""

    def planned(self, planned: Planned, executor: Executor) -> None:
        """Receive the plan before anything is asked, paid for or started."""
        ...

    def agree(self, offer: Offer) -> bool:
        """Return whether to start jobs that cost money."""
        ...

    def progress(self) -> AbstractContextManager[Watch]:
        """Show the study's progress; the function it yields is called about ten times per second inside the block."""
        ...

    def interrupted(self, study: str) -> bool:
        """Return, after Ctrl-C, whether to cancel jobs that could continue without this program."""
        ...


@dataclass(frozen=True)
class Submitted:
    """A study whose jobs continue without this program.

    Attributes:
        study_id: the study's id, for `attach`.
        jobs: number of running jobs.
        waiting: number of experiments that wait for a file of another one; `compare` with the same arguments starts
            these experiments.
    """

    study_id: str
    jobs: int
    waiting: int


class Quiet:
    """Shows nothing; confirms a cost that the executor's options confirm, and cancels running jobs on Ctrl-C."""

    def planned(self, planned: Planned, executor: Executor) -> None:
        """Show nothing."""

    def agree(self, offer: Offer) -> bool:
        """Confirm the cost if the executor has a budget or ``yes``."""
        return offer.agreed

    def progress(self) -> AbstractContextManager[Watch]:
        """Show nothing."""
        return nullcontext(lambda state: None)

    def interrupted(self, study: str) -> bool:
        """Cancel the running jobs."""
        return True


class WithProgress(Quiet):
    """Shows the study's progress in a terminal or a notebook."""

    def progress(self) -> AbstractContextManager[Watch]:
        """Show one line per running experiment."""
        from llmquant.results.report.progress import show_progress

        return show_progress()


@plain_arguments
def compare(
    models: Model | Sequence[Model],
    quantizers: Plugin | Sequence[Plugin] = (),
    evaluators: Plugin | Sequence[Plugin] = (),
    *,
    vectors: VectorGrid | Mapping[str, Sequence[int | str]] | None = None,
    baseline: str | None = None,
    margin: float | str | Sequence[float | str] | None = None,
    limit: int | None = 100,
    until_sure: bool = False,
    seed: int = 0,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
    timeout_s: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Compare quantizations of one or more models with each model's own baseline.

    Args:
        models: Hub ids (``org/name@revision``), folders, ``.gguf`` files, embedders (``bigemma3(dim=768)``).
        quantizers: one or several presets or calls such as ``bnb_4bit(quant_type=fp4)``; empty for
            ``bf16_baseline, bnb_8bit, bnb_4bit_nf4, bnb_4bit_fp4, gptq_4bit_g128, awq_4bit_g128``, without what cannot
            run here (embedders: ``bf16_baseline, bnb_8bit, bnb_4bit_nf4``).
        evaluators: one or several calls such as ``lm_eval(coqa, num_fewshot=2)``; empty for
            ``lm_eval(coqa), perplexity, memory, latency`` (embedders: ``mteb(ViDoRe(v1)),
            mteb(ViDoRe(v2))``, or ``mteb(NanoBEIR)`` if one encodes no images).
        vectors: storage forms of embedders, for example ``{"dims": [768, 256], "codecs": ["float16", "int8"]}``.
        baseline: quantizer to compare the others with, for example ``fp16_baseline``; ``None`` is the first
            ``*_baseline``.
        margin: the largest acceptable loss: points for shares, for example ``2`` (default); ``"perplexity=2%"``
            (default); or ``"bleu=0.5"`` for any other score.
        limit: maximum documents per task (for retrieval: queries per task); ``None`` is all.
        until_sure: score documents in random order, and stop as soon as each verdict is sure; `limit` is the maximum.
        executor: a name, a call such as ``local(threads=2)``, or an executor.
        store: folder of the results; stored runs are reused.
        fresh: repeat stored experiments and read local weights again; nothing is deleted.
        timeout_s: maximum time per experiment, in seconds.
        progress: show the study's progress.

    Returns:
        The comparison; failed experiments are included with the reason.

    Raises:
        RequestError: if the request is wrong; nothing was started.
    """
    study = Study.of(
        models,
        quantizers,
        evaluators,
        vectors=vectors,
        baseline=baseline,
        margin=margin,
        limit=limit,
        until_sure=until_sure,
        seed=seed,
    )
    ui = WithProgress() if progress else Quiet()
    return run_study(study, executor=executor, store=store, fresh=fresh, timeout_s=timeout_s, ui=ui)


@plain_arguments
def run_study(
    study: Study,
    *,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
    timeout_s: float | None = None,
    ui: Ui | None = None,
) -> Comparison:
    """Run a study; `compare` and the command line call this function.

    Args:
        ui: where progress and questions go; ``None`` is `Quiet`.

    Raises:
        RequestError: if the request is wrong, the executor refuses, or the cost was not confirmed; nothing was started.
    """
    with open_executor(executor) as where:
        planned = resolve(study, registry(), Cache.default(), where, fresh=fresh)
        return _run(planned, where, store, fresh, timeout_s, ui or Quiet())


@plain_arguments
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
        if study.until_sure:
            raise UnsupportedError(
                "a detached study cannot stop when its verdicts are sure: this program decides after each slice",
                hint="Leave out --detach, and use nohup, tmux or screen.",
            )
        planned = resolve(study, registry(), Cache.default(), where, fresh=fresh)
        scheduler = _begin(planned, where, store, fresh, None, ui or Quiet())
        try:
            waiting = scheduler.submit_all()
        finally:
            left = scheduler.stop(cancel=False)
    return Submitted(planned.record.study_id, left, waiting)


@plain_arguments
def attach(
    study: str, *, executor: str | Executor, store: str | Path | Store = "results", ui: Ui | None = None
) -> Comparison:
    """Wait for a study submitted by `submit_study`, and copy its results into the store.

    Experiments that were not submitted, or whose job was lost, are not started; `compare` with the same arguments
    starts these experiments.

    Args:
        study: the study's id, as `submit_study` returned it.
        executor: the executor that the study was submitted to.
        store: folder of the results; a study that is missing there is copied from the executor if possible.

    Raises:
        StoreError: if neither the store nor the executor has the study.
    """
    store = store if isinstance(store, Store) else Store(store)
    with open_executor(executor) as where:
        if study not in store.studies():
            where.recall(study, store.root)
        planned = Planned(store.read_study(study, StudyRecord.from_json), {}, (), (), {})
        scheduler = Scheduler(planned, registry(), store, where)
        scheduler.take_up()
        return _watched(scheduler.wait, scheduler, ui or Quiet(), where)


@plain_arguments
def run_experiment(
    experiment: Experiment,
    *,
    inputs: Mapping[Digest, Path] | None = None,
    executor: str | Executor = "local",
    store: str | Path | Store = "results",
    fresh: bool = False,
) -> Run:
    """Run one experiment of a comparison again or on another executor.

    Args:
        inputs: paths of the files named in the experiment's options, by content digest.
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
    """Prepare an executor for a study's jobs, so that such studies start sooner.

    Returns:
        The names of what was deployed.

    Raises:
        RequestError: as `run_study`; also if the executor does not support deploy.
    """
    with open_executor(executor) as where:
        deploy = getattr(where, "deploy", None)
        if deploy is None:
            raise UnsupportedError(f"executor {where.name!r} does not support deploy", hint="Use --on modal.")
        planned = resolve(study, registry(), Cache.default(), where)
        with TemporaryDirectory(prefix="llmquant-empty-") as empty:  # stored experiments need an app as well
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
    return _watched(functools.partial(_until_sure, scheduler), scheduler, ui, executor)


def _until_sure(scheduler: Scheduler, watch: Watch) -> Mapping[RunId, Run]:
    """Run the missing experiments; slices of documents follow each other until every verdict is sure."""
    if not has_slices(scheduler.record):
        return scheduler.run(watch)
    while True:
        rows = Comparison.of(scheduler.record, scheduler.store, scheduler.runs).rows()
        known = len(scheduler.runs)
        scheduler.run(watch, needed(scheduler.record, scheduler.runs, rows))
        if len(scheduler.runs) == known:
            return scheduler.runs


def _begin(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    fresh: bool,
    timeout_s: float | None,
    ui: Ui,
) -> Scheduler:
    """Refuse missing rows, show the plan, confirm its cost, write the study's record and take up running jobs."""
    if timeout_s is not None and not timeout_s > 0:
        raise OptionError(f"timeout must be a number of seconds above 0, found {timeout_s!r}")
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    planned = replace(planned, record=replace(planned.record, started_at=now))
    store = store if isinstance(store, Store) else Store(store)
    scheduler = Scheduler(planned, registry(), store, executor, fresh=fresh, timeout_s=timeout_s)
    if not (executor.outlives or executor.installs):  # workers on this machine, which read its cache
        missing = [e for e in planned.record.experiments if e.run_id not in scheduler.runs]
        uses = [use for e in missing for use in (e.variant.quantizer, e.evaluator)]
        chosen = [each for each in (*planned.quantizers, *planned.evaluators) if each.use in uses]
        refuse_missing_rows(chosen, Cache.default())
        refuse_too_large(planned, missing, executor)
    ui.planned(planned, executor)
    _ask(scheduler, ui)
    store.write_study(planned.record.study_id, planned.record.to_json())
    if not fresh and scheduler.take_up():  # jobs were lost meanwhile, and their experiments have no price yet
        _ask(scheduler, ui)
    return scheduler


def _ask(scheduler: Scheduler, ui: Ui) -> None:
    """Let the executor refuse experiments that cannot run, and ask to confirm the cost of the rest."""
    offer = scheduler.check()
    if offer is not None and not ui.agree(offer):
        raise OptionError(
            f"the cost was not confirmed: {offer.text}", hint="Give the executor a budget=DOLLARS or yes=true."
        )


def _watched(
    work: Callable[[Watch], Mapping[RunId, Run]], scheduler: Scheduler, ui: Ui, executor: Executor
) -> Comparison:
    """Show progress while `work` runs; on any error, leave only jobs that `attach` can find again."""
    try:
        with ui.progress() as watch:
            runs = work(watch)
    except KeyboardInterrupt:
        scheduler.stop(cancel=not executor.outlives or ui.interrupted(scheduler.record.study_id))
        raise _interrupt(scheduler) from None
    except BaseException:  # such as a full disk
        scheduler.stop(cancel=not executor.outlives)
        raise
    return Comparison.of(scheduler.record, scheduler.store, runs)


def _interrupt(scheduler: Scheduler) -> KeyboardInterrupt:
    """Say what is stored; a notebook shows this line alone, without a traceback."""
    stored = sum(run.status == "completed" for run in scheduler.runs.values())
    where = str(scheduler.store.root).removeprefix(f"{Path.cwd()}{os.sep}")
    total = len(scheduler.record.experiments)
    line = f"interrupted: {stored} of {total} experiments are stored in {where}; the same {{}} continues"
    # An instance, because Python ends with SIGINT's exit code only after KeyboardInterrupt itself, not a subclass.
    error = KeyboardInterrupt(line.format("command"))
    vars(error)["_render_traceback_"] = lambda: [line.format("call")]  # IPython asks for it
    return error


def register(spec: PluginSpec) -> None:
    """Add a plugin from a notebook or script.

    Raises:
        PluginError: if a worker process cannot import the plugin's classes.
    """
    registry().register(spec)
