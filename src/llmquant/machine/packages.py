"""The versions of installed packages, and the packages that change numbers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Iterator

from packaging.requirements import Requirement

# Every quantizer uses these; a checkpoint is made by them and by the packages that the quantizer's spec names.
STACK = ("accelerate", "safetensors", "torch", "transformers")
# An embedder's pixels and tokens depend on these: torchvision resizes images where it is installed, Pillow elsewhere.
PREPROCESSING = ("transformers", "torchvision", "pillow", "rapidocr-onnxruntime", "colpali-engine")
# Packages that change numbers, besides those that plugins need.
MEASURING = ("llmquant", "tokenizers", "datasets", "numpy")


def installed_version(package: str) -> str | None:
    """Return a package's version; ``None`` if the package is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def installed_versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    return {name: version for name in packages if (version := installed_version(name)) is not None}


def unmet_requirements(packages: Iterable[str]) -> Iterator[tuple[str, Requirement, str | None]]:
    """Yield each unmet requirement of the installed packages: who requires it, the requirement, the version found."""
    for name in installed_versions(packages):
        for line in importlib.metadata.requires(name) or ():
            needed = Requirement(line)
            found = installed_version(needed.name)
            applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
            if applies and (found is None or not needed.specifier.contains(found, prereleases=True)):
                yield name, needed, found
