"""The command line does the main job, and every mistake gets a message, an exit code and no traceback."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from llmquant.cli.app import main

LOCAL = ("--on", "local(device=cpu, threads=1)")


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable:
    """Run the command line in this process; return its exit code, standard output and standard error."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "160")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmquant", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_compare_prints_a_table_and_reuses_it(cli: Callable, tiny_model: Path, tmp_path: Path):
    """The first call measures, the second reads; the report shows the same study."""
    text = tmp_path / "text.txt"
    text.write_text("The keeper counted the ships that passed before dawn, and wrote each name into a ledger. " * 40)
    evaluators = ("-e", f"perplexity({text}, window=128, stride=64)", "-e", "memory(prompt_tokens=16, decode_tokens=2)")
    command = (
        "compare",
        tiny_model,
        "-q",
        "fp32_baseline",
        "-q",
        "bnb_4bit_nf4",
        *evaluators,
        *LOCAL,
        "--store",
        tmp_path,
    )
    code, out, err = cli(*command)
    assert code == 0, err
    assert "bnb_4bit_nf4" in out
    assert "perplexity" in out
    code, again, err = cli(*command)
    assert code == 0
    assert "4 reused" in err
    code, listed, _ = cli("report", tmp_path, "--list")
    assert code == 0
    for said in ("tiny-llama", "fp32_baseline, bnb_4bit_nf4", "memory", "4 of 4 done"):
        assert said in listed
    assert "bnb_4bit_nf4" in again
    code, rows, _ = cli(*command, "--json", "--quiet")
    values = {(row["variant"], row["metric"]): row["value"] for row in json.loads(rows)["rows"]}
    assert values["bnb_4bit_nf4", "weights_bytes"] < values["fp32_baseline", "weights_bytes"]
    for form in ("table", "markdown", "csv"):
        code, shown, _ = cli("report", tmp_path, "--format", form)
        assert code == 0
        assert "bnb_4bit_nf4" in shown
    _, table, _ = cli("report", tmp_path)
    _, page, _ = cli("report", tmp_path, "-f", "html")
    first = table.splitlines()[0]
    assert first.startswith("study ")
    assert f'<p class="study">{first}</p>' in page
    file = tmp_path / "study.json"
    assert cli("report", tmp_path, "-f", "json", "-o", file)[0] == 0
    assert cli("report", file, "-f", "csv") == cli("report", tmp_path, "-f", "csv")


def test_a_failed_run_is_a_row_and_exit_code_1(cli: Callable, tiny_model: Path, tmp_path: Path):
    """The others finish, the table says why, and the code tells scripts."""
    short = tmp_path / "short.txt"
    short.write_text("too short to be longer than anything " * 30)
    broken = tmp_path / "rows.jsonl"
    broken.write_text('{"story": "x", "questions": {"input_text": ["q"]}, "answers": {"input_text": []}}\n')
    code, out, err = cli(
        "compare", tiny_model, "-q", "fp32_baseline", "-e", f"lm_eval(coqa, data={broken})",
        "-e", f"perplexity({short}, window=32, stride=16)", *LOCAL, "--store", tmp_path / "store",
    )  # fmt: skip
    assert code == 1, (out, err)
    assert "perplexity" in out
    assert "lm_eval" in out
    assert "Traceback" not in out + err


