"""Another package's plugin may take our names, print, exit or lie: it harms itself alone."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmquant.errors import AmbiguousNameError, PluginError
from llmquant.models.info import inspect_model
from llmquant.planning.estimate import estimate_all
from llmquant.planning.lookup import inspect_subject
from llmquant.planning.notes import overlaps
from llmquant.planning.resolve import resolve
from llmquant.plugins.checking import plugin_rows
from llmquant.plugins.discovery import Plugin
from llmquant.plugins.evaluator import Cost
from llmquant.plugins.registry import Chosen, Registry, discover, registry
from llmquant.plugins.sources import check_target, find_source
from llmquant.plugins.spec import PluginSpec, RunEvent
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest, PluginUse
from llmquant.study.study import Study


def _raising() -> Iterator[str]:
    yield "one"
    raise KeyError("two")


class _Here:
    """An executor that is asked what it is, and runs nothing."""

    name, outlives, installs, hardware, device = "local", False, True, "cpu", "cpu"
    slots, threads, notices = 1, None, ()


def _with(*specs: PluginSpec) -> Registry:
    """Return what is installed, and a package that offers more."""
    known = registry()
    return Registry([*known.plugins, *(Plugin(spec, "theirs", "1") for spec in specs)], known.broken, known._hooks)


def _same_as(kind: str, name: str) -> PluginSpec:
    """Return a third party's spec with every name of a built-in plugin."""
    plugin, _ = registry().find(kind, name)
    return plugin.spec


@pytest.fixture
def clashing() -> Registry:
    """Offer again what the defaults of a study name."""
    names = (("quantizer", "baseline"), ("quantizer", "bnb_4bit"), ("evaluator", "lm_eval"), ("evaluator", "memory"))
    return _with(*(_same_as(*name) for name in names), _same_as("embedder", "sentence_transformers"))


# -- names -------------------------------------------------------------------------------------------------------------


def test_sizes_are_predicted_beside_a_plugin_of_the_same_name(tiny_model, tmp_path, clashing):
    """A plan without names lists both packages' presets, each told apart by its package."""
    info = inspect_model(ModelRequest(str(tiny_model)), Cache(tmp_path))
    listed = [size.quantizer for size in estimate_all(info, clashing, "cpu")]
    assert {"llmquant/bnb_4bit_nf4", "theirs/bnb_4bit_nf4", "bnb_8bit"} <= set(listed)
    assert len(listed) == len(set(listed))


def test_a_study_of_defaults_is_ours_whatever_is_installed(tiny_model, tmp_path, clashing):
    """Defaults mean the built-in plugins, and are the same experiments with and without the other package."""
    study = Study((ModelRequest(str(tiny_model)),), (), (Call.parse("llmquant/memory"),), None, 10, 0)
    beside, alone = (resolve(study, known, Cache(tmp_path), _Here()).record for known in (clashing, registry()))
    assert [e.run_id for e in beside.experiments] == [e.run_id for e in alone.experiments]
    assert {e.variant.quantizer.plugin.partition("/")[0] for e in beside.experiments} == {"llmquant"}


def test_a_clashing_name_that_is_asked_for_is_refused_with_the_full_names(tiny_model, tmp_path, clashing):
    """The message has what to write; the full name then works, and has a baseline."""
    model = (ModelRequest(str(tiny_model)),)
    study = Study(model, (Call("bnb_4bit_nf4"),), (Call("llmquant/memory"),), None, 10, 0)
    with pytest.raises(AmbiguousNameError, match="Write llmquant/bnb_4bit_nf4 or theirs/bnb_4bit_nf4"):
        resolve(study, clashing, Cache(tmp_path), _Here())
    study = Study(model, (Call("theirs/bnb_4bit_nf4"),), (Call("llmquant/memory"),), None, 10, 0)
    record = resolve(study, clashing, Cache(tmp_path), _Here()).record
    labels = [e.variant.quantizer.label for e in record.experiments]
    assert labels == ["llmquant/bf16_baseline", "theirs/bnb_4bit_nf4"]


def test_a_full_name_is_as_good_as_a_short_one(tiny_model, tmp_path):
    """Where nobody else offers a name, its full form gives the same experiments under the same label."""
    records = []
    for prefix in ("", "llmquant/"):
        calls = (Call(f"{prefix}bnb_4bit_nf4"),)
        study = Study((ModelRequest(str(tiny_model)),), calls, (Call(f"{prefix}memory"),), None, 10, 0)
        records.append(resolve(study, registry(), Cache(tmp_path), _Here()).record)
    assert records[0].experiments == records[1].experiments
    assert records[0].baselines == records[1].baselines


def test_a_folder_of_sentence_transformers_is_opened_by_our_embedder(tmp_path, clashing):
    """A folder names no plugin, so a second plugin of the name does not make it ambiguous."""
    from tiny_sentence_transformer import save_tiny_sentence_transformer

    folder = save_tiny_sentence_transformer(tmp_path / "model")
    info = inspect_subject(ModelRequest(str(folder)), clashing, Cache(tmp_path / "cache"))
    assert info.embedder.plugin == "llmquant/sentence_transformers"


