"""The registry: what one package does wrong harms nobody else, and what people ask wrong is answered well."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmquant.errors import AmbiguousNameError, MissingDependencyError, PluginError, UnknownNameError
from llmquant.plugins.registry import Registry, discover, registry
from llmquant.plugins.spec import PluginSpec, RunEvent
from llmquant.study.call import Call
from llmquant.testing import specs
from llmquant.testing.trial import Trial

_IMPORTS = """
from dataclasses import dataclass
from llmquant.plugins.spec import PluginSpec, hookimpl

@dataclass(frozen=True)
class Options:
    bits: int = 4

class Rounding:
    def __init__(self, options):
        self.options = options

    def load_kwargs(self, model, ctx): ...
    def applied(self, module): ...
"""

_GOOD = """
@hookimpl
def llmquant_register():
    return [{specs}]
"""


def _spec(module: str, name: str = "rounding", **fields) -> str:
    values = {
        "kind": "quantizer",
        "name": name,
        "summary": "Rounds.",
        "options": f"{module}:Options",
        "target": f"{module}:Rounding",
        **fields,
    }
    return f"PluginSpec({', '.join(f'{key}={value!r}' for key, value in values.items())})"


class Packages:
    """Installs packages into a folder, the way pip leaves them, and discovers what they offer."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, package: str, source: str, *, entry: str = "hooks", module: str = "", direct_url: str = "") -> str:
        """Install a package of one module; its name is returned."""
        module = module or package.replace("-", "_")
        (self.folder / f"{module}.py").write_text(source)
        info = self.folder / f"{module}-1.5.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.5\n")
        (info / "entry_points.txt").write_text(f"[llmquant]\n{entry} = {module}\n")
        if direct_url:
            (info / "direct_url.json").write_text(direct_url)
        return module

    def add_good(self, package: str, *names: str, entry: str = "hooks", **fields) -> str:
        """Install a package whose quantizers work."""
        module = package.replace("-", "_")
        specs = ", ".join(_spec(module, name, **fields) for name in names or ("rounding",))
        return self.add(package, _IMPORTS + _GOOD.format(specs=specs), entry=entry)

    def discover(self, *disabled: str) -> Registry:
        """Discover what is installed in the folder."""
        found = importlib.metadata.distributions(path=[str(self.folder)])
        return discover([entry for dist in found for entry in dist.entry_points], disabled=disabled)


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Yield a folder of packages that can be imported; their modules are forgotten afterwards."""
    before = set(sys.modules)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    yield Packages(folder)
    for name in set(sys.modules) - before:
        if str(folder) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


# -- isolation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("x = (", "SyntaxError"),
        ("x = 1", "implements no llmquant hook"),
        ("def llmquant_register(): return []", "Decorate llmquant_register with @hookimpl"),
        (_IMPORTS + "@hookimpl\ndef llmquant_registr(): return []", "Did you mean 'llmquant_register'"),
        (_IMPORTS + "@hookimpl\ndef register_plugins(): return []", "unknown hook 'register_plugins'"),
        (_IMPORTS + "@hookimpl\ndef llmquant_run_started(evnt): pass", "evnt"),
        (_IMPORTS + "@hookimpl\ndef llmquant_register(): raise KeyError('x')", "KeyError: 'x'"),
        (_IMPORTS + "@hookimpl\ndef llmquant_register(): return None", "Return a list of PluginSpec"),
        (_IMPORTS + "@hookimpl\ndef llmquant_register(): return [3]", "returned 3 .int., not PluginSpec"),
        (_IMPORTS + _GOOD.format(specs=_spec("m", kind="quantiser")), "kind is 'quantiser'.*'quantizer'"),
        (_IMPORTS + _GOOD.format(specs=_spec("m", name="two words")), "'two words' is not a valid plugin name"),
        (_IMPORTS + _GOOD.format(specs=_spec("m", target="m.Rounding")), "not 'module:Class'"),
        (_IMPORTS + _GOOD.format(specs=_spec("m", presets=[1])), "presets must be a table"),
        (_IMPORTS + _GOOD.format(specs=_spec("m", requires=("not a requirement!",))), "is not a valid requirement"),
    ],
)
def test_a_broken_package_is_a_visible_row_and_harms_nobody(packages, source, reason):
    """Whatever a package does when it is loaded, it becomes a row with the reason, and packages after it are taken."""
    packages.add("aaa-broken", source)
    packages.add_good("zzz-good")
    found = packages.discover()
    assert [plugin.full_name for plugin in found.plugins] == ["zzz-good/rounding"]
    (broken,) = found.broken
    assert broken.package == "aaa-broken:hooks"
    assert re.search(reason, broken.reason)


def test_one_bad_spec_leaves_the_packages_others(packages):
    """A package keeps the specs that are right."""
    specs = f"{_spec('mixed', name='two words')}, {_spec('mixed')}"
    packages.add("mixed", _IMPORTS + _GOOD.format(specs=specs))
    found = packages.discover()
    assert (found.names("quantizer"), len(found.broken)) == (["rounding"], 1)


def test_two_packages_may_call_their_entry_points_the_same(packages):
    """Entry-point names need not be unique between packages."""
    packages.add_good("one", "a", entry="plugin")
    packages.add_good("two", "b", entry="plugin")
    assert packages.discover().names("quantizer") == ["a", "b"]


def test_a_name_that_two_packages_offer_is_refused_only_when_asked_for(packages):
    """A clash is no error until somebody uses the short name; the full names work."""
    packages.add_good("one", "same", "other")
    packages.add_good("two", "same")
    found = packages.discover()
    assert found.find("quantizer", "other")[0].package == "one"
    assert found.find("quantizer", "two/same")[0].package == "two"
    with pytest.raises(AmbiguousNameError, match="Write one/same or two/same"):
        found.find("quantizer", "same")


def test_a_name_that_one_package_offers_twice_is_its_mistake(packages):
    """No full name could tell the two apart, so the second is not taken."""
    packages.add_good("one", "same", "same")
    found = packages.discover()
    assert found.names("quantizer") == ["same"]
    assert "'same' is offered twice by one" in found.broken[0].reason


def test_a_package_is_named_in_one_spelling(packages):
    """Full names are recorded in runs, so they do not depend on how a package spells its name."""
    packages.add("My_Package.Two", _IMPORTS + _GOOD.format(specs=_spec("oddly")), module="oddly")
    assert packages.discover().plugins[0].full_name == "my-package-two/rounding"


def test_disabled_packages_are_not_imported(packages):
    """A disabled package is neither taken nor run; its spelling does not matter."""
    packages.add("some-broken", "raise RuntimeError")
    assert packages.discover("Some_Broken").broken == []


def test_the_environment_disables_packages():
    """LLMQUANT_DISABLE_PLUGINS names packages to leave out."""
    code = "from llmquant.plugins.registry import registry; print(len(registry().plugins))"
    kept, left = (
        int(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True, text=True).stdout)
        for env in ({"PYTHONPATH": _path()}, {"PYTHONPATH": _path(), "LLMQUANT_DISABLE_PLUGINS": " nobody, LLMquant"})
    )
    assert kept > 0
    assert left == 0


def _path() -> str:
    return ":".join(path for path in sys.path if path)


# -- looking up --------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest(packages):
    """A mistyped name gets the name that was meant."""
    packages.add_good("one", "sinq_4bit")
    with pytest.raises(UnknownNameError, match=r"no quantizer is called 'sinq4bit'\nDid you mean 'sinq_4bit'"):
        packages.discover().find("quantizer", "sinq4bit")
    with pytest.raises(UnknownNameError, match="Did you mean 'one/sinq_4bit'"):
        packages.discover().find("quantizer", "on/sinq_4bit")


def test_a_name_of_another_kind_is_told(packages):
    """Asking for a quantizer as an evaluator is answered with what it is."""
    packages.add_good("one")
    with pytest.raises(UnknownNameError, match="It is a quantizer"):
        packages.discover().find("evaluator", "rounding")


def test_an_unknown_name_names_what_could_not_be_loaded(packages):
    """The plugin that is missing may be in the package that is broken."""
    packages.add("sinq", "raise RuntimeError")
    with pytest.raises(UnknownNameError, match="could not be loaded: sinq:hooks"):
        packages.discover().find("quantizer", "sinq")


def test_a_preset_brings_its_options(packages):
    """A preset is the plugin with other defaults; what is written goes over them."""
    packages.add_good("one", presets={"rounding_3bit": {"bits": 3}})
    found = packages.discover()
    assert found.choose("quantizer", Call.parse("rounding_3bit")).options.bits == 3
    assert found.choose("quantizer", Call.parse("rounding_3bit(bits=2)")).options.bits == 2
    assert found.choose("quantizer", Call.parse("rounding")).options.bits == 4


def test_a_preset_and_its_call_are_one_plugin_use(packages):
    """Identity has the options, not the name they came by."""
    packages.add_good("one", presets={"rounding_3bit": {"bits": 3}})
    found = packages.discover()
    preset, call = (found.choose("quantizer", Call.parse(text)).use for text in ("rounding_3bit", "rounding(bits=3)"))
    assert preset.identity() == call.identity()
    assert preset.label != call.label


def test_a_worker_rebuilds_what_was_chosen(packages):
    """Plugin and options come back from the experiment's pure data, and construct."""
    packages.add_good("one")
    found = packages.discover()
    chosen = found.choose("quantizer", Call.parse("rounding(bits=3)"))
    assert found.construct(found.restore("quantizer", chosen.use)).options == chosen.options


