"""A third party's installed package has our powers, and a broken one beside it does no harm."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.plugin_package,
    pytest.mark.skipif(
        importlib.util.find_spec("llmquant_example") is None,
        reason="the packages in tests/plugins are not installed; nox -s plugin installs them",
    ),
]


def _llmquant(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "llmquant.cli.app", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_plugins_lists_the_good_and_names_the_broken():
    """`llmquant plugins` shows what the package offers, and why the other one could not be loaded."""
    shown = _llmquant("plugins")
    assert shown.returncode == 0, shown.stderr
    assert "rtn_4bit_g32" in shown.stdout
    assert "loglikelihood_of" in shown.stdout
    assert "broken: llmquant-broken:broken: ImportError: undefined symbol" in shown.stdout


def test_plugins_check_runs_all_checks():
    """`llmquant plugins check` goes through a third party's plugin check by check."""
    shown = _llmquant("plugins", "check", "rtn_3bit_g32")
    assert shown.returncode == 0, shown.stderr
    assert "llmquant-example/rtn 0.1.0" in shown.stdout
    assert "pass  loads_as_applied" in shown.stdout
    assert all(re.match("quantizer |  (pass|skip)  |  [0-9]+ passed", line) for line in shown.stdout.splitlines())
    assert re.fullmatch("(messages of other libraries: .*\n)?", shown.stderr)
    assert " 0 failed" in shown.stdout


def test_disabled_packages_are_not_listed():
    """LLMQUANT_DISABLE_PLUGINS leaves both packages out."""
    shown = _llmquant("plugins", "--json", LLMQUANT_DISABLE_PLUGINS="llmquant-broken,LLMquant_Example")
    data = json.loads(shown.stdout)
    assert data["broken"] == []
    shown_packages = {row["package"] for row in data["plugins"]}
    assert "llmquant" in shown_packages
    assert shown_packages.isdisjoint({"llmquant-broken", "llmquant-example"})


def test_a_third_partys_quantizer_and_evaluator_are_compared(tiny_model, tmp_path):
    """One command runs them in a worker process and gives a difference with its interval, text by text."""
    compared = _llmquant(
        "compare",
        str(tiny_model),
        *(
            "-q",
            "bf16_baseline",
            "-q",
            "rtn_4bit_g32",
            "-e",
            "loglikelihood_of(She rang the bell., The river is brown.)",
        ),
        *("--store", str(tmp_path / "store"), "--on", "local(device=cpu, threads=2)", "--json", "--quiet"),
        LLMQUANT_CACHE=str(tmp_path / "cache"),
    )
    assert compared.returncode == 0, compared.stderr
    rows = {row["variant"]: row for row in json.loads(compared.stdout)["rows"]}
    assert set(rows) == {"bf16_baseline", "rtn_4bit_g32"}
    variant = rows["rtn_4bit_g32"]
    assert variant["status"] == "completed"
    assert (variant["metric"], variant["unit"], variant["pairs"]) == ("loglikelihood", "nats/token", 2)
    assert variant["value"] != rows["bf16_baseline"]["value"]
    assert variant["difference"] == pytest.approx(variant["value"] - rows["bf16_baseline"]["value"])
    assert variant["applied_note"].startswith("simulated")
    (run,) = (tmp_path / "store" / "runs" / variant["run_id"]).glob("run.json")
    assert json.loads(run.read_text())["experiment"]["quantizer"]["plugin"] == "llmquant-example/rtn"


def _compared(tmp_path, *arguments):
    """Compare on the command line; return the status by variant and main metric."""
    where = ("--store", str(tmp_path / "store"), "--on", "local(device=cpu, threads=1)", "--json", "--quiet")
    done = _llmquant("compare", *map(str, arguments), *where, LLMQUANT_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    return {(row["model"], row["variant"], row["metric"]): row["status"] for row in json.loads(done.stdout)["rows"]}


def test_the_evaluator_of_the_examples_is_compared_beside_a_built_in_one(tiny_model, tmp_path):
    """Two variants, repetition and perplexity: one table of four rows."""
    text = tmp_path / "text.txt"
    text.write_text("The farmer sold nine sacks of barley on Monday. " * 40)
    calls = (
        "-q",
        "fp32_baseline",
        "-q",
        "rtn_4bit_g32",
        "-e",
        "repetition(tokens=8)",
        "-e",
        f"perplexity({text}, window=64)",
    )
    found = _compared(tmp_path, tiny_model, *calls)
    assert set(found.values()) == {"completed"}
    assert {(variant, metric) for _, variant, metric in found} >= {
        (variant, metric) for variant in ("fp32_baseline", "rtn_4bit_g32") for metric in ("repeated", "perplexity")
    }


def test_the_embedder_of_the_examples_is_compared_beside_a_built_in_one(tmp_path):
    """On a folder in BEIR's format, in one table."""
    folder = tmp_path / "words"
    (folder / "qrels").mkdir(parents=True)
    words = ("ledger", "barley", "kettle", "harbour", "engine", "lantern", "orchard", "mitten")
    corpus = [{"_id": f"d{n}", "text": f"the {word} stood in the yard"} for n, word in enumerate(words)]
    queries = [{"_id": f"q{n}", "text": f"where is the {word}"} for n, word in enumerate(words)]
    for name, rows in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judged = "".join(f"q{n}\td{n}\t1\n" for n in range(len(words)))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + judged)
    found = _compared(tmp_path, "hashed", "random", "-q", "bf16_baseline", "-e", f"beir({folder})")
    assert set(found.values()) == {"completed"}
    assert {model for model, *_ in found} == {"hashed", "random"}


def test_a_width_that_does_not_fit_is_refused_before_anything_is_loaded(tiny_model, tmp_path):
    """A third party's own check ends the request with exit code 2 and its hint."""
    refused = _llmquant("compare", str(tiny_model), "-q", "rtn(group_size=48)", "--store", str(tmp_path / "store"))
    assert refused.returncode == 2
    assert "group_size 48 does not divide the" in refused.stderr
    assert not (tmp_path / "store").exists()


def test_the_tutorial_runs_as_written(tiny_model, tmp_path):
    """Every command of the page and its lines, on a tiny model and a local text, up to a row in the comparison."""
    section = (Path(__file__).parents[1] / "docs" / "plugins.md").read_text().split("\n## ")[1].split("\n### ")[0]
    commands = [line for text in re.findall(r"^```sh\n(.*?)^```$", section, re.M | re.S) for line in text.splitlines()]
    (diff,) = re.findall(r'^```diff title="sinq.diff"\n(.*?)^```$', section, re.M | re.S)
    (tmp_path / "sinq.diff").write_text(diff)
    (tmp_path / "text.txt").write_text("The farmer sold nine sacks of barley on Monday. " * 40)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment["LLMQUANT_CACHE"] = str(tmp_path / "cache")
    try:
        for command in commands[1:]:  # the first installs llmquant
            line = command.replace("HuggingFaceTB/SmolLM2-135M", str(tiny_model))
            line = line.replace("-e perplexity ", "-e 'perplexity(text.txt, window=64)' ")
            done = subprocess.run(
                line, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    finally:
        uninstall = [sys.executable, "-m", "pip", "uninstall", "-y", "llmquant-sinq"]
        subprocess.run(uninstall, capture_output=True, check=False)
    assert len(commands) == 8
    assert "sinq_g64" in done.stdout
    assert "perplexity" in done.stdout