def test_the_list_of_plugins_says_what_to_write(clashing):
    """Names and presets that two packages offer stand in the list with their package."""
    names = [row["name"] for row in plugin_rows(clashing)]
    assert {"llmquant/bnb_4bit", "theirs/bnb_4bit", "bnb_8bit"} <= set(names)
    presets = next(row["presets"] for row in plugin_rows(clashing) if row["name"] == "theirs/bnb_4bit")
    assert "theirs/bnb_4bit_nf4" in presets


_BROKEN_OPTIONS = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Options:
    how: str = "check"

    def check(self, model, device):
        if self.how == "check":
            raise RuntimeError("their check")

    def weight_bytes(self, model, device):
        raise SystemExit("their prediction")
"""


def test_plugins_that_raise_are_rows_of_a_plan(tiny_model, tmp_path, monkeypatch):
    """Options that cannot be imported, and checks and predictions that raise, are refused in their own rows."""
    _module(tmp_path, monkeypatch, "broken_options", _BROKEN_OPTIONS)
    presets = {"their_check": {}, "their_prediction": {"how": "weight_bytes"}}
    options = "broken_options:Options"
    raising = PluginSpec("quantizer", "raising", "Raises.", options, "broken_options:X", presets)
    known = _with(raising, PluginSpec("quantizer", "nowhere", "Is not there.", "no_such_module:O", "no_such_module:T"))
    info = inspect_model(ModelRequest(str(tiny_model)), Cache(tmp_path))
    refused = {size.quantizer: size.refused for size in estimate_all(info, known, "cpu")}
    assert refused["bf16_baseline"] == ""
    assert "theirs/raising: check failed: RuntimeError: their check" in refused["their_check"]
    assert "theirs/raising: weight_bytes failed: SystemExit: their prediction" in refused["their_prediction"]
    assert "no_such_module" in refused["nowhere"]
    study = Study((ModelRequest(str(tiny_model)),), (Call("their_check"),), (Call("memory"),), None, 10, 0)
    with pytest.raises(PluginError, match="theirs/raising: check failed"):
        resolve(study, known, Cache(tmp_path), _Here())


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("weight_bytes", 1.5, "returned 1.5 (float)\nIt must return a whole number of bytes, or None."),
        ("weight_bytes", -5, "returned -5 (int)"),
        ("weight_bytes", True, "returned True (bool)"),
        ("weight_bytes", 10**400, "returned 1000"),
        ("served_bytes", "5", "returned '5' (str)"),
        ("check", False, "returned False (bool)\nIt must return None; raise an UnsupportedError to refuse."),
        ("check_save", "no", "returned 'no' (str)"),
        ("row_independent", "yes", "returned 'yes' (str)\nIt must return True or False."),
        ("single_file", "x.gguf", "returned 'x.gguf' (str)"),
        ("serving", 3, "returned 3 (int)"),
        (
            "parts",
            ["a", "b"],
            "returned ['a', 'b'] (list)\nIt must return a list of options of the same class",
        ),
        ("for_dims", {"dim": 2}, "returned {'dim': 2} (dict)\nIt must return options of the same class, or None."),
        ("texts", 3, "returned 3 (int)"),
        ("cost", ("many",), "returned ('many',) (tuple)"),
    ],
)
def test_an_answer_of_the_wrong_kind_names_plugin_and_method(method, answer, message):
    """Whatever options return: nobody computes with it."""
    plugin, use = registry().find("quantizer", "bnb_4bit")[0], PluginUse("theirs/x", "1", {}, "x")
    options = SimpleNamespace(**{method: lambda: answer})
    with pytest.raises(PluginError) as raised:
        Chosen(plugin, options, use).ask(method)
    assert str(raised.value).startswith(f"llmquant/bnb_4bit: {method} {message}")


@pytest.mark.parametrize("tokens", [-1, float("nan"), float("inf"), "many", None])
def test_a_cost_is_a_number_of_tokens(tokens):
    """Times are computed from it."""
    with pytest.raises(ValueError, match=r"is .*, not a number of tokens"):
        Cost(1, tokens)


@pytest.mark.parametrize("evaluated", [[3], 3, _raising()])
def test_texts_that_cannot_be_read_are_refused(evaluated):
    """The message names quantizer and evaluator."""
    plugin, use = registry().find("quantizer", "bnb_4bit")[0], PluginUse("theirs/x", "1", {}, "x")
    quantizer = Chosen(plugin, SimpleNamespace(texts=lambda: ["a text"]), use)
    evaluator = Chosen(plugin, SimpleNamespace(texts=lambda: evaluated), use)
    with pytest.raises(PluginError, match=r"texts of x and x cannot be read|texts returned 3"):
        overlaps([quantizer], [evaluator])


# -- printing and exiting ----------------------------------------------------------------------------------------------

_LOUD = """
import os, sys
from llmquant.plugins.spec import hookimpl
print("printed at import")
os.write(1, b"written at import\\n")
sys.__stdout__.write("kept in a buffer")