def test_a_worker_refuses_another_version(packages):
    """A plugin that changed after the study was planned would give numbers under a wrong name."""
    module = packages.add_good("one", version="1")
    use = packages.discover().choose("quantizer", Call("rounding")).use
    del sys.modules[module]
    (packages.folder / f"{module}.py").write_text(_IMPORTS + _GOOD.format(specs=_spec(module, version="22")))
    with pytest.raises(PluginError, match="version 22 here, and the experiment was planned with 1"):
        packages.discover().restore("quantizer", use)


# -- what is missing or wrong in a plugin ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"requires": ("surely-not-there>=2",)}, 'pip install "surely-not-there>=2"'),
        ({"requires": ("surely-not-there>=2",), "install": "pip install one[gpu]"}, "pip install one[gpu]"),
        ({"requires": ("pluggy>=999",)}, 'pip install "pluggy>=999"'),
    ],
)
def test_a_missing_dependency_comes_with_the_line_that_installs_it(packages, fields, line):
    """The plugin is listed, and asking it to run gives the exact command."""
    packages.add_good("one", **fields)
    found = packages.discover()
    with pytest.raises(MissingDependencyError) as caught:
        found.construct(found.choose("quantizer", Call("rounding")))
    assert caught.value.hint == f"Run: {line}"


