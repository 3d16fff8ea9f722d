"""Names of models for people, distinct within a study."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from llmquant.study.experiment import ModelUse


def model_names(models: Iterable[ModelUse]) -> dict[str, str]:
    """Name models by digest: as `ModelUse.name`, and local ones of one name with the folders that tell them apart."""
    named = {model.digest: model for model in models}
    names = {digest: model.name for digest, model in named.items()}
    alike: dict[str, list[str]] = {}
    for digest, name in names.items():
        alike.setdefault(name, []).append(digest)
    for digests in alike.values():
        parts = {digest: Path(named[digest].source).parts for digest in digests}
        for count in range(2, max(map(len, parts.values())) + 1) if len(digests) > 1 else ():
            longer = {digest: str(Path(*parts[digest][-count:])) for digest in digests}
            if len(set(longer.values())) == len(digests):
                names |= longer
                break
    return names
