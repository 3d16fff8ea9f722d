"""Studies that stop when they are sure: slices of documents, shared by all variants, until each verdict is sure."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import llmquant as lq
from llmquant import api
from llmquant.errors import OptionError, UnsupportedError
from llmquant.planning.resolve import Planned
from llmquant.plugins.executor import JobState
from llmquant.plugins.registry import registry
from llmquant.results.precision import precisions
from llmquant.results.preview import preview
from llmquant.results.row import Row
from llmquant.running.scheduler import Scheduler
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.experiment import Documents, Experiment, Variant
from llmquant.study.record import StudyRecord
from llmquant.study.run import Result, Sample
from llmquant.study.slices import Slice, slices
from made_up import MODEL, completed, evaluator, failed
from memory_executor import MemoryExecutor, Worker
from subjects import load_subject

TOTAL = 1000
BASE, EQUAL, WORSE, CLOSE = "bf16_baseline", "bnb_8bit", "bnb_4bit_fp4", "bnb_4bit_nf4"


def answers() -> dict[str, np.ndarray]:
    """Make each variant's right and wrong answers: equal, clearly worse, and worse by about the margin."""
    rng = np.random.default_rng(0)
    base = (rng.random(TOTAL) < 0.6).astype(float)
    lost = np.where(rng.random(TOTAL) < 0.3, 0.0, base)
    close = base.copy()
    changed = rng.permutation(TOTAL)[:120]
    close[changed] = 1 - close[changed]
    return {BASE: base, EQUAL: base, WORSE: lost, CLOSE: close}


pytestmark = pytest.mark.usefixtures("no_waiting")


class Study:
    """A study of made-up answers, in a store, without processes.

    Args:
        scores: of every document, by variant.
        fails: variant whose second slice fails.
        most: number of slices after which the user interrupts.
    """

    def __init__(
        self, folder: Path, scores: dict[str, np.ndarray], limit: int | None = None, fails: str = "", most: int = 99
    ) -> None:
        self.store, self.scores, self.fails, self.most = Store(folder), scores, fails, most
        self.asked: list[tuple[str, int]] = []
        uses = {label: registry().choose("quantizer", Call(label)).use for label in scores}
        experiments = tuple(
            Experiment(Variant(MODEL, use), evaluator("lm_eval(task)"), Documents(slice=each), 0)
            for use in uses.values()
            for each in slices(limit)
        )
        self.record = StudyRecord("study", "title", experiments, {MODEL.digest: BASE}, limit=limit)

    def scheduler(self) -> Scheduler:
        planned = Planned(self.record, {}, (), (), {})
        return Scheduler(planned, registry(), self.store, MemoryExecutor(self._work))

    def run(self) -> lq.Comparison:
        return lq.Comparison.of(self.record, self.store, api._until_sure(self.scheduler(), lambda state: None))

    def _work(self, worker: Worker) -> Iterator[JobState]:
        if len(self.asked) == self.most:
            raise KeyboardInterrupt
        worker.load()
        store = Store(worker.store)
        for data, attempt in worker.job.experiments:
            experiment = Experiment.from_json(data)
            label, chosen = experiment.variant.quantizer.label, experiment.documents.slice
            self.asked.append((label, chosen.start))
            worker.journal.write("started", experiment.run_id)
            result = self._result(label, sorted(chosen.places(TOTAL, experiment.seed)))
            run = completed(experiment, *result.measurements)
            run = replace(run, attempt=attempt, details={"task": result.details})
            if label == self.fails and chosen.start:
                run = replace(failed(experiment, "error", "it broke"), attempt=attempt)
            store.commit(run, store.begin(), {} if run.failure else {"task": result.samples})
            worker.journal.write("finished", run.run_id)
        yield "ended"

    def _result(self, label: str, places: Sequence[int]) -> Result:
        samples = [
            Sample(f"document {place}", f"prompt {place}", {"acc": self.scores[label][place]}) for place in places
        ]
        return Result.from_samples(
            "task", samples, "acc", higher_is_better=True, details={"documents_total": TOTAL, "notes": ["a note"]}
        )


def by_variant(found: lq.Comparison) -> dict[str, Row]:
    return {row.variant: row for row in found.rows() if not row.pooled}


def test_a_variant_stops_as_soon_as_its_verdict_is_sure(tmp_path: Path):
    """The baseline goes on with those that are undecided; what is never sure earlier is exact at the end."""
    study = Study(tmp_path, answers())
    rows = by_variant(study.run())
    assert [rows[label].verdict for label in (EQUAL, WORSE, CLOSE)] == ["no worse", "worse", "worse"]
    assert [rows[label].n for label in (BASE, CLOSE)] == [TOTAL, TOTAL]
    assert rows[CLOSE].difference_low == rows[CLOSE].difference == rows[CLOSE].difference_high
    assert rows[CLOSE].difference == pytest.approx((study.scores[CLOSE] - study.scores[BASE]).mean())
    starts = {label: [start for asked, start in study.asked if asked == label] for label in study.scores}
    assert starts[BASE] == starts[CLOSE] == [0, 50, 100, 200, 400, 800]
    assert len(starts[WORSE]) < len(starts[EQUAL]) < len(starts[BASE])
    for label in (EQUAL, WORSE):
        assert starts[label] == starts[BASE][: len(starts[label])]
        n = 50 * 2 ** (len(starts[label]) - 1)
        assert (rows[label].n, rows[label].interval_method) == (n, "betting sequence")
        assert rows[label].baseline_value == pytest.approx(rows[label].value - rows[label].difference)
        assert f"{n} of 1,000 documents were needed, {1000 - n} were saved" in rows[label].evaluator_note