def test_plan_predicts_every_preset_and_loads_nothing(cli: Callable, tiny_model: Path):
    """Sizes come from shapes; the smallest has 4 bits."""
    code, out, _ = cli("plan", tiny_model, "--json")
    assert code == 0
    (sizes,) = json.loads(out)["sizes"].values()
    by_name = {size["quantizer"]: size["weight_bytes"] for size in sizes}
    assert by_name["bf16_baseline"] * 2 == pytest.approx(by_name["fp32_baseline"], rel=0.01)
    assert by_name["bnb_4bit_nf4_no_double"] < by_name["bnb_8bit"] < by_name["bf16_baseline"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-q", "bnb_4bit_nf5"), "bnb_4bit_nf4"),
        (("-q", "bnb_4bit(quant_typ=fp4)"), "quant_type"),
        (("-q", "bnb_4bit(double_quant=maybe)"), "true or false"),
        (("-q", "bnb_4bit(quant_type=nf4"), "does not end with ')'"),
        (("-q", "auto-gptq"), "gptq_4bit_g128"),
        (("-e", "latencyy"), "latency"),
        (("-t", "coqaa"), "coqa"),
        (("-e", "latency(repeats=0)"), "repeats"),
        (("--limit", "0"), "limit must be at least 1, found 0"),
        (("--limit", "-1"), "limit must be at least 1, found -1"),
        (("--limit", "ten"), "'ten'"),
        (("--seed", "-3"), "seed"),
        (("--baseline", "nf4_baseline"), "bf16_baseline"),
        (("--on", "modul"), "modal"),
        (("--detach",), "end with the program"),
        (("--gpu", "L40S"), "--gpu is for executors that run elsewhere"),
        (("--on", "modal", "--gpu", "L40"), "L40S"),
        (("--on", "local(device=cuda)"), "doctor"),
        (("--timeout", "-5"), "timeout"),
        (("-e", "perplexity(nowhere.txt)"), "nowhere.txt"),
    ],
)
def test_a_wrong_request_starts_nothing(
    cli: Callable, tiny_model: Path, tmp_path: Path, arguments: tuple[str, ...], expected: str
):
    """The message names what was found and what to do; the exit code is 2; there is no traceback."""
    if arguments[-1] == "local(device=cuda)":
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("this machine has a GPU")
    base = ("-q", "fp32_baseline") if "-q" not in arguments else ()
    evaluators = ("-e", "memory") if not {"-e", "-t"} & set(arguments) else ()
    code, out, err = cli("compare", tiny_model, *base, *evaluators, *arguments, "--store", tmp_path / "store")
    assert code == 2, (out, err)
    assert expected in err
    assert "Traceback" not in err
    assert not (tmp_path / "store" / "runs").exists()


def test_all_mistakes_are_told_at_once(cli: Callable, tiny_model: Path, tmp_path: Path):
    """Three mistakes, one answer."""
    code, _, err = cli("compare", tiny_model, "-q", "nf5", "-e", "latencyy", "--limit", "0", "--store", tmp_path / "s")
    assert code == 2
    assert all(word in err for word in ("nf5", "latencyy", "limit"))


def _no_weights(model: Path) -> None:
    (model / "model.safetensors").unlink()


