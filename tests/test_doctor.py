"""`doctor` names what is usually broken in an environment, with its cure."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from llmquant.cli import doctor
from llmquant.machine import hardware, packages


def cured(monkeypatch: pytest.MonkeyPatch, *, torch: str | None, vision: str | None, driver: str | None) -> dict:
    """What doctor says of these builds: cures by subject."""
    monkeypatch.setattr(doctor, "built_for_cuda", {"torch": torch, "torchvision": vision}.__getitem__)
    monkeypatch.setattr(doctor, "driver_cuda_version", lambda: driver)
    return {found.subject: (found.mark, found.text, found.cure) for found in doctor._torch()}


def test_cpu_torch_beside_cuda_torchvision_is_found(monkeypatch: pytest.MonkeyPatch):
    """The pair that makes Llama unimportable."""
    found = cured(monkeypatch, torch="", vision="13.0", driver=None)
    assert found == {
        "torchvision": (
            "!!",
            "is built for CUDA 13.0 and torch for CPUs: transformers cannot load most models",
            "Run: pip uninstall torchvision, or install the build for CPUs from pytorch.org.",
        )
    }


def test_a_driver_older_than_torch_is_found(monkeypatch: pytest.MonkeyPatch):
    """CUDA 13 does not run on a driver for CUDA 12."""
    found = cured(monkeypatch, torch="13.0", vision="13.0", driver="12.8")
    assert list(found) == ["driver"]
    assert found["driver"][1] == "torch is built for CUDA 13.0, and the NVIDIA driver runs CUDA 12.8 at most"


def test_cpu_torch_on_a_machine_with_a_driver_is_found(monkeypatch: pytest.MonkeyPatch):
    """Such a torch would compute on the CPU without a word."""
    assert list(cured(monkeypatch, torch="", vision="", driver="13.0")) == ["torch"]


@pytest.mark.parametrize(
    ("torch", "vision", "driver"),
    [("13.0", "13.0", "13.1"), ("12.8", None, "13.0"), ("", "", None), ("", None, None), (None, None, "13.0")],
)
def test_matching_builds_are_no_finding(
    monkeypatch: pytest.MonkeyPatch, torch: str | None, vision: str | None, driver: str | None
):
    """A newer driver runs an older CUDA."""
    assert cured(monkeypatch, torch=torch, vision=vision, driver=driver) == {}


@pytest.mark.parametrize(
    ("text", "cuda"),
    [
        ("__version__ = '2.13.0+cu130'\ncuda: Optional[str] = '13.0'\n", "13.0"),
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\n", ""),
        ("__version__ = '0.28.0+cu118'\nif _check() > 0:\n    cuda = _check()\n", "11.8"),
        ("__version__ = '0.28.0'\n", ""),
    ],
)
def test_a_build_is_read_without_importing_the_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cuda: str
):
    """Importing the broken pair would fail."""
    package = tmp_path / f"pretended_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").write_text("raise AssertionError('imported')")
    (package / "version.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert hardware.built_for_cuda(package.name) == cuda
    assert hardware.built_for_cuda("no_such_package_is_installed") is None


def test_a_requirement_that_is_not_met_is_found(monkeypatch: pytest.MonkeyPatch):
    """With the package that needs it and the command that installs it."""
    installed = {"gptqmodel": "7.7.0", "torch": "2.13.0"}
    needs = ["torch>=2.14.1", "absent>=1; python_version < '3'", "extra-only; extra == 'test'", "numpy==2.2.6"]

    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(packages.importlib.metadata, "version", version)
    monkeypatch.setattr(packages.importlib.metadata, "requires", lambda name: needs if name == "gptqmodel" else None)
    found = [(item.text, item.cure) for item in doctor._requirements(["gptqmodel", "hqq"])]
    assert found == [
        ("needs torch>=2.14.1, found 2.13.0", 'Run: pip install "torch>=2.14.1"'),
        ("needs numpy==2.2.6, found none", 'Run: pip install "numpy==2.2.6"'),
    ]
