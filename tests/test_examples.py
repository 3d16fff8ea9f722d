"""The example programs: each really runs, on the CPU and a tiny model, and says clearly what it cannot take."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import llmquant as lq
from embedding import page
from llmquant.executors.modal.options import ModalOptions
from llmquant.plugins.options import build
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelUse
from llmquant.study.run import Measurement
from made_up import MadeUpStudy, completed, experiment, failed
from tiny_gemma3 import write_gemma3

EXAMPLES = Path(__file__).parents[1] / "examples"
LOCAL = ("--on", "local(device=cpu, threads=1, max_parallel=2)")
ON_MODAL = ("quantization_on_modal", "vidore_on_modal")
STORIES = [
    ("Mina kept a blue kite in the shed.", "What color was the kite?", "blue"),
    ("The ferry left at nine with forty goats.", "When did the ferry leave?", "at nine"),
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a cache that knows two benchmarks of mteb: to index all of them takes as long as all tests here."""
    root = tmp_path_factory.mktemp("cache")
    task = {"type": "Retrieval", "retrieval": True, "category": "t2i", "modalities": ["text", "image"]}
    task |= {"main_score": "ndcg_at_5", "subsets": {"default": "eng-Latn"}, "splits": ["test"]}
    task |= {"queries": 2, "documents": 2, "samples": None}
    benchmarks = {"ViDoRe(v1)": [["VidoreOne", [], []], ["VidoreTwo", [], []]], "Another": []}
    key = {"mteb": importlib.metadata.version("mteb"), "format": 2}
    index = json.dumps(
        {
            "version": key["mteb"],
            "tasks": {"VidoreOne": task, "VidoreTwo": task},
            "benchmarks": benchmarks,
            "models": {},
        }
    )
    Cache(root).get("tasks", key, lambda folder: (folder / "tasks.json").write_text(index) and None)
    return root


