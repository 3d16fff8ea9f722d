"""The plugins in examples/plugins: small, made by few edits of the scaffold, and they do what they say."""

from __future__ import annotations

import difflib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmquant as lq
from llmquant.cli.new_plugin import write_plugin
from llmquant.loading.memory import weight_bytes
from llmquant.plugins.registry import registry

FOLDER = Path(__file__).parents[1] / "examples" / "plugins"
PAGE = Path(__file__).parents[1] / "docs" / "plugins.md"
KINDS = {"sinq": "quantizer", "repetition": "evaluator", "hashed": "embedder"}
PAGES = {
    "pump": "The pump weighs nine kilograms and lifts water by twelve meters.",
    "valve": "Close the valve before the filter is cleaned.",
    "motor": "The motor turns at three thousand revolutions per minute.",
    "warranty": "The warranty ends two years after delivery.",
}
QUERIES = {
    "How heavy is the pump?": "pump",
    "When must I close the valve?": "valve",
    "How fast are the motors?": "motor",
}


def _files(folder: Path) -> dict[str, list[str]]:
    found = {
        str(path.relative_to(folder)): path for path in folder.rglob("*") if path.suffix in (".py", ".toml", ".md")
    }
    return {name: path.read_text().splitlines() for name, path in sorted(found.items())}


@pytest.mark.parametrize("name", KINDS)
def test_each_is_a_few_edits_of_the_scaffold(name, tmp_path):
    """At most 60 lines differ from what `llmquant new-plugin` writes, and the package has under 120 lines of code."""
    write_plugin(name, KINDS[name], tmp_path)
    before, after = _files(tmp_path / f"llmquant-{name}"), _files(FOLDER / f"llmquant-{name}")
    assert set(before) == set(after)
    changed = [line for file in after for line in difflib.ndiff(before[file], after[file]) if line.startswith("+ ")]
    assert 10 < len(changed) <= 60
    code = [line for file, lines in after.items() if file.startswith("src") for line in lines if line.strip()]
    assert len(code) < 120


def test_the_tutorials_lines_make_the_example(tmp_path):
    """What `llmquant new-plugin` writes, changed as the page says, is the code in examples/plugins."""
    ((diff,),) = [re.findall(r'^```diff title="sinq.diff"\n(.*?)^```$', PAGE.read_text(), re.MULTILINE | re.DOTALL)]
    write_plugin("sinq", "quantizer", tmp_path)
    patch = ["patch", "-d", "llmquant-sinq", "-p1"]
    subprocess.run(patch, input=diff, text=True, cwd=tmp_path, check=True, capture_output=True)
    made, kept = _files(tmp_path / "llmquant-sinq"), _files(FOLDER / "llmquant-sinq")
    assert {name: made[name] for name in made if name.endswith(".py")} == {
        n: kept[n] for n in kept if n.endswith(".py")
    }


@pytest.fixture
def _registered(tmp_path, monkeypatch):
    """Register the three plugins, as a notebook beside them would."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(registry(), "plugins", list(registry().plugins))
    for name in KINDS:
        monkeypatch.syspath_prepend(str(FOLDER / f"llmquant-{name}" / "src"))
        (spec,) = importlib.import_module(f"llmquant_{name}.plugin").llmquant_register()
        lq.register(spec)
    before = set(sys.modules)
    yield
    for module in set(sys.modules) - before:
        if module.startswith(tuple(f"llmquant_{name}" for name in KINDS)):
            del sys.modules[module]


@pytest.mark.usefixtures("_registered")
def test_packed_weights_take_less_memory_and_repetition_is_measured(tiny_model):
    """The quantizer holds what it predicted, scales as quantization state; the evaluator has one sample per text."""
    call = "sinq(group_size=32)"
    held = {}
    for quantizer in ("bf16_baseline", call):
        model = lq.load(tiny_model, quantizer, device="cpu")
        held[quantizer] = weight_bytes(model.module)
    predicted = registry().choose("quantizer", lq.Call.parse(call)).options.weight_bytes(model.info, "cpu")
    assert held[call].total == predicted < 0.6 * held["bf16_baseline"].total
    # A scale and an offset per 32 of 73,728 weights, and a scale per column: 12 layers have 64 and 2 have 128.
    assert held[call].quantization_state == 4 * 73728 // 32 + 2 * (12 * 64 + 2 * 128)
    (result,) = lq.evaluate(model, "repetition(tokens=16)", limit=2)
    assert len(result.samples) == 2
    assert 0 <= result.measurements[0].value <= 1


@pytest.mark.usefixtures("_registered")
def test_hashed_words_find_what_random_vectors_do_not(tmp_path):
    """Every query finds its page first."""
    pytest.importorskip("mteb")
    (tmp_path / "pages").mkdir()
    for page, text in PAGES.items():
        (tmp_path / "pages" / f"{page}.txt").write_text(text)
    lines = ["query,relevant", *(f'"{query}",{page}.txt' for query, page in QUERIES.items())]
    (tmp_path / "queries.csv").write_text("\n".join(lines))
    call = f"retrieval({tmp_path / 'pages'}, queries={tmp_path / 'queries.csv'})"
    score = {}
    for name in ("hashed", "random"):
        (result,) = lq.evaluate(lq.load_embedder(name, device="cpu"), call)
        (score[name],) = [found.value for found in result.measurements if found.metric == "ndcg_at_1"]
    assert score["hashed"] == 1 > score["random"]
