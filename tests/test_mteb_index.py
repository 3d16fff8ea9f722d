"""The index of mteb's tasks: names, sizes and parts, and what is refused before anything is loaded."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys

import pytest

from embedding import build_subject
from llmquant.catalogs import mteb as mteb_index
from llmquant.catalogs.mteb import known_mteb, list_tasks, scanned_mteb
from llmquant.errors import MissingDependencyError, OptionError, RequestErrors, UnknownNameError, UnsupportedError
from llmquant.evaluators.mteb.options import MtebOptions
from llmquant.executors.local.executor import LocalExecutor
from llmquant.planning.resolve import resolve
from llmquant.plugins.options import dump, restore
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.record import StudyRecord
from llmquant.study.study import Study

pytest.importorskip("mteb")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Make the index in this process: a second one would import mteb for ten seconds."""
    root = tmp_path_factory.mktemp("mteb-index")
    patch = pytest.MonkeyPatch()

    def here(command, **kwargs):
        assert command[:2] == [sys.executable, "-m"]
        patch.setattr(sys, "argv", ["", *command[3:]])
        runpy.run_module(command[2], run_name="__main__")
        return subprocess.CompletedProcess(command, 0, "", "")

    with patch.context() as inner:
        inner.setattr(mteb_index.subprocess, "run", here)
        scanned_mteb(Cache(root))
    patch.undo()
    return root


@pytest.fixture
def index(root, monkeypatch):
    monkeypatch.setenv("LLMQUANT_CACHE", str(root))
    return known_mteb(Cache(root))


def info(tmp_path, **embedder):
    return build_subject(tmp_path, **embedder).info


def test_light_halves_import_nothing_heavy():
    """Options and the index are read where there is neither mteb nor torch."""
    code = (
        "import sys\n"
        "import llmquant.evaluators.mteb.options, llmquant.catalogs.mteb\n"
        "import llmquant.evaluators.page_set.options, llmquant.evaluators.page_set.queries\n"
        "print(sorted({'mteb', 'torch', 'numpy', 'datasets', 'pypdfium2', 'PIL'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_benchmarks_stand_for_their_tasks(index):
    """ViDoRe is as many tasks as mteb says, each with its metric and sizes."""
    first, second = index.expand("ViDoRe(v1)"), index.expand("ViDoRe(v2)")
    assert (len(first), len(second), len(index.expand("ViDoRe(v3)"))) == (10, 4, 10)
    task = index.tasks["VidoreDocVQARetrieval"]
    assert (task.type, task.category, task.main_score) == ("DocumentUnderstanding", "t2i", "ndcg_at_5")
    assert (task.queries, task.documents) == (451, 500)
    assert index.tasks["Vidore2ESGReportsRetrieval"].queries == 228
    assert index.tasks["Vidore3HrRetrieval"].languages == ["deu", "eng", "fra", "ita", "por", "spa"]
    assert index.tasks["Vidore3HrRetrieval"].main_score == "ndcg_at_10"


def test_tasks_that_are_means_of_others_stand_for_these(index):
    """CQADupstack is its twelve forums."""
    parts = index.expand("CQADupstackRetrieval")
    assert len(parts) == 12
    assert all(name in index.tasks for name, _, _ in parts)


def test_all_counted_tasks_have_sizes_that_can_be(index):
    """No task has fewer than one query or document."""
    retrieval = [task for task in index.tasks.values() if task.retrieval]
    assert all(size is None or size > 0 for task in retrieval for size in (task.queries, task.documents))
    assert sum(task.queries is not None for task in retrieval) > 0.95 * len(retrieval)


def test_every_benchmark_names_tasks_that_exist(index):
    """Whatever a benchmark cuts its tasks to, they have."""
    for name in index.benchmarks:
        for task, subsets, _ in index.expand(name):
            assert set(subsets) <= set(index.tasks[task].subsets)


def test_a_benchmark_is_one_experiment_a_task(index):
    """Its parts are what naming the tasks would give, so that a run is shared between studies."""
    parts = MtebOptions(("ViDoRe(v2)",)).parts()
    assert parts[0] == MtebOptions(("Vidore2ESGReportsRetrieval",)).parts()[0]
    assert [part.tasks for part in parts] == [(name,) for name, _, _ in index.expand("ViDoRe(v2)")]
    assert restore(MtebOptions, dump(parts[0])) == parts[0]


def test_a_benchmark_keeps_its_options_in_every_task(index):
    """Its tasks are encoded in batches of the size that was asked for, and searched by that engine."""
    parts = MtebOptions(("ViDoRe(v1)",), engine="faiss", batch_tokens=2048).parts()
    assert {(part.batch_tokens, part.engine) for part in parts} == {(2048, "faiss")}


def test_languages_become_subsets(index):
    """By a code, or the code with its script."""
    (part,) = MtebOptions(("Vidore3HrRetrieval",), languages=("eng", "fra-Latn")).parts()
    assert part == MtebOptions(("Vidore3HrRetrieval",), subsets=("french", "english"))
    (part,) = MtebOptions(("Vidore3HrRetrieval",), languages=("eng", "fra", "deu", "ita", "por", "spa")).parts()
    assert part == MtebOptions(("Vidore3HrRetrieval",))


def test_a_misspelt_task_is_refused_with_the_nearest(index, tmp_path):
    """Before anything is loaded, and all at once."""
    with pytest.raises(UnknownNameError, match=r"no task or benchmark 'ViDoRe\(v9\)'\n.*'ViDoRe\(v"):
        MtebOptions(("ViDoRe(v9)",)).parts()
    with pytest.raises(RequestErrors) as caught:
        MtebOptions(("NFCorpos", "STSBenchmrk")).check(info(tmp_path), "cpu")
    hints = [error.hint for error in caught.value.errors]
    assert "'NFCorpus'" in hints[0]
    assert "'STSBenchmark'" in hints[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"languages": ("jpn",)}, "nothing in jpn"),
        ({"subsets": ("englisch",)}, r"no subset 'englisch'\nDid you mean 'english'"),
        ({"splits": ("dev",)}, "no split 'dev'"),
    ],
)
def test_parts_that_a_task_does_not_have_are_refused(index, options, message):
    """With what it has."""
    with pytest.raises(OptionError, match=message):
        MtebOptions(("Vidore3HrRetrieval",), **options).parts()