def test_slices_together_are_one_measurement(tmp_path: Path):
    """The value, its error and the samples are those of all documents at once; notes are given once."""
    study = Study(tmp_path, {BASE: answers()[BASE], CLOSE: np.random.default_rng(1).random(TOTAL)}, limit=400)
    found = study.run()
    row = by_variant(found)[CLOSE]
    scores = [sample.scores["acc"] for sample in found.samples()[row.run_id]["task"]]
    assert row.n == len(scores)
    assert row.value == pytest.approx(np.mean(scores))
    assert row.stderr == pytest.approx(np.std(scores, ddof=1) / np.sqrt(len(scores)))
    order = Slice(0, 400).places(TOTAL, 0)[: row.n]
    assert [sample.document for sample in found.samples()[row.run_id]["task"]] == [f"document {n}" for n in order]
    assert row.evaluator_note.count("a note") == 1


def test_a_limit_is_the_maximum_and_a_larger_one_continues(tmp_path: Path):
    """An undecided variant has used the documents up; the same study with more of them scores only those."""
    scores = {label: answers()[label] for label in (BASE, CLOSE)}
    first = by_variant(Study(tmp_path, scores, limit=100).run())[CLOSE]
    assert (first.verdict, first.n) == ("undecided", 100)
    assert "undecided after 100 of 100 documents" in first.evaluator_note
    more = Study(tmp_path, scores, limit=300)
    assert by_variant(more.run())[CLOSE].n == 300
    assert {start for _, start in more.asked} == {100, 200}
    assert Study(tmp_path, scores, limit=300).run().rows() == more.run().rows()


def test_an_interrupted_study_continues_from_its_slices(tmp_path: Path):
    """What is stored counts, and is shown as undecided so far; the same command asks for the rest."""
    study = Study(tmp_path, answers(), most=6)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    so_far = by_variant(lq.Comparison.of(study.record, study.store))
    assert [so_far[label].n for label in study.scores] == [100, 100, 50, 50]
    again = Study(tmp_path, answers())
    assert [row.n for row in again.run().rows()] == [row.n for row in Study(tmp_path / "other", answers()).run().rows()]
    assert not set(again.asked) & set(study.asked)


def test_a_failed_slice_ends_its_variant(tmp_path: Path):
    """Its earlier slices have rows; without a baseline nothing else is asked for."""
    rows = Study(tmp_path / "variant", answers(), fails=CLOSE).run().rows()
    statuses = [(row.status, row.n) for row in rows if row.variant == CLOSE and not row.pooled]
    assert statuses == [("completed", 50), ("failed", None)]
    study = Study(tmp_path / "baseline", answers(), fails=BASE)
    study.run()
    assert max(start for _, start in study.asked) == 50


def test_scores_outside_0_to_1_run_whole(tmp_path: Path):
    """They have no interval that stays valid, and say so."""
    scores = {label: 3 * values[:] for label, values in answers().items() if label in (BASE, WORSE)}
    row = by_variant(Study(tmp_path, scores, limit=200).run())[WORSE]
    assert (row.n, row.difference_low) == (200, None)
    assert "only scores from 0 to 1" in row.no_interval


def test_no_signal_is_sure_once_its_interval_is(tmp_path: Path):
    """Fifty documents that every variant gets wrong do not show that the others will be wrong, too."""
    scores = {label: np.zeros(TOTAL) for label in (BASE, EQUAL)}
    row = by_variant(Study(tmp_path, scores).run())[EQUAL]
    assert row.verdict == "no signal"
    assert 50 < row.n < TOTAL
    assert abs(row.no_worse_than) < row.margin


def test_a_price_is_that_of_all_slices(tmp_path: Path):
    """Each may need a job of its own."""
    jobs = Study(tmp_path, answers(), limit=200).scheduler().jobs()
    assert len(jobs) == 4 * len(slices(200)) == 12


def test_a_stored_study_is_what_was_returned(tmp_path: Path):
    """From the store and from a portable file."""
    study = Study(tmp_path, answers())
    found = study.run()
    study.store.write_study("study", study.record.to_json())
    assert lq.Comparison.from_store(study.store).rows() == found.rows()
    assert "until_sure = true" in found.to_html()
    assert "95% intervals for this whole benchmark, valid at every look" in " ".join(found.to_text(width=999).split())
    found.save_json(tmp_path / "study.json")
    assert lq.Comparison.load(tmp_path / "study.json").rows() == found.rows()
    (pilot, *_) = precisions(study.record, study.store)  # a later study is planned from these documents
    assert (pilot.documents, pilot.pilot) == (TOTAL, True)


