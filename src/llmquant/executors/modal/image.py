"""What a container on Modal needs to run a job: pinned packages, and sources that no index has.

Each distribution travels as it was installed: from an index as ``name==version``, from version control as
``name @ git+URL@COMMIT``, from a folder as its source and its metadata, so that entry points are found there too.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import Distribution, entry_points
from pathlib import Path, PurePosixPath
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from llmquant.errors import OptionError, UnsupportedError
from llmquant.study.job import Job

# Modal puts sources here; it is on the container's import path.
SOURCE_ROOT = PurePosixPath("/root")
PYTHON_VERSIONS = ("3.11", "3.12", "3.13", "3.14")
# For a caller without these packages: the versions that are tested. They are CUDA builds on the index.
TESTED = {
    "accelerate": "1.15.0",
    "auto-round": "0.16.1",
    "bitsandbytes": "0.50.2",
    "colpali-engine": "0.3.18",
    "compressed-tensors": "0.20.0",
    "gguf": "0.19.0",
    "gptqmodel": "7.6.0",
    "hqq": "0.2.8.post1",
    "lm-eval": "0.4.13",
    "mteb": "2.26.24",
    "optimum": "2.3.0",
    "optimum-quanto": "0.2.7",
    "peft": "0.20.0",
    "pillow": "13.0.0",
    "pypdfium2": "5.15.2",
    "safetensors": "0.8.0",
    "sentence-transformers": "6.2.0",
    "torch": "2.13.0",
    "torchao": "0.18.0",
    "transformers": "5.23.0",
}
_NATIVE = (".so", ".pyd", ".dylib")


@dataclass(frozen=True)
class Source:
    """A file or folder of this machine and where the container finds it."""

    local: Path
    remote: PurePosixPath


@dataclass(frozen=True)
class ImagePlan:
    """All that an image is made of; equal plans share one image.

    Attributes:
        pins: requirement strings that leave no choice of version, sorted.
        system: Debian packages.
    """

    python_version: str
    pins: tuple[str, ...]
    sources: tuple[Source, ...]
    system: tuple[str, ...]


def plan_image(
    packages: Iterable[str],
    modules: Iterable[str],
    requires: Iterable[str],
    *,
    extra: Sequence[str] = (),
    python_version: str = "",
) -> ImagePlan:
    """Say what the containers of a job need.

    Args:
        packages: distributions whose plugins the job uses; llmquant always travels.
        modules: top-level modules of plugins that were added with ``register``.
        requires: requirement strings of these plugins' specs.
        extra: exact requirements that come first, such as ``sinq==0.1.3``.
        python_version: such as ``3.12``; empty for the one that runs here.

    Raises:
        UnsupportedError: if a package cannot be shipped, has no version that can be pinned, or Python differs.
    """
    pins = {_name(text): text for text in extra}
    sources: list[Source] = []
    wanted = list(requires)
    for package in dict.fromkeys(["llmquant", *(canonicalize_name(p) for p in packages)]):
        dist = _distribution(package)
        origin = _origin(dist)
        if origin is None or "vcs_info" in origin:
            pins.setdefault(package, pin_installed(dist))
        else:
            sources += _as_source(dist)
            # A copied source brings no dependencies by itself.
            wanted += [text for text in dist.requires or () if _applies(text)]
    for module in modules:
        sources += _module(module)
    for text in wanted:
        if _name(text) != "llmquant" and _name(text) not in pins:
            pins[_name(text)] = pin(text)
    # Triton compiles its launchers with a C compiler when a kernel first runs.
    system = ("gcc", "libc6-dev", *(("git",) if any("git+" in text for text in pins.values()) else ()))
    return ImagePlan(check_python(python_version), tuple(sorted(pins.values())), _once(sources), system)


def needs(job: Job) -> tuple[list[str], list[str], list[str]]:
    """Name the packages, the registered modules and the requirements of the plugins that a job uses."""
    uses = []
    for experiment, _ in job.experiments:
        uses += [experiment["quantizer"], experiment["evaluator"]]
        uses += [embedder] if (embedder := experiment["model"]["embedder"]) else []
    wanted = {use["plugin"] for use in uses}
    packages = sorted({name.rpartition("/")[0] for name in wanted} - {"registered"})
    registered: list[Mapping[str, Any]] = list(job.plugins)  # Any: specs as JSON
    specs = [(f"registered/{spec['name']}", spec) for spec in registered]
    specs += [(f"{package}/{spec['name']}", spec) for package, spec in _declared(packages)]
    requires = {text for name, spec in specs if name in wanted for text in spec["requires"]}
    modules = {spec[part].partition(":")[0] for spec in registered for part in ("options", "target")}
    return packages, sorted(modules), sorted(requires)


def content_digest(plan: ImagePlan) -> str:
    """Return a digest of all that an image is made of, the content of the sources included."""
    found = hashlib.sha256(repr((plan.python_version, plan.pins, plan.system)).encode())
    for source in plan.sources:
        for file in sorted([source.local] if source.local.is_file() else source.local.rglob("*")):
            name = file.relative_to(source.local)
            if file.is_file() and file.suffix != ".pyc" and not any(part.startswith(".") for part in name.parts):
                found.update(f"{source.remote / name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def check_python(version: str) -> str:
    """Return the containers' Python version: the one that runs here.

    Raises:
        UnsupportedError: if another is asked for, or Modal has no such one.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version and version != here:
        raise UnsupportedError(
            f"python_version={version}, but Python {here} runs here: versions that are pinned here may not exist there",
            hint=f"Leave python_version out, or run llmquant with Python {version}.",
        )
    if here not in PYTHON_VERSIONS:
        raise UnsupportedError(f"Modal has no Python {here}", hint=f"Use one of {', '.join(PYTHON_VERSIONS)}.")
    return here