def _truncated(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def _pickle(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def _no_config(model: Path) -> None:
    (model / "config.json").unlink()


@pytest.mark.parametrize(
    ("damage", "expected"),
    [(_no_weights, "weights"), (_truncated, "cut short"), (_pickle, "pickle"), (_no_config, "config.json")],
)
def test_a_damaged_model_is_refused_before_loading(
    cli: Callable, tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None], expected: str
):
    """The message says what is wrong with the folder."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    damage(model)
    code, _, err = cli("compare", model, "-q", "fp32_baseline", "-e", "memory", "--store", tmp_path / "store")
    assert code == 2
    assert expected in err.lower()
    assert "Traceback" not in err


def test_an_empty_store_and_a_newer_one_are_refused(cli: Callable, tmp_path: Path):
    """Reading commands tell what is wrong with a store."""
    code, _, err = cli("report", tmp_path)
    assert (code, "contains no study" in err) == (2, True)
    study = tmp_path / "studies" / "abc"
    study.mkdir(parents=True)
    (study / "study.json").write_text('{"schema_version": 99}')
    code, _, err = cli("report", tmp_path)
    assert (code, "upgrade" in err) == (2, True)


def test_a_store_that_cannot_be_written_says_so(cli: Callable, tiny_model: Path, tmp_path: Path):
    """A file in place of the store is reported in one line."""
    (tmp_path / "store").write_text("")
    code, _, err = cli(
        "compare", tiny_model, "-q", "fp32_baseline", "-e", "memory", *LOCAL, "--store", tmp_path / "store"
    )
    assert code == 2
    assert "cannot write" in err


def test_debug_shows_the_traceback(cli: Callable, tiny_model: Path, tmp_path: Path):
    """`--debug` lets the error through."""
    from llmquant.errors import UnknownNameError

    with pytest.raises(UnknownNameError):
        cli("compare", tiny_model, "-q", "nf5", "-e", "memory", "--debug", "--store", tmp_path / "store")


def test_plugins_and_doctor_answer_in_json(cli: Callable):
    """Every reading command has `--json`."""
    code, out, _ = cli("plugins", "--json")
    assert code == 0
    assert "bnb_4bit" in [row["name"] for row in json.loads(out)["plugins"]]
    code, out, _ = cli("doctor", "--json")
    assert code == 0
    assert "cpu" in [finding["subject"] for finding in json.loads(out)["findings"]]


def test_a_quantized_folder_loads_in_plain_transformers(cli: Callable, tiny_model: Path, tmp_path: Path):
    """What `quantize` writes gives the logits that `load` gives."""
    import torch
    from transformers import AutoModelForCausalLM

    import llmquant as lq

    code, out, err = cli("quantize", tiny_model, "-q", "bnb_4bit_nf4", "-o", tmp_path / "nf4", "--device", "cpu")
    assert code == 0, err
    assert "14 layers as nf4, 4 bits per weight" in out
    assert re.search(r"weights: 0\.\d MiB before, 0\.\d MiB written \(\d\d%, \d+\.\d\d bits per weight in all\)", out)
    ids = torch.arange(3, 35)[None]
    with torch.inference_mode():
        expected = lq.load(tiny_model, "bnb_4bit_nf4", device="cpu").module(ids).logits
        found = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4")(ids).logits
    assert torch.equal(found, expected)
    code, _, err = cli("quantize", tiny_model, "-q", "bnb_4bit_nf4", "-o", tmp_path / "nf4", "--device", "cpu")
    assert code == 2
    assert "nf4" in err


def test_all_takes_every_preset_that_can_run_here(tiny_model: Path):
    """What was named stays first, and nothing is there twice."""
    import llmquant as lq
    from llmquant.results.preview import with_all_presets

    study = lq.Study((lq.ModelRequest(str(tiny_model)),), (lq.Call("bnb_8bit"),))
    found, notes = with_all_presets(study, executor="local(device=cpu)")
    names = [call.name for call in found.quantizers]
    assert names[0] == "bnb_8bit"
    assert {"fp32_baseline", "bnb_4bit_nf4_no_double"} < set(names)
    assert len(names) == len(set(names))
    (groups,) = [note for note in notes if "a group size of 128" in note]
    assert "gptq_4bit_g128" in groups
    assert "gptq_4bit_g128" not in names


def test_a_disk_that_is_full_is_told_with_what_to_do(
    cli: Callable, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No traceback, exit code 1, and the word that nothing stored is lost."""
    import errno
    import os

    import llmquant.running.scheduler

    def full(path: Path, data: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(llmquant.running.scheduler, "write_json", full)
    code, _, err = cli("compare", tiny_model, "-q", "fp32_baseline", "-e", "memory", *LOCAL, "--store", tmp_path / "s")
    assert code == 1
    assert "No space left on device" in err
    assert "run the same command again to continue" in err
    assert "Traceback" not in err


def test_doctor_lists_what_plugins_need(cli: Callable):
    """Each package has its version, or the line that installs it."""
    from llmquant.plugins.registry import registry

    findings = {finding["subject"] for finding in json.loads(cli("doctor", "--json")[1])["findings"]}
    lines = registry().packages()
    assert lines["hqq"] == 'pip install "llmquant[hqq]"'
    assert {*lines, "pandas"} <= findings


def test_the_command_that_waits_is_one_that_a_shell_reads():
    """Whatever the store is called."""
    import shlex

    from llmquant.cli.terminal import attach_command

    command = shlex.split(attach_command("0123ab", "modal(gpu=L40S)", "my {results}"))
    assert command == ["llmquant", "attach", "0123ab", "--on", "modal(gpu=L40S)", "--store", "my {results}"]