@pytest.mark.parametrize("limit", [None, 30, 50, 51, 400, 500])
def test_slices_have_every_document_once(limit: int | None):
    """In an order that depends on the seed, and not on how many are asked for."""
    total = 460
    places = [place for each in slices(limit) for place in each.places(total, 7)]
    assert places == Slice(0, limit).places(total, 7)
    assert len(set(places)) == len(places) == min(limit or total, total)
    assert places != sorted(places)
    assert places[:20] != Slice(0, 20).places(total, 8)


def test_the_ids_of_other_experiments_stay_as_they_were():
    """Only a slice enters an identity."""
    whole = Experiment(Variant(MODEL, evaluator("q")), evaluator("e"), Documents(50), 0)
    assert whole.to_json()["documents"] == {"limit": 50}
    part = replace(whole, documents=Documents(slice=Slice(50, 100)))
    assert part.run_id != whole.run_id
    assert Experiment.from_json(json.loads(json.dumps(part.to_json()))) == part


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    choices = {"text": ["salt", "the moon", "a box"], "label": ["A", "B", "C"]}
    rows = [
        {"id": str(n), "question": f"What is {n} plus {n % 7}?", "choices": choices, "answerKey": "ABC"[n % 3]}
        for n in range(120)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_slices_score_documents_as_the_full_run_does(tiny_model: Path, context, rows_file: Path):
    """Each document of lm-eval has the same prompt and scores in a slice."""
    from llmquant.evaluators.lm_eval.evaluator import LmEval
    from llmquant.evaluators.lm_eval.options import LmEvalOptions
    from llmquant.plugins.options import build

    subject = load_subject(tiny_model, context().cache)
    options = build(LmEvalOptions, Call.parse(f"lm_eval(arc_easy, data={rows_file})"))

    def scored(documents: Documents) -> list[Sample]:
        (result,) = LmEval(options).evaluate(subject, replace(context(), documents=documents))
        assert result.details["documents_total"] == 120
        # Rounding, which the margins of decisions show, depends on what is read together.
        return [replace(sample, decision_margin=None) for sample in result.samples]

    parts = [sample for each in slices(None)[:3] for sample in scored(Documents(slice=each))]
    document = operator.attrgetter("document")
    assert sorted(parts, key=document) == sorted(scored(Documents()), key=document)
    with pytest.raises(lq.errors.RunError, match="the slice after them is empty"):
        scored(Documents(slice=Slice(200, 400)))


def test_an_answer_of_a_slice_has_its_own_length(tiny_model: Path, context, tmp_path: Path):
    """Lengths, ends and margins are those of the document's own answer, in a slice as in the full run."""
    from llmquant.evaluators.lm_eval.evaluator import LmEval
    from llmquant.evaluators.lm_eval.options import LmEvalOptions
    from llmquant.plugins.options import build

    task, rows = tmp_path / "mine.yaml", tmp_path / "rows.jsonl"
    task.write_text(
        "task: mine\noutput_type: generate_until\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs: {until: [e], max_gen_toks: 8}\n"
    )
    rows.write_text("".join(f'{{"question": "{number * 7919} ships", "answer": "x"}}\n' for number in range(20)))
    options = build(LmEvalOptions, Call.parse(f"lm_eval({task}, data={rows}, verify=0)"))
    subject = load_subject(tiny_model, context().cache)

    def written(documents: Documents) -> dict[str, tuple[object, ...]]:
        (result,) = LmEval(options).evaluate(subject, replace(context(), documents=documents))
        assert all(sample.decision_margin is not None for sample in result.samples)
        return {s.document: (s.answer, s.generated, s.cut, s.looping) for s in result.samples}

    whole = written(Documents())
    assert len({generated for _, generated, _, _ in whole.values()}) > 2
    assert written(Documents(slice=Slice(0, 6))) | written(Documents(slice=Slice(6, 20))) == whole


def test_a_plan_lists_the_most_that_may_run(tiny_model: Path, rows_file: Path, task_index: None, tmp_path: Path):
    """Every slice up to the limit, and what runs whole with its reason."""
    (tmp_path / "text.txt").write_text("A bell hung over the mill. " * 50)
    text, task = f"perplexity({tmp_path / 'text.txt'})", f"lm_eval(arc_easy, data={rows_file})"
    study = lq.Study.of(tiny_model, ["bf16_baseline"], [task, text], limit=120, until_sure=True)
    assert lq.Study.from_json(study.to_json()) == study
    record = preview(study, store=tmp_path).record
    found = [e.documents.slice for e in record.experiments if e.documents is not None]
    assert found == [Slice(0, 50), Slice(50, 100), Slice(100, 120)]
    assert any("runs whole, not until sure: it has no documents" in note for note in record.notes)
    with pytest.raises(OptionError, match="until_sure needs an evaluator"):
        preview(replace(study, evaluators=(Call.parse(text),)), store=tmp_path)
    with pytest.raises(UnsupportedError, match="after each slice"):
        api.submit_study(study, executor=MemoryExecutor(outlives=True), store=tmp_path)