def test_a_dependency_of_another_system_is_not_missing(packages):
    """Requirements whose marker does not hold here are passed over."""
    packages.add_good("one", requires=("surely-not-there; python_version < '3'",))
    found = packages.discover()
    assert found.missing(found.plugins[0]) is None


@pytest.mark.parametrize("field", ["options", "target"])
def test_a_bug_in_a_plugin_is_not_the_requests_fault(packages, field):
    """A half that does not import is a `PluginError` from the original."""
    packages.add_good("one", **{field: "no_such_module:Thing"})
    found = packages.discover()
    with pytest.raises(PluginError, match="no_such_module:Thing cannot be imported") as caught:
        found.construct(found.choose("quantizer", Call("rounding")))
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_constructor_that_raises_is_the_plugins_fault(packages):
    """A heavy half that cannot be constructed is a `PluginError` naming the plugin."""
    source = _IMPORTS.replace("self.options = options", "raise ZeroDivisionError")
    packages.add("one", source + _GOOD.format(specs=_spec("one")))
    found = packages.discover()
    with pytest.raises(PluginError, match="one/rounding failed while it was constructed"):
        found.construct(found.choose("quantizer", Call("rounding")))


# -- versions ----------------------------------------------------------------------------------------------------------


def test_an_installed_plugins_version_is_its_own(packages):
    """The author raises the version when results change; installing elsewhere does not."""
    packages.add_good("one", version="7")
    assert packages.discover().choose("quantizer", Call("rounding")).use.version == "7"


def test_an_editable_plugins_version_follows_its_sources(packages):
    """While a plugin is being written, every change of its code is another version."""
    from llmquant.plugins import sources

    editable = json.dumps({"url": "file:///x", "dir_info": {"editable": True}})
    source = _IMPORTS + _GOOD.format(specs=_spec("edited"))
    packages.add("edited", source, direct_url=editable)
    found = packages.discover()
    versions = []
    for text in (source, source + "# changed\n", source):
        (packages.folder / "edited.py").write_text(text)
        sources._digest.cache_clear()
        versions.append(found.choose("quantizer", Call("rounding")).use.version)
    assert versions[0] == versions[2] != versions[1]
    assert versions[0].startswith("1+")


# -- plugins of a notebook or script -----------------------------------------------------------------------------------