@pytest.fixture(scope="module")
def retrieval_set(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Draw three pages and ask for each; return the evaluator's call."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "pages").mkdir()
    for topic, colour in (("ledger", "white"), ("barley", "wheat"), ("harbour", "lightblue")):
        (folder / "pages" / f"{topic}.png").write_bytes(page(topic, colour=colour))
    rows = [{"query": f"the {file.stem}", "relevant": [file.name]} for file in (folder / "pages").iterdir()]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return f"retrieval({folder / 'pages'}, queries={folder / 'queries.jsonl'})"


def run_example(name: str, *arguments: object, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run an example as somebody would who has neither the Hub nor an account on Modal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
    environment |= {"LLMQUANT_CACHE": str(cache), "HF_HUB_OFFLINE": "1", "MODAL_CONFIG_PATH": str(cache / "no.toml")}
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)


def test_quantizations_are_compared(tiny_model: Path, cache: Path, tmp_path: Path):
    """The earlier program's numbers are all there, for every experiment that was named, and saved as JSON."""
    rows = [
        {"story": story, "questions": {"input_text": [question]}, "answers": {"input_text": [answer]}}
        for story, question, answer in STORIES
    ]
    (tmp_path / "coqa.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = run_example(
        "quantization_on_modal",
        *("--model", tiny_model, "--data", tmp_path / "coqa.jsonl", "--limit", 2),
        *("--experiment", "fp32_baseline", "--experiment", "bf16_baseline"),
        *("--prompt-tokens", 8, 16, "--output-tokens", 4, "--batches", 1, 2, "--repeats", 3),
        *("--store", tmp_path / "store", "--output", tmp_path / "out" / "study.json", *LOCAL),
        cache=cache,
    )
    assert done.returncode == 0, done.stderr
    found = lq.Comparison.load(tmp_path / "out" / "study.json")
    assert found.record.seed == 42
    assert {row.variant for row in found.rows()} == {"fp32_baseline", "bf16_baseline"}
    metrics = {row.metric for row in found.rows()}
    assert {"f1", "em", "weights_bytes", "prefill_peak_bytes", "prefill_ms", "decode_ms_per_token"} < metrics
    assert {row.at["prompt_tokens"] for row in found.rows() if row.metric == "prefill_ms"} == {8, 16}
    assert {row.at["batch"] for row in found.rows() if row.metric == "generated_tokens_per_s"} == {1, 2}
    assert "bf16_baseline" in done.stdout
    assert "saved to" in done.stdout


def test_retrievers_are_scored(cache: Path, retrieval_set: str, tmp_path: Path):
    """A model has one line per task, and mteb's own files are where the output says."""
    folder = write_gemma3(tmp_path / "gemma")
    done = run_example(
        "vidore_on_modal",
        *("--model", f"bigemma3(checkpoint={folder}, pooling=mean)"),
        *("--benchmarks", retrieval_set, "--batch-size", 2, "--output-folder", tmp_path / "out", *LOCAL),
        cache=cache,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"^  bigemma3\(.*\) +(\S+) +ndcg_at_5 +(\d\.\d{3})$", done.stdout, re.MULTILINE)
    assert [what for what, _ in lines] == ["pages"], done.stdout
    (saved,) = (tmp_path / "out").glob("vidore-*.json")
    found = lq.Comparison.load(saved)
    (run,) = found.runs.values()
    assert run.experiment.evaluator.options["batch_tokens"] == 2048
    assert list((tmp_path / "out").glob("runs/*/files/mteb/**/pages.json"))


@pytest.mark.parametrize(
    ("name", "arguments", "told"),
    [
        ("quantization_on_modal", ("--experiment", "bnb_4bit_nf5"), "bnb_4bit_nf4"),
        ("quantization_on_modal", ("--budget", "5"), "budget"),
        ("quantization_on_modal", ("--limit", "few"), "few"),
        ("vidore_on_modal", ("--benchmarks", "ViDoRe(v9)"), "ViDoRe(v1)"),
        ("vidore_on_modal", ("--benchmarks", "retrieval(nowhere, queries=none.jsonl)"), "nowhere"),
        ("vidore_on_modal", ("--model", "bigema3(dim=768)"), "bigemma3"),
    ],
)
def test_what_it_cannot_take_is_told(name: str, arguments: tuple[str, ...], told: str, tiny_model: Path, cache: Path):
    """The exit code is 2, the message says what is wrong, and there is no traceback."""
    model = () if "--model" in arguments else ("--model", tiny_model if name.startswith("quant") else "random")
    done = run_example(name, *model, *LOCAL, *arguments, cache=cache)
    assert done.returncode == 2, done.stderr
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_modal_without_an_account_is_refused(cache: Path, retrieval_set: str, tmp_path: Path):
    """Modal is where it runs by default; nothing is stored, and the message has the line that helps."""
    done = run_example(
        "vidore_on_modal",
        *("--model", "random", "--benchmarks", retrieval_set, "--output-folder", tmp_path / "out"),
        cache=cache,
    )
    assert done.returncode == 2, done.stderr
    assert "modal token new" in done.stderr or "llmquant[modal]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "studies").exists()


def test_benchmarks_are_listed(cache: Path):
    """ViDoRe's are, with their number of tasks."""
    done = run_example("vidore_on_modal", "--list-benchmarks", cache=cache)
    assert done.stdout.split() == ["ViDoRe(v1)", "2", "tasks"]


def test_a_benchmark_has_the_mean_of_its_tasks(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Each model has its own, tasks of other benchmarks are not in it, and none is given of some tasks alone."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(cache))
    study = MadeUpStudy()
    for model, scores in (("org/whole", (1.0, 0.5, 0.1)), ("org/half", (1.0, None, 0.1))):
        for task, score in zip(("VidoreOne", "VidoreTwo", "Another"), scores, strict=True):
            asked = experiment("bf16_baseline", f"mteb({task})", model=ModelUse(model, f"sha256:{model}"))
            if score is None:
                study.add(failed(asked, "error", "no data"))
            else:
                study.add(completed(asked, Measurement(task, "ndcg_at_5", score, higher_is_better=True)))
    parts = ("mteb(VidoreOne)", "mteb(VidoreTwo)")
    record = replace(study.record, benchmarks={"mteb(ViDoRe(v1))": parts})
    found = lq.Comparison(record, study.runs, study.read)
    example = runpy.run_path(str(EXAMPLES / "vidore_on_modal.py"))
    example["show"](found, example["evaluator"]("ViDoRe(v1)", None))
    title, *lines = capsys.readouterr().out.split("\n")[1:-1]
    assert title == "mteb(ViDoRe(v1))"
    assert [line.split() for line in lines] == [
        ["whole", "VidoreOne", "ndcg_at_5", "1.000"],
        ["whole", "VidoreTwo", "ndcg_at_5", "0.500"],
        ["whole", "mean", "of", "2", "tasks", "ndcg_at_5", "0.750"],
        ["half", "VidoreOne", "ndcg_at_5", "1.000"],
        ["half", "mteb(VidoreTwo)", "failed"],
    ]


@pytest.mark.parametrize("name", ON_MODAL)
def test_help_shows_how_to_call_it(name: str, cache: Path):
    """It names the options of the earlier programs."""
    done = run_example(name, "--help", cache=cache)
    assert done.returncode == 0
    assert {"--model", "--on", "--budget", "--yes"} <= set(done.stdout.replace(",", " ").split())


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_arguments_are_read_without_torch(example: Path):
    """Neither torch nor modal is imported to import an example and read its arguments."""
    code = f"""
import runpy, sys
sys.argv = [{str(example)!r}]
found = runpy.run_path(sys.argv[0])
if "parse" in found:
    found["parse"]()
print([name for name in ("torch", "transformers", "modal", "mteb", "lm_eval") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_experiment_is_a_preset():
    """The earlier program's names mean something here."""
    example = runpy.run_path(str(EXAMPLES / "quantization_on_modal.py"))
    assert set(example["ALL"]) <= set(lq.registry().names("quantizer"))


def test_lists_respect_brackets():
    """A comma inside a call or a benchmark's name does not split it; a slash means nothing."""
    example = runpy.run_path(str(EXAMPLES / "vidore_on_modal.py"))
    assert example["split"]("bigemma3(checkpoint=./a, dim=768), vidore/colqwen2.5-v0.2@main,x") == [
        "bigemma3(checkpoint=./a, dim=768)",
        "vidore/colqwen2.5-v0.2@main",
        "x",
    ]
    assert example["evaluator"]("ViDoRe(v3.1, reranking)", 8) == lq.Call(
        "mteb", ("ViDoRe(v3.1, reranking)",), {"batch_tokens": 8192}
    )


@pytest.mark.parametrize(("name", "gpu"), [("quantization_on_modal", "A100"), ("vidore_on_modal", "L40S")])
def test_modal_gets_what_it_may_cost(name: str, gpu: str, monkeypatch: pytest.MonkeyPatch):
    """By default an example runs on its GPU on Modal, within the budget; other options of Modal's stay as written."""
    example = runpy.run_path(str(EXAMPLES / f"{name}.py"))

    def asked(*arguments: str) -> ModalOptions:
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        return build(ModalOptions, lq.Call.parse(example["executor"](example["parse"]()[1])))

    assert (asked("--budget", "5").gpu, asked("--budget", "5").budget) == ((gpu,), 5.0)
    assert (asked().yes, asked("--yes").yes) == (False, True)
    assert asked("--on", "modal(gpu=[H100, A100], timeout=600)").gpu == ("H100", "A100")