@hookimpl
def llmquant_register():
    print("printed in a hook")
    return []
"""


def _install(folder: Path, module: str, source: str) -> None:
    (folder / f"{module}.py").write_text(source)
    info = folder / f"{module}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[llmquant]\nx = {module}\n")


def test_what_a_plugin_prints_is_not_on_standard_output_beside_json(tmp_path):
    """Standard output is one JSON value; what was printed is on standard error."""
    _install(tmp_path, "loud", _LOUD)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-m", "llmquant.cli.app", "plugins", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["plugins"]
    for said in ("printed at import", "written at import", "kept in a buffer", "printed in a hook"):
        assert said in done.stderr


@pytest.mark.parametrize("what", ["SystemExit(0)", "GeneratorExit()", "BaseException('x')"])
@pytest.mark.parametrize("where", ["import", "hook", "generator"])
def test_an_exit_while_a_package_is_loaded_is_one_row(tmp_path, monkeypatch, what, where):
    """Whatever is raised, at import, in the hook or behind its first spec, the package is a row."""
    import importlib.metadata

    body = {"import": "", "hook": f"raise {what}", "generator": f"yield 1\n    raise {what}"}[where]
    source = "from llmquant.plugins.spec import hookimpl\n" + (f"raise {what}\n" if where == "import" else "")
    source += f"@hookimpl\ndef llmquant_register():\n    {body or 'return []'}\n"
    name = f"exits_{where}_{abs(hash(what))}"
    _install(tmp_path, name, source)
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [e for dist in importlib.metadata.distributions(path=[str(tmp_path)]) for e in dist.entry_points]
    (broken,) = discover(entries).broken
    assert what.partition("(")[0] in broken.reason


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), BaseException("x")], ids=repr)
def test_an_observer_that_exits_is_logged(error, caplog, tmp_path):
    """A study continues, and later observers are called; only Ctrl-C ends it."""
    from llmquant.plugins.spec import hookimpl

    class Ends:
        @hookimpl
        def llmquant_run_finished(self, event):
            raise error

    class Sees:
        events: list[RunEvent] = []  # noqa: RUF012

        @hookimpl
        def llmquant_run_finished(self, event):
            self.events.append(event)

    known = discover([])
    known._hooks.register(Sees())
    known._hooks.register(Ends(), "ends")
    with caplog.at_level(logging.ERROR):
        known.notify(RunEvent("s", "r", "m", "q", "e", "completed"))
    assert "observer ends failed" in caplog.text
    assert len(Sees.events) == 1
    error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        known.notify(RunEvent("s", "r", "m", "q", "e", "completed"))


# -- what is not there -------------------------------------------------------------------------------------------------


def _module(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(str(folder))


def _spec(options: str, target: str) -> PluginSpec:
    return PluginSpec("quantizer", "made", "Made.", options, target)


def test_a_target_that_is_not_there_is_refused_when_it_is_registered(tmp_path, monkeypatch):
    """A class that its module does not define is named with the nearest, and nothing heavy is imported to know it."""
    _module(
        tmp_path,
        monkeypatch,
        "light_half",
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Options: pass\n",
    )
    _module(tmp_path, monkeypatch, "heavy_half", "import no_such_heavy_package\nclass Rounding: pass\n")
    known = discover([])
    with pytest.raises(PluginError, match="defines no 'Roundin'\nDid you mean 'Rounding'"):
        known.register(_spec("light_half:Options", "heavy_half:Roundin"))
    with pytest.raises(PluginError, match="defines no 'Option'"):
        known.register(_spec("light_half:Option", "heavy_half:Rounding"))
    with pytest.raises(PluginError, match="no_such_half"):
        known.register(_spec("light_half:Options", "no_such_half:Rounding"))
    known.register(_spec("light_half:Options", "heavy_half:Rounding"))
    assert known.names("quantizer") == ["made"]


@pytest.mark.parametrize(
    "source",
    [
        "class Rounding: pass",
        "if True:\n    class Rounding: pass",
        "try:\n    from x import Rounding\nexcept ImportError:\n    Rounding = None",
        "from x import Other as Rounding",
        "from x import *",
        "def __getattr__(name): ...",
        "Rounding = make()",
        "def Rounding(options): ...",
    ],
)
def test_a_target_may_be_defined_in_every_way(tmp_path, monkeypatch, source):
    """What Python would find, or may find, is taken."""
    name = f"defines_{abs(hash(source))}"
    _module(tmp_path, monkeypatch, name, source)
    check_target(f"{name}:Rounding")


def test_a_package_that_cannot_be_imported_is_refused(tmp_path, monkeypatch):
    """A module below a package that raises is told as one that cannot be imported."""
    (tmp_path / "raises_at_import").mkdir()
    (tmp_path / "raises_at_import" / "__init__.py").write_text("raise RuntimeError('no licence')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PluginError, match=r"cannot be imported.*no licence"):
        find_source("raises_at_import.half")
