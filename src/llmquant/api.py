"""The main job: run a study, and look at what it gave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant import comparison
from llmquant.cache import Cache
from llmquant.call import Call, Json
from llmquant.comparison import Row, StudyRecord
from llmquant.errors import OptionError, StoreError
from llmquant.experiment import Digest, Experiment, ModelRequest, RunId, VectorGrid
from llmquant.plan import Planned, resolve
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.protocols import Executor
from llmquant.run import SCHEMA_VERSION, Run, Sample
from llmquant.scheduler import Progress, Scheduler
from llmquant.store import Store
from llmquant.study import Study

if TYPE_CHECKING:
    import pandas as pd

Model = str | Path | ModelRequest
Plugin = str | Call | Mapping[str, Json]


class Comparison:
    """Variants beside their baseline. It shows itself in a notebook and prints as a table.

    Attributes:
        record: the study: its experiments, baselines and notes.
        runs: by id; failed ones too.
    """

    def __init__(
        self,
        record: StudyRecord,
        runs: Mapping[RunId, Run],
        samples: Callable[[RunId], Mapping[str, Sequence[Sample]]],
        files: Callable[[Run], Path] = lambda run: Path(),
    ) -> None:
        self.record = record
        self.runs = dict(runs)
        self._samples = samples
        self._files = files

    @classmethod
    def from_store(cls, store: Store | str | Path, study: str | None = None) -> Comparison:
        """Read a study from a store.

        Args:
            study: its id or the start of it; ``None`` is the newest.

        Raises:
            StoreError: if there is no such store or study.
        """
        store = store if isinstance(store, Store) else Store.existing(store)
        known = store.studies()
        found = [name for name in known if name.startswith(study or "")]
        if not found or (study is not None and len(found) > 1):
            raise StoreError(f"no study is called {study!r}", hint=f"Studies in {store.root}: {', '.join(known)}")
        record = StudyRecord.from_json(store.read_study(found[-1]))
        runs = {e.run_id: run for e in record.experiments if (run := store.run(e.run_id)) is not None}
        return cls(record, runs, _reader(store, runs), store.files)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read what `save_json` wrote.

        Raises:
            StoreError: if it is no such file, or a newer version wrote it.
        """
        from llmquant.report.portable import from_portable_json

        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"cannot read {path}: {error}") from error
        record, runs, samples = from_portable_json(data)
        return cls(record, runs, lambda run_id: samples.get(run_id, {}))

    @property
    def failed(self) -> list[Run]:
        """Runs that failed."""
        return [run for run in self.runs.values() if run.status == "failed"]

    def rows(self) -> list[Row]:
        """Return tidy rows: a measurement each, with its difference to the baseline."""
        return comparison.rows(self.record, self.runs, self._samples)

    def samples(self) -> dict[RunId, Mapping[str, Sequence[Sample]]]:
        """Return the scored documents by run and task."""
        return {run_id: self._samples(run_id) for run_id, run in self.runs.items() if run.status == "completed"}

    def to_frame(self) -> pd.DataFrame:
        """Return `rows` as a data frame.

        Raises:
            MissingDependencyError: if pandas is not installed.
        """
        from llmquant.report.frame import to_frame

        return to_frame(self.rows())

    def to_text(self, *, width: int = 120) -> str:
        """Return the summary as plain text."""
        from llmquant.report.tables import summary
        from llmquant.report.terminal import render

        return render(summary(self.rows(), self.record), width)

    def to_markdown(self) -> str:
        """Return the summary as Markdown."""
        from llmquant.report.markdown import to_markdown
        from llmquant.report.tables import summary

        return to_markdown(summary(self.rows(), self.record))

    def to_csv(self) -> str:
        """Return `rows` as comma-separated values."""
        from llmquant.report.flat import to_csv

        return to_csv(self.rows())

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the study as one JSON object, samples included; `load` reads it."""
        from llmquant.report.portable import portable_json

        return portable_json(self.record, self.runs, self.samples())

    def rows_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return `rows` and the failures as one JSON object, for scripts."""
        failures = [
            {
                "run_id": run.run_id,
                "quantizer": run.experiment.variant.quantizer.label,
                "evaluator": run.experiment.evaluator.label,
                **vars(run.failure),
            }
            for run in self.failed
            if run.failure is not None
        ]
        return {
            "schema_version": SCHEMA_VERSION,
            "study": self.record.study_id,
            "notes": list(self.record.notes),
            "rows": [row.to_json() for row in self.rows()],
            "failures": failures,
        }

    def to_html(self) -> str:
        """Return the study as one self-contained page: its tables, and the queries that embedders answer worst."""
        from llmquant.report.html_page import to_html_page

        return to_html_page(self.rows(), self.record, self.runs, self._files)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file."""
        Path(path).write_text(self.to_html(), encoding="utf-8")

    def save_json(self, path: str | Path) -> None:
        """Write the study to one portable file."""
        Path(path).write_text(json.dumps(self.to_json(), indent=1, ensure_ascii=False), encoding="utf-8")

    def __str__(self) -> str:
        return self.to_text()

    def _repr_html_(self) -> str:
        from llmquant.report.html_table import to_html_table
        from llmquant.report.tables import summary

        return to_html_table(summary(self.rows(), self.record))


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
        fresh: repeat what is stored; nothing is deleted.
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
        planned = resolve(study, registry(), Cache.default(), where)
        return execute(planned, where, store, fresh=fresh, timeout_s=timeout_s, progress=progress)


def execute(
    planned: Planned,
    executor: Executor,
    store: str | Path | Store,
    *,
    fresh: bool = False,
    timeout_s: float | None = None,
    progress: bool = True,
) -> Comparison:
    """Run what has been planned and is not in the store."""
    from llmquant.report.progress import show_progress

    if timeout_s is not None and timeout_s <= 0:
        raise OptionError(f"timeout must be above 0 s, found {timeout_s:g}")
    store = store if isinstance(store, Store) else Store(store)
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    planned = replace(planned, record=replace(planned.record, started_at=now))
    store.write_study(planned.record.study_id, planned.record.to_json())
    shown: AbstractContextManager[Callable[[Progress], None]] = (
        show_progress() if progress else nullcontext(lambda state: None)
    )
    with shown as watch:
        scheduler = Scheduler(planned, registry(), store, executor, fresh=fresh, timeout_s=timeout_s, watch=watch)
        runs = scheduler.run()
    return Comparison(planned.record, runs, _reader(store, runs), store.files)


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
    opened: Executor = registry().construct(registry().choose("executor", Call.parse(executor)))
    try:
        yield opened
    finally:
        opened.close()


def _reader(store: Store, runs: Mapping[RunId, Run]) -> Callable[[RunId], Mapping[str, Sequence[Sample]]]:
    return lambda run_id: store.samples(runs[run_id]) if run_id in runs else {}