def pin(requirement: str) -> str:
    """Turn a requirement into the version that is installed here, else the one that is tested.

    Raises:
        UnsupportedError: if there is neither.
    """
    wanted = Requirement(requirement)
    name = canonicalize_name(wanted.name)
    try:
        return pin_installed(importlib.metadata.distribution(name), wanted.extras)
    except importlib.metadata.PackageNotFoundError:
        pass
    if name in TESTED and wanted.specifier.contains(TESTED[name]):
        return f"{_with_extras(name, wanted.extras)}=={TESTED[name]}"
    exact = [part for part in wanted.specifier if part.operator == "==" and not part.version.endswith(".*")]
    if exact or wanted.url:
        return requirement
    raise UnsupportedError(
        f"{requirement} is needed on Modal, but it is not installed here, so no version of it can be pinned",
        hint=f"Install it here, or name a version: packages=['{name}==...'].",
    )


def pin_installed(dist: Distribution, extras: Iterable[str] = ()) -> str:
    """Pin a distribution to how it was installed.

    A local version such as ``2.13.0+cpu`` loses what follows the ``+``: indexes do not have it.

    Raises:
        UnsupportedError: if it came from a folder or from version control that only this machine can reach.
    """
    name = _with_extras(canonicalize_name(dist.name), extras)
    origin = _origin(dist)
    if origin is None:
        return f"{name}=={Version(dist.version).public}"
    vcs = origin.get("vcs_info")
    if vcs is None or str(origin["url"]).startswith("file:"):
        raise UnsupportedError(
            f"{dist.name} {dist.version} was installed from {origin['url']}, which Modal cannot reach",
            hint="Install it from an index or from a public repository.",
        )
    if "@" in str(origin["url"]).partition("://")[2].partition("/")[0] and not str(origin["url"]).startswith("ssh:"):
        raise UnsupportedError(f"{dist.name} was installed from an address that holds a password or token")
    return f"{name} @ {vcs['vcs']}+{origin['url']}@{vcs['commit_id']}"


def _declared(packages: Iterable[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:  # Any: the fields of a spec
    for entry in entry_points(group="llmquant"):
        package = canonicalize_name(entry.dist.name) if entry.dist else ""
        if package in packages:
            for spec in entry.load().llmquant_register():
                yield package, vars(spec)


def _distribution(package: str) -> Distribution:
    try:
        return importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnsupportedError(
            f"{package} is used, but is not installed here as a package, so it cannot be shipped",
            hint="Install it: pip install -e FOLDER.",
        ) from error


def _origin(dist: Distribution) -> Mapping[str, Any] | None:  # Any: a JSON object
    """Read where a distribution came from; ``None``: from an index."""
    text = dist.read_text("direct_url.json")
    if text is None:
        return None
    origin: Mapping[str, Any] = json.loads(text)
    return origin


def _as_source(dist: Distribution) -> list[Source]:
    """Ship the installed modules and the metadata, whose entry points name the plugins."""
    metadata = next((file for file in dist.files or () if file.name == "METADATA"), None)
    if metadata is None:
        raise UnsupportedError(
            f"{dist.name} has no metadata that could be shipped", hint="Install it again with a current pip."
        )
    folder = Path(str(dist.locate_file(metadata))).parent
    tops = {entry.module.partition(".")[0] for entry in dist.entry_points}
    tops |= set((dist.read_text("top_level.txt") or "").split())
    if not tops:
        raise UnsupportedError(f"{dist.name} names no module, so it cannot be shipped")
    return [Source(folder, SOURCE_ROOT / folder.name), *(s for top in sorted(tops) for s in _module(top))]


def _module(name: str) -> list[Source]:
    """Ship a top-level module or package with its data; what is compiled fits this machine alone."""
    found = importlib.util.find_spec(name.partition(".")[0])
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise UnsupportedError(f"module {name} has no file that could be shipped")
    path = Path(found.origin)
    if path.name == "__init__.py":
        path = path.parent
    native = [file for file in ([path] if path.is_file() else path.rglob("*")) if file.suffix in _NATIVE]
    if native:
        raise UnsupportedError(
            f"{name} holds code compiled for this machine ({native[0].name}), so its source cannot be shipped",
            hint="Publish it, or install it from a public repository; then Modal builds or fetches it.",
        )
    return [Source(path, SOURCE_ROOT / path.name)]


def _once(sources: Iterable[Source]) -> tuple[Source, ...]:
    unique = {source.remote: source for source in sources}
    return tuple(unique[remote] for remote in sorted(unique))


def _applies(requirement: str) -> bool:
    """Say whether a dependency is needed without any extra."""
    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement as error:
        raise OptionError(f"{requirement!r} is no requirement: {error}") from error


def _with_extras(name: str, extras: Iterable[str]) -> str:
    chosen = ",".join(sorted(extras))
    return f"{name}[{chosen}]" if chosen else name
