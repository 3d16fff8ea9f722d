"""A study's results: rows, samples, and their presentation as text, HTML, CSV and JSON."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import OptionError, RequestError, StoreError, raise_all, require_known
from llmquant.results.analysis import analyse
from llmquant.results.costs import per_dollar_rows
from llmquant.results.pareto import ParetoPoint, pareto
from llmquant.results.reading import read_runs
from llmquant.results.recommend import Limits, Recommendation, recommend
from llmquant.results.row import Row, by_model
from llmquant.results.slices import joined, with_needed
from llmquant.storage.store import Store
from llmquant.study.counting import counted
from llmquant.study.experiment import RunId, path_of
from llmquant.study.margins import loss_margins, read_margins, without_score
from llmquant.study.neutral import json_text
from llmquant.study.plain import plain_methods
from llmquant.study.reading import load
from llmquant.study.record import StudyRecord
from llmquant.study.run import SCHEMA_VERSION, Run, Sample

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from llmquant.results.changes import Change, DocumentChange


@plain_methods
class Comparison:
    """Variants compared with their baseline; shown as HTML in a notebook and printed as a table.

    Attributes:
        record: the study with its experiments, baselines and notes.
        runs: runs by id, including failed ones.
        dollars: estimated cost of each run in dollars, by id; empty if running was free.
    """

    def __init__(
        self,
        record: StudyRecord,
        runs: Mapping[RunId, Run],
        samples: Callable[[RunId], Mapping[str, Sequence[Sample]]],
        files: Callable[[Run], Path | None] = lambda run: None,
        dollars: Mapping[RunId, float] | None = None,
        prompts: Callable[[Collection[str]], Mapping[str, str]] = lambda hashes: {},
    ) -> None:
        self.record = record
        self.runs = dict(runs)
        self.dollars = dict(dollars or {})
        self._samples = samples
        self._files = files
        self._prompts = prompts

    @classmethod
    def from_store(cls, store: Store | str | Path, study: str | None = None) -> Comparison:
        """Read a study from a store.

        Args:
            study: a study's id or its beginning; ``None`` for the newest study.

        Raises:
            StoreError: if there is no such store or study.
        """
        store = store if isinstance(store, Store) else Store.existing(store)
        known = store.studies()
        found = [name for name in known if name.startswith(study or "")]
        if not found or (study is not None and len(found) > 1):
            what = f"{'several studies begin with' if found else 'no study is called'} {study!r}"
            raise StoreError(what, hint=f"Studies in {store.root}: {', '.join(found or known)}")
        return cls.of(store.read_study(found[-1], StudyRecord.from_json), store)

    @classmethod
    def of(cls, record: StudyRecord, store: Store, runs: Mapping[RunId, Run] | None = None) -> Comparison:
        """Collect a study's stored runs.

        Args:
            runs: the runs to show; ``None`` for all, with the attempt that `Store.run` chooses; a run that cannot be
                read is missing, with a note.
        """
        if runs is None:
            runs, notes = read_runs(record, store)
            record = replace(record, notes=(*record.notes, *notes))
        known = dict(runs)

        def samples(run_id: RunId) -> Mapping[str, Sequence[Sample]]:
            return store.samples(known[run_id]) if run_id in known else {}

        shown, together, read, dollars = joined(record, known, samples, store.dollars(record.study_id))
        return cls(shown, together, read, store.files, dollars, store.prompts)

    @classmethod
    def load(cls, path: str | Path) -> Comparison:
        """Read what `save_json` wrote.

        Raises:
            DamagedError: if the file is something else.
            StoreError: if a newer version wrote it.
        """
        from llmquant.results.report.export import from_portable_json

        hint = "Write it again with Comparison.save_json or `llmquant report STORE -f json`."
        record, runs, samples, dollars, prompts = load(path_of(path), from_portable_json, hint=hint)

        def texts(hashes: Collection[str]) -> dict[str, str]:
            return {key: prompts[key] for key in hashes if key in prompts}

        return cls(record, runs, lambda run_id: samples.get(run_id, {}), dollars=dollars, prompts=texts)

    def at_margin(self, margin: float | str | Sequence[float | str] | Mapping[str, float]) -> Comparison:
        """Return the same results, judged at other margins.

        Args:
            margin: the largest acceptable loss, as `compare` takes it.

        Raises:
            OptionError: if it is something else, or for a score that was not measured, unless a run failed.
        """
        margins = read_margins(margin)
        quality = [run for run in self.runs.values() if run.experiment.hardware is None]
        measured = {each.metric for run in quality for each in run.measurements if each.higher_is_better is not None}
        if not self.failed:  # a failed run might have measured others
            raise_all(without_score({name: margins[name] for name in margins.keys() - self.record.margins}, measured))
        record = replace(self.record, margins=margins)
        return Comparison(record, self.runs, self._samples, self._files, self.dollars, self._prompts)

    @property
    def failed(self) -> list[Run]:
        """The failed runs."""
        return [run for run in self.runs.values() if run.status == "failed"]

    def rows(self) -> list[Row]:
        """Return tidy rows, one per measurement and per mean over tasks, with the difference from the baseline."""
        return list(self._analysed[0])

    def changes(self) -> list[Change]:
        """Return what changed in the answers, one record per variant and task that pairs with its baseline."""
        return list(self._analysed[1])

    @cached_property
    def _analysed(self) -> tuple[Sequence[Row], Sequence[Change]]:
        rows, changes = analyse(self.record, self.runs, self._samples)
        rows = [with_needed(replace(row, dollars=self.dollars.get(row.run_id)), self.record.limit) for row in rows]
        return [*rows, *per_dollar_rows(rows, {name: run.seconds for name, run in self.runs.items()})], changes

    def recommend(
        self,
        *,
        max_memory: float | str | None = None,
        max_latency: float | None = None,
        max_loss: float | str | Sequence[float | str] | None = None,
        gpu: str | None = None,
        model: str | None = None,
    ) -> Recommendation:
        """Name the variant of least peak memory whose loss is proven acceptable and that meets every limit.

        Args:
            max_memory: peak memory while running, in bytes or as ``"8GiB"``.
            max_latency: milliseconds per decoded token (for embedders: per query) on the measured hardware.
            max_loss: the largest acceptable loss, as `compare` takes its margin; a plain number is points of scores and
                percent of perplexity. ``None`` for the study's margins.
            gpu: a GPU whose memory limits `max_memory`, for example ``"L40S"``.
            model: name of the model, if the study has several.

        Raises:
            OptionError: if a limit is wrong, or the study has several models and none is named.
            RequestError: if no variant was compared with a baseline.
        """
        limits = Limits.of(max_memory, max_latency, gpu)
        found = self.recommendations(limits, max_loss)
        chosen = [each for each in found if model in (None, each.model)]
        if not found:
            raise RequestError(
                "nothing can be recommended: no variant was compared with a baseline",
                hint="Add an evaluator of quality, for example -t coqa, and a baseline.",
            )
        if len(chosen) != 1:
            names = ", ".join(each.model for each in found)
            raise OptionError(f"model is {model!r}; the study has {names}", hint="Give the name of one of them.")
        return chosen[0]

    def recommendations(
        self, limits: Limits | None = None, max_loss: float | str | Sequence[float | str] | None = None
    ) -> list[Recommendation]:
        """Return a recommendation for each model that has variants to compare."""
        from llmquant.results.usage import usage

        judged = self if max_loss is None else self.at_margin(loss_margins(max_loss, self.record.margins))
        found = [
            recommend(rows, limits or Limits(), usage(self.record, rows[0].model_digest))
            for rows in by_model(judged.rows())
        ]
        return [each for each in found if each is not None]

    def pareto(self) -> list[ParetoPoint]:
        """Return each variant's quality, memory and latency, and how likely it is on the Pareto front."""
        return pareto(self.rows())

    def samples(self) -> dict[RunId, Mapping[str, Sequence[Sample]]]:
        """Return the scored documents by run and task."""
        return {run_id: self._samples(run_id) for run_id, run in self.runs.items() if run.measurements}

    def flipped(
        self,
        variant: str | None = None,
        task: str | None = None,
        limit: int = 20,
        *,
        metric: str | None = None,
        model: str | None = None,
    ) -> list[DocumentChange]:
        """Return the documents whose score changed most, with both answers.

        Args:
            variant: ``None`` for all; ``task`` likewise.
            limit: maximum number of documents per variant and task, at most 50.
            metric: ``None`` for each task's first one.
            model: ``None`` for all.

        Raises:
            UnknownNameError: if there is no such variant, task, metric or model with changes.
            OptionError: if the limit is too high.
        """
        from llmquant.results.changes import MOST_DOCUMENTS, with_prompts

        if not 1 <= limit <= MOST_DOCUMENTS:
            raise OptionError(f"limit is {limit}", hint=f"Give 1 to {MOST_DOCUMENTS}; samples_frame() returns all.")
        found = self.changes()
        require_known("model", model, {change.model for change in found})
        require_known("variant", variant, {change.variant for change in found})
        require_known("task", task, {change.task for change in found})
        require_known("metric", metric, {score.metric for change in found for score in change.scores})
        documents: list[DocumentChange] = []
        for change in found:
            asked = ((model, change.model), (variant, change.variant), (task, change.task))
            if change.scores and all(wanted in (None, own) for wanted, own in asked):
                first = metric or change.scores[0].metric
                documents += [one for one in change.documents_changed if one.metric == first][:limit]
        return with_prompts(documents, self._prompts)

    def samples_frame(self, variant: str | None = None, task: str | None = None) -> pd.DataFrame:
        """Return a data frame with one line per variant, document and metric: scores and answers beside the baseline's.

        Args:
            variant: ``None`` for all; ``task`` likewise.

        Raises:
            UnknownNameError: if there is no such variant or task.
            MissingDependencyError: if pandas is not installed.
        """
        from llmquant.results.report.export import samples_frame

        require_known("variant", variant, {row.variant for row in self.rows()})
        require_known("task", task, {row.task for row in self.rows()})
        rows = [row for row in self.rows() if row.is_baseline or variant in (None, row.variant)]
        return samples_frame([row for row in rows if task in (None, row.task)], self._samples, self._prompts)

    def prompt(self, digest: str) -> str | None:
        """Return the text of the prompt with the hash `Sample.prompt`; ``None`` if it was not kept."""
        return self._prompts([digest]).get(digest)

    def to_frame(self, *, all: bool = False) -> pd.DataFrame:  # noqa: A002 - the word for it
        """Return `rows` as a data frame: one line per variant and main metric, with its difference and verdict.

        Args:
            all: return every row with every field of `Row` instead.

        Raises:
            MissingDependencyError: if pandas is not installed.
        """
        from llmquant.results.report.export import narrow_frame, to_frame

        return to_frame(self.rows()) if all else narrow_frame(self.rows())

    def to_text(self, *, width: int = 120, explain: bool = False) -> str:
        """Return the summary as plain text; with `explain`, all footnotes and items of lists, not only the first."""
        from llmquant.results.report.summary import tables
        from llmquant.results.report.text import render

        return render(tables(self), width, explain=explain)

    def to_markdown(
        self, limits: Limits | None = None, max_loss: float | str | Sequence[float | str] | None = None
    ) -> str:
        """Return the report as Markdown; `limits` and `max_loss` as in `to_html`."""
        from llmquant.results.report.markdown import to_markdown_report

        return to_markdown_report(self, limits, max_loss)

    def to_model_card(self, variant: str) -> str:
        """Return a model card of a variant for the Hub: its results as ``model-index``, verdict, tables and protocol.

        Raises:
            UnknownNameError: if there is no such variant.
        """
        from llmquant.results.report.hub import model_card

        return model_card(self, variant)

    def to_eval_results(self, variant: str) -> dict[str, str]:
        """Return a variant's results as the Hub's ``.eval_results/*.yaml`` files, by path, for data sets of the Hub.

        Raises:
            UnknownNameError: if there is no such variant.
        """
        from llmquant.results.report.hub import eval_results

        return eval_results(self, variant)

    def plot(self) -> Figure:
        """Return a matplotlib figure: the differences over all tasks, and quality against memory and latency.

        Raises:
            MissingDependencyError: if matplotlib is not installed.
            RequestError: if no variant was compared with a baseline.
        """
        from llmquant.results.report.plot import plot

        return plot(self.rows(), self.pareto())

    def to_csv(self) -> str:
        """Return `rows` as comma-separated values."""
        from llmquant.results.report.export import to_csv

        return to_csv(self.rows())

    def to_json(self) -> dict[str, Any]:  # Any: a JSON object
        """Return the study as one JSON object, samples included; `load` reads it."""
        from llmquant.results.report.export import portable_json

        return portable_json(self.record, self.runs, self.samples(), self.dollars, self._prompts)

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

    def to_html(self, limits: Limits | None = None, max_loss: float | str | Sequence[float | str] | None = None) -> str:
        """Return the study as one self-contained page: the verdict, charts, tables, and how it was made.

        Args:
            limits: what a recommended variant may need.
            max_loss: the largest acceptable loss of a recommended variant.
        """
        from llmquant.results.report.page import to_html_page

        return to_html_page(self, self._files, limits, max_loss)

    def save_html(self, path: str | Path) -> None:
        """Write `to_html` to a file."""
        path_of(path).write_text(self.to_html(), encoding="utf-8")

    def save_parquet(self, path: str | Path) -> None:
        """Write `rows` to a Parquet file."""
        from llmquant.results.report.export import write_parquet

        write_parquet(self.rows(), path_of(path))

    def save_json(self, path: str | Path) -> None:
        """Write the study to one portable file."""
        path_of(path).write_text(json_text(self.to_json()), encoding="utf-8")

    def __str__(self) -> str:
        return self.to_text()

    def __repr__(self) -> str:
        variants = {
            (v.model.digest, v.quantizer.label, v.vectors) for v in (e.variant for e in self.record.experiments)
        }
        done = sum(run.status == "completed" for run in self.runs.values())
        size = f"{counted(len(variants), 'variant')}, {done} of {len(self.record.experiments)} experiments completed"
        return f"<Comparison {self.record.study_id}: {self.record.title}, {size}>"

    def _repr_html_(self) -> str:
        from llmquant.results.report.html import to_html_table
        from llmquant.results.report.summary import answer_first, tables

        return to_html_table(answer_first(tables(self)))
