"""The contents of a Modal image for a job: pinned packages, and sources that are missing from package indexes.

Each distribution is shipped as it was installed: from an index as ``name==version``, from version control as
``name @ git+URL@COMMIT``, from a folder as its source and its metadata, so that its entry points are found.
"""

from __future__ import annotations

import contextlib
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
from llmquant.executors.modal.options import ModalOptions
from llmquant.study.job import Job

# Modal puts sources into this folder, which is on the container's import path.
SOURCE_ROOT = PurePosixPath("/root")
PYTHON_VERSIONS = ("3.11", "3.12", "3.13", "3.14")
# Tested versions, for a caller without these packages. The package index has CUDA builds of them.
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
    """A file or folder of this machine and its path in the container."""

    local: Path
    remote: PurePosixPath


@dataclass(frozen=True)
class ImagePlan:
    """The contents of an image; equal plans share one image.

    Attributes:
        pins: exact requirement strings, sorted.
        system: names of Debian packages.
    """

    python_version: str
    pins: tuple[str, ...]
    sources: tuple[Source, ...]
    system: tuple[str, ...]


def plan_for(jobs: Sequence[Job], options: ModalOptions) -> ImagePlan:
    """Plan one image for the containers of several jobs.

    Raises:
        UnsupportedError: as `plan_image`.
    """
    kinds = zip(*(needs(job) for job in jobs), strict=True)
    packages, modules, requires = (sorted({x for each in kind for x in each}) for kind in kinds)
    return plan_image(packages, modules, requires, extra=options.packages, python_version=options.python_version)


def plan_image(
    packages: Iterable[str],
    modules: Iterable[str],
    requires: Iterable[str],
    *,
    extra: Sequence[str] = (),
    python_version: str = "",
) -> ImagePlan:
    """Plan the image for the containers of a job.

    Args:
        packages: distributions whose plugins the job uses; llmquant is always included.
        modules: top-level modules of plugins added with ``register``.
        requires: requirement strings from the specs of these plugins.
        extra: exact requirements that take precedence, for example ``sinq==0.1.3``.
        python_version: Python version, for example ``3.12``; empty for this program's version.

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
            # A copied source does not install its dependencies.
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
    """Return the packages, registered modules and requirements of the plugins that a job uses."""
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
    """Return a digest of an image's contents, including the sources' files."""
    found = hashlib.sha256(repr((plan.python_version, plan.pins, plan.system)).encode())
    for source in plan.sources:
        for file in sorted([source.local] if source.local.is_file() else source.local.rglob("*")):
            name = file.relative_to(source.local)
            if file.is_file() and file.suffix != ".pyc" and not any(part.startswith(".") for part in name.parts):
                found.update(f"{source.remote / name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return found.hexdigest()


def check_python(version: str) -> str:
    """Return the containers' Python version, which is this program's version.

    Raises:
        UnsupportedError: if another version is requested, or Modal does not offer this version.
    """
    here = f"{sys.version_info.major}.{sys.version_info.minor}"
    if version and version != here:
        raise UnsupportedError(
            f"python_version is {version}, but llmquant runs with Python {here}; pinned packages may need {here}",
            hint=f"Leave python_version out, or run llmquant with Python {version}.",
        )
    if here not in PYTHON_VERSIONS:
        raise UnsupportedError(f"Modal does not offer Python {here}", hint=f"Use one of {', '.join(PYTHON_VERSIONS)}.")
    return here


def pin(requirement: str) -> str:
    """Pin a requirement to the installed version, or to the tested version if the package is not installed.

    Raises:
        UnsupportedError: if there is neither version.
    """
    wanted = Requirement(requirement)
    name = canonicalize_name(wanted.name)
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return pin_installed(importlib.metadata.distribution(name), wanted.extras)
    if name in TESTED and wanted.specifier.contains(TESTED[name]):
        return f"{_with_extras(name, wanted.extras)}=={TESTED[name]}"
    exact = [part for part in wanted.specifier if part.operator == "==" and not part.version.endswith(".*")]
    if exact or wanted.url:
        return requirement
    raise UnsupportedError(
        f"{requirement} is needed on Modal, but {name} is not installed here, so its version cannot be pinned",
        hint=f"Install {name} here, or give a version: packages=['{name}==...'].",
    )


def pin_installed(dist: Distribution, extras: Iterable[str] = ()) -> str:
    """Pin a distribution to its installed version and origin.

    A local version such as ``2.13.0+cpu`` is pinned without the part from ``+``, which package indexes do not have.

    Raises:
        UnsupportedError: if the distribution came from a folder or from a repository that only this machine can reach.
    """
    name = _with_extras(canonicalize_name(dist.name), extras)
    origin = _origin(dist)
    if origin is None:
        return f"{name}=={Version(dist.version).public}"
    vcs = origin.get("vcs_info")
    if vcs is None or str(origin["url"]).startswith("file:"):
        raise UnsupportedError(
            f"{dist.name} {dist.version} was installed from {origin['url']}, which Modal cannot reach",
            hint="Install the package from an index or from a public repository.",
        )
    if "@" in str(origin["url"]).partition("://")[2].partition("/")[0] and not str(origin["url"]).startswith("ssh:"):
        raise UnsupportedError(f"{dist.name} was installed from a URL with a password or token")
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
            f"plugin package {package} is not installed as a package, so it cannot be shipped",
            hint="Install the package: pip install -e FOLDER.",
        ) from error


def _origin(dist: Distribution) -> Mapping[str, Any] | None:  # Any: a JSON object
    """Read a distribution's origin; ``None`` for a package index."""
    text = dist.read_text("direct_url.json")
    origin: Mapping[str, Any] | None = None if text is None else json.loads(text)  # Any: as above
    return origin