def test_tasks_with_images_are_refused_for_an_embedder_of_texts(index, tmp_path):
    """Each with the reason; tasks of texts pass."""
    texts = info(tmp_path, modalities=("text",))
    MtebOptions(("NFCorpus", "STSBenchmark")).check(texts, "cpu")
    with pytest.raises(RequestErrors) as caught:
        MtebOptions(("ViDoRe(v1)",)).check(texts, "cpu")
    assert len(caught.value.errors) == 10
    assert "does not encode image" in caught.value.errors[0].message


def test_late_interaction_is_for_retrieval(index, tmp_path):
    """A task that compares single vectors is refused for an embedder that gives several."""
    late = info(tmp_path, late=True)
    MtebOptions(("ViDoRe(v1)", "NFCorpus")).check(late, "cpu")
    with pytest.raises(UnsupportedError, match="needs one vector per item"):
        MtebOptions(("STSBenchmark",)).check(late, "cpu")


def test_tasks_are_listed_by_benchmark_name_or_part_of_a_name(root, index):
    """As ``llmquant tasks`` shows them."""
    cache = Cache(root)
    assert len(list_tasks("ViDoRe(v1)", cache)) == 10
    assert [task.name for task in list_tasks("NFCorpus", cache)] == ["NFCorpus"]
    assert {task.name for task in list_tasks("vidore3hr", cache)} >= {"Vidore3HrRetrieval", "Vidore3HrRetrieval.v2"}
    with pytest.raises(UnknownNameError):
        list_tasks("ViDoRe(v9)", cache)


def test_the_index_that_comes_along_is_that_of_the_tested_mteb(root, tmp_path, monkeypatch):
    """Where mteb is not installed, or this version is, it says the same, to the last subset, and nothing is made."""
    scanned = scanned_mteb(Cache(root))
    assert known_mteb(Cache(tmp_path / "cache")) == scanned
    monkeypatch.setattr(mteb_index, "mteb_is_installed", lambda: False)
    assert known_mteb(Cache(tmp_path / "cache")) == scanned
    assert not list(tmp_path.rglob("*.json"))


def test_an_mteb_that_cannot_be_imported_says_why(tmp_path, monkeypatch):
    """The last line of what it said is told, and the line that installs it."""
    broken = subprocess.CompletedProcess([], 1, "", "Traceback\nImportError: no torchvision\n")
    monkeypatch.setattr(mteb_index.subprocess, "run", lambda *args, **kwargs: broken)
    monkeypatch.setattr(mteb_index.importlib.metadata, "version", lambda name: "0.0.1")
    with pytest.raises(MissingDependencyError, match="cannot be imported: ImportError: no torchvision"):
        known_mteb(Cache(tmp_path))


def test_a_study_records_which_tasks_a_benchmark_stands_for(root, monkeypatch):
    """Under the label that was asked for are those of its experiments, also of a task that two benchmarks share."""
    asked = ["mteb(ViDoRe(v2))", "mteb(Vidore2BioMedicalLecturesRetrieval, Vidore2ESGReportsHLRetrieval, splits=test)"]
    monkeypatch.setenv("LLMQUANT_CACHE", str(root))
    study = Study.of("random", ["bf16_baseline"], asked)
    record = resolve(study, registry(), Cache(root), LocalExecutor(device="cpu")).record
    assert len(record.experiments) == 4
    labels = {experiment.evaluator.label for experiment in record.experiments}
    assert [len(record.benchmarks[label]) for label in asked] == [4, 2]
    assert {label for parts in record.benchmarks.values() for label in parts} == labels
    assert StudyRecord.from_json(json.loads(json.dumps(record.to_json()))) == record
