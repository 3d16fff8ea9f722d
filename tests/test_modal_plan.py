"""What a study on Modal takes along and what it may cost is known before Modal is asked, and without its client."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import Distribution
from pathlib import Path

import pytest

from llmquant.errors import OptionError, UnknownNameError, UnsupportedError
from llmquant.executors.modal import image as modal_image
from llmquant.executors.modal import money as modal_money
from llmquant.executors.modal.options import GPUS, ModalOptions, parse_gpu

RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
CHEAP = ModalOptions(gpu=("L40S",), timeout=1800)


def install(folder: Path, name: str, *, version: str = "1.0", origin: dict | None = None, requires: str = "") -> None:
    """Write a package with data and its metadata, as an installer leaves them."""
    module = name.replace("-", "_")
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text("")
    (folder / module / "prompts.json").write_text("{}")
    info = folder / f"{module}-{version}.dist-info"
    info.mkdir()
    needed = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needed}")
    (info / "entry_points.txt").write_text(f"[llmquant]\n{name} = {module}.hooks\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n{info.name}/entry_points.txt,,\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder whose packages this process sees as installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def plan(*packages: str, **changes) -> modal_image.ImagePlan:
    return modal_image.plan_image(packages, changes.pop("modules", ()), changes.pop("requires", ()), **changes)


def test_planning_imports_no_client_and_no_torch():
    """A laptop with neither can refuse a wrong request and name the price."""
    heavy = {"torch", "modal", "transformers", "numpy"}
    code = f"import sys, llmquant.executors.modal.executor\nassert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("text", ["A1000", "l40", ""])
def test_an_unknown_gpu_is_refused(text: str):
    """The message has the name, and the hint what there is."""
    with pytest.raises(UnknownNameError, match=repr(text)):
        _ = ModalOptions(gpu=("T4", text))


@pytest.mark.parametrize("text", ["A100:0", "A100:x", "A100:9", "A100:"])
def test_an_impossible_number_of_gpus_is_refused(text: str):
    """A container has from one to eight GPUs."""
    with pytest.raises(OptionError):
        parse_gpu(text)


def test_gpus_are_asked_for_so_that_no_larger_one_is_given():
    """Timings on an upgraded GPU would be stored as those of the one that was named."""
    assert [parse_gpu(text).asked for text in ("a100", "H100", "A100-80GB:2")] == ["A100-40GB", "H100!", "A100-80GB:2"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"gpu": ()},
        {"gpu": ("A100", "A100-40GB")},
        {"gpu": ("none", "L40S")},
        {"timeout": 5},
        {"timeout": 90000},
        {"max_parallel": 0},
        {"budget": 0.0},
        {"volume": "a/b"},
        {"python_version": "three"},
    ],
    ids=str,
)
def test_wrong_options_are_refused(wrong: dict):
    """Options check themselves when they are built."""
    with pytest.raises(OptionError):
        ModalOptions(**wrong)


def test_the_worst_case_is_every_job_until_its_timeout_on_the_dearest_gpu():
    """Jobs x hours x (GPUs x rate + cores + memory), whichever GPU Modal has free."""
    options = replace(CHEAP, gpu=("L40S", "H100:2"), cpus=2, memory_gib=10)
    table = modal_money.TABLE
    found = modal_money.estimate(3, options)
    assert found.hours == 1.5
    assert found.dollars == pytest.approx(1.5 * (2 * table.gpu["H100"] + 2 * table.core + 10 * table.gib))
    assert "estimate" in str(found)
    assert table.source in str(found)


def test_a_budget_below_the_worst_case_is_refused():
    """What is spent or promised already counts; exactly the budget is allowed."""
    worst = modal_money.estimate(2, CHEAP)
    modal_money.check_budget(worst, None)
    modal_money.check_budget(worst, worst.dollars)
    with pytest.raises(OptionError, match="maximum cost"):
        modal_money.check_budget(worst, worst.dollars, committed=0.01)


@pytest.mark.parametrize(
    ("given", "paid"),
    [
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100"),
        ("NVIDIA L40S", "L40S"),
        ("", "A100-80GB"),
    ],
)
def test_a_job_costs_what_its_own_gpu_does(given: str, paid: str):
    """Of several that were named, Modal gives one; if it is not known which, the dearest counts."""
    options = replace(CHEAP, gpu=("A100", "L40S", "A100-80GB"))
    an_hour = modal_money.TABLE.an_hour(parse_gpu(paid), options)
    assert modal_money.cost(360, given, options) == pytest.approx(an_hour / 10)


def test_processors_alone_have_a_price_and_no_gpu():
    """Containers without a GPU are paid by core and memory."""
    options = ModalOptions(gpu=("none",), cpus=2, memory_gib=4)
    expected = 2 * modal_money.TABLE.core + 4 * modal_money.TABLE.gib
    assert modal_money.estimate(1, options).dollars == pytest.approx(expected)
    assert options.gpus[0].asked == ""


def test_rates_of_the_workspace_come_before_the_table():
    """What the billing API names is used, the rest keeps its list price and is named."""
    rates = modal_money.rates_from({"gpu_l40s": "1.5", "GPU A100-80GB": "2.25", "cpu": "0.04"})
    assert (rates.gpu["L40S"], rates.gpu["A100-80GB"], rates.core) == (1.5, 2.25, 0.04)
    assert rates.gpu["A100"] == GPUS["A100"].dollars_an_hour
    assert "A100," in rates.source
    assert modal_money.rates_from({"something": "1"}) == modal_money.TABLE


def test_an_index_package_travels_as_its_version(site: Path):
    """A local build such as +cpu is no version that an index has."""
    install(site, "from-index", version="1.2+cpu")
    found = plan("from-index")
    assert "from-index==1.2" in found.pins
    assert not any("+cpu" in pin for pin in found.pins)
    assert not any("from_index" in str(source.remote) for source in found.sources)


def test_a_package_from_version_control_travels_as_its_commit(site: Path):
    """The container fetches exactly the commit that is installed here."""
    vcs = {"vcs": "git", "commit_id": "abc123", "requested_revision": "main"}
    install(site, "from-git", origin={"url": "https://example.org/x.git", "vcs_info": vcs})
    found = plan("from-git")
    assert "from-git @ git+https://example.org/x.git@abc123" in found.pins
    assert "git" in found.system


def test_an_editable_package_travels_with_its_data_entry_points_and_dependencies(site: Path):
    """Its source folder and its metadata go to where the container imports from."""
    origin = {"url": f"file://{site}", "dir_info": {"editable": True}}
    install(site, "from-folder", origin=origin, requires="torch>=2.8")
    found = plan("from-folder")
    remote = {str(source.remote): source.local for source in found.sources}
    assert (remote["/root/from_folder"] / "prompts.json").is_file()
    assert (remote["/root/from_folder-1.0.dist-info"] / "entry_points.txt").is_file()
    assert any(pin.startswith("torch==") for pin in found.pins)


def test_llmquant_always_travels_with_what_it_needs():
    """Its own dependencies are pinned, those of its extras are not taken along."""
    found = plan()
    names = {pin.partition("==")[0] for pin in found.pins}
    assert "llmquant" in names or any(source.remote.name == "llmquant" for source in found.sources)
    assert "torch" not in names
    assert found.python_version == RUNNING


def test_a_registered_module_travels_as_its_file(site: Path):
    """A plugin beside a notebook is one file."""
    (site / "my_method.py").write_text("")
    assert "/root/my_method.py" in {str(source.remote) for source in plan(modules=["my_method.sub"]).sources}


def test_a_source_that_changed_is_another_image(site: Path):
    """An app that was deployed with the old code is not used for the new one."""
    module = site / "my_method.py"
    digests = []
    for text in ("a = 1", "a = 1", "a = 2"):
        module.write_text(text)
        digests.append(modal_image.content_digest(plan(modules=["my_method"])))
    assert digests[0] == digests[1] != digests[2]


def test_equal_requests_share_an_image():
    """The order of plugins and requirements does not build another."""
    assert plan(requires=["torch>=2.8", "transformers>=5.22"]) == plan(requires=["transformers>=5.22", "torch>=2.8"])


def test_what_is_not_installed_here_is_pinned_to_the_tested_version(monkeypatch: pytest.MonkeyPatch):
    """The calling side needs no torch."""

    def none(name: str) -> Distribution:
        raise modal_image.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(modal_image.importlib.metadata, "distribution", none)
    assert modal_image.pin("torch>=2.8") == f"torch=={modal_image.TESTED['torch']}"
    assert modal_image.pin("odd==1.5") == "odd==1.5"
    with pytest.raises(UnsupportedError, match="odd"):
        modal_image.pin("odd>=1")


def test_the_tested_versions_are_the_constraints():
    """One list of versions, told twice, stays one."""
    lines = Path(__file__).parents[1].joinpath("constraints.txt").read_text().splitlines()
    constraints = dict(line.split("==") for line in lines if "==" in line)
    assert {name: constraints[name] for name in modal_image.TESTED} == modal_image.TESTED


def test_what_only_this_machine_has_is_refused(site: Path):
    """A repository in a local folder, an address with a token, compiled code, a package that is not installed."""
    vcs = {"vcs": "git", "commit_id": "abc"}
    install(site, "local-git", origin={"url": "file:///repo", "vcs_info": vcs})
    install(site, "token-git", origin={"url": "https://user:secret@example.org/x", "vcs_info": vcs})
    install(site, "compiled", origin={"url": "file:///src", "dir_info": {}})
    (site / "compiled" / "fast.so").write_bytes(b"")
    for name in ("local-git", "token-git", "compiled", "not-there-at-all"):
        with pytest.raises(UnsupportedError) as caught:
            plan(name)
        assert name in str(caught.value)
        assert "secret" not in str(caught.value)


def test_another_python_is_refused():
    """Versions that are pinned for one Python may not exist for another."""
    with pytest.raises(UnsupportedError, match=RUNNING):
        plan(python_version="3.10")