def _as_source(dist: Distribution) -> list[Source]:
    """Ship the installed modules and the metadata, whose entry points name the plugins."""
    metadata = next((file for file in dist.files or () if file.name == "METADATA"), None)
    if metadata is None:
        raise UnsupportedError(
            f"{dist.name} has no metadata to ship", hint="Install the package again with a current pip."
        )
    folder = Path(str(dist.locate_file(metadata))).parent
    tops = {entry.module.partition(".")[0] for entry in dist.entry_points}
    tops |= set((dist.read_text("top_level.txt") or "").split())
    if not tops:
        raise UnsupportedError(f"package {dist.name} lists no modules, so it cannot be shipped")
    return [Source(folder, SOURCE_ROOT / folder.name), *(s for top in sorted(tops) for s in _module(top))]


def _module(name: str) -> list[Source]:
    """Ship a top-level module or package with its data, but no compiled code, which only fits this machine."""
    found = importlib.util.find_spec(name.partition(".")[0])
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise UnsupportedError(f"module {name} has no file to ship")
    path = Path(found.origin)
    if path.name == "__init__.py":
        path = path.parent
    native = [file for file in ([path] if path.is_file() else path.rglob("*")) if file.suffix in _NATIVE]
    if native:
        raise UnsupportedError(
            f"{name} contains code compiled for this machine ({native[0].name}), so its source cannot be shipped",
            hint="Publish the package or install it from a public repository; Modal then downloads or builds it.",
        )
    return [Source(path, SOURCE_ROOT / path.name)]


def _once(sources: Iterable[Source]) -> tuple[Source, ...]:
    unique = {source.remote: source for source in sources}
    return tuple(unique[remote] for remote in sorted(unique))


def _applies(requirement: str) -> bool:
    """Return whether a dependency is needed without any extra."""
    marker = Requirement(requirement).marker
    return marker is None or marker.evaluate({"extra": ""})


def _name(requirement: str) -> str:
    try:
        return canonicalize_name(Requirement(requirement).name)
    except InvalidRequirement as error:
        raise OptionError(f"{requirement!r} is not a valid requirement: {error}") from error


def _with_extras(name: str, extras: Iterable[str]) -> str:
    chosen = ",".join(sorted(extras))
    return f"{name}[{chosen}]" if chosen else name