def _notebook_spec(packages, **fields) -> PluginSpec:
    (packages.folder / "mine.py").write_text(_IMPORTS)
    values = {"options": "mine:Options", "target": "mine:Rounding", **fields}
    return PluginSpec(kind="quantizer", name="mine", summary="Mine.", **values)


def test_a_registered_plugin_is_rebuilt_from_json(packages):
    """A worker that gets the spec as JSON constructs what was chosen elsewhere."""
    here, worker = packages.discover(), packages.discover()
    spec = _notebook_spec(packages, presets={"mine_3bit": {"bits": 3}}, requires=("pluggy",), documents=True)
    here.register(spec)
    use = here.choose("quantizer", Call("mine_3bit")).use
    worker.register(PluginSpec(**json.loads(json.dumps(vars(spec)))))
    assert worker.construct(worker.restore("quantizer", use)).options.bits == 3


def test_registering_again_replaces(packages):
    """A notebook cell can be run twice."""
    found = packages.discover()
    for version in ("1", "2"):
        found.register(_notebook_spec(packages, version=version))
    assert found.choose("quantizer", Call("mine")).use.version.startswith("2+")


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"options": "__main__:Options"}, "is in __main__"),
        ({"target": "__main__:Rounding"}, "is in __main__"),
        ({"target": "no_such_module:Rounding"}, "cannot be imported by a worker process"),
        ({"target": "no.such.module:Rounding"}, "cannot be imported"),
        ({"options": "mine:Nope"}, "mine:Nope cannot be imported"),
    ],
)
def test_what_a_worker_could_not_import_is_refused(packages, fields, complaint):
    """Registering fails at once and says why, not later on a worker."""
    found = packages.discover()
    with pytest.raises(PluginError, match=complaint):
        found.register(_notebook_spec(packages, **fields))
    assert found.plugins == []


# -- observers ---------------------------------------------------------------------------------------------------------

_EVENT = RunEvent("study", "run", "model", "quantizer", "evaluator", "completed")


def test_observers_get_events(packages):
    """A package with nothing but an observer is a plugin too."""
    source = "seen = []\n@hookimpl\ndef llmquant_run_finished(event): seen.append(event)"
    module = packages.add("watching", _IMPORTS + source)
    packages.discover().notify(_EVENT)
    assert sys.modules[module].seen == [_EVENT]


def test_an_observer_that_raises_fails_nothing(packages, caplog):
    """It is logged with its package, and the next observer is still called."""
    packages.add("aaa", _IMPORTS + "@hookimpl\ndef llmquant_run_finished(event): raise RuntimeError('oops')")
    module = packages.add(
        "bbb", _IMPORTS + "seen = []\n@hookimpl\ndef llmquant_run_finished(event): seen.append(event)"
    )
    with caplog.at_level(logging.ERROR):
        packages.discover().notify(_EVENT)
    assert sys.modules[module].seen == [_EVENT]
    assert "observer aaa:hooks failed" in caplog.text


def test_a_broken_package_observes_nothing(packages):
    """A package that was not taken is not called either."""
    source = "seen = []\n@hookimpl\ndef llmquant_run_finished(event): seen.append(event)\n"
    module = packages.add("aaa", _IMPORTS + source + "@hookimpl\ndef llmquant_register(): raise KeyError")
    packages.discover().notify(_EVENT)
    assert sys.modules[module].seen == []


# -- llmquant's own ----------------------------------------------------------------------------------------------------


def test_llmquants_own_plugins_come_by_the_same_way():
    """The built-in plugins are found through the entry point, and nothing of them is broken."""
    assert [broken for broken in registry().broken if broken.package.startswith("llmquant:")] == []
    assert {plugin.package for plugin in registry().plugins} >= {"llmquant"}


@pytest.mark.parametrize(
    "plugin", [plugin for plugin in registry().plugins if plugin.package == "llmquant"], ids=lambda p: p.full_name
)
def test_our_own_specs_conform(plugin):
    """What plugin authors are asked to check holds for the plugins that come with llmquant."""
    trial = Trial(plugin.spec)
    for check in (specs.spec_is_complete, specs.listing_is_light, specs.options_are_frozen):
        check(trial)
    if plugin.spec.presets:
        specs.presets_build(trial)
    trial.close()


def test_the_label_of_a_list_by_position_is_what_was_written():
    """One list in brackets is as good as several values."""
    chosen = registry().choose("evaluator", Call.parse("latency([1,2])"))
    assert chosen.use.label == "latency([1, 2])"
    assert chosen.options.prompt_tokens == (1, 2)
