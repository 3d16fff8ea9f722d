"""The versions of installed packages, and the packages that change numbers."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable

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
