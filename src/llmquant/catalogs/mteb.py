"""Which tasks and benchmarks mteb has, without importing it: an index that is made once per version.

The index of the version that is tested comes with the package, for studies that run where mteb gets installed for them.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import json
import lzma
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from llmquant.errors import MissingDependencyError, OptionError, UnknownNameError, nearest
from llmquant.storage.cache import Cache

_INSTALL = 'pip install "llmquant[embed]"'
_SHIPPED = Path(__file__).with_name("mteb_tasks.json.xz")
_FORMAT = 2  # of the cached file

Part: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A task's name, and the subsets and splits of it that are wanted; empty for all."""


@dataclass(frozen=True)
class MtebTask:
    """A task, as mteb describes it.

    Attributes:
        type: such as ``Retrieval``, ``DocumentUnderstanding``, ``STS``.
        retrieval: whether queries are held against documents, reranking included.
        category: ``t2i`` is texts that find images.
        modalities: of queries and documents together.
        subsets: mostly languages: the name, and its language codes: ``{"english": "eng-Latn"}``.
        queries: of all subsets and splits; ``None`` where mteb does not say.
        documents: of the largest subset: subsets in several languages often share theirs.
        samples: of tasks without queries.
        public: whether its data can be had without an agreement.
        superseded_by: a later version; ``""`` for none.
    """

    name: str
    type: str
    retrieval: bool
    category: str
    modalities: tuple[str, ...]
    main_score: str
    subsets: Mapping[str, str]
    splits: tuple[str, ...]
    queries: int | None
    documents: int | None
    samples: int | None
    public: bool = True
    superseded_by: str = ""

    @property
    def languages(self) -> list[str]:
        """List its languages, as ISO 639-3 codes."""
        return sorted({code.partition("-")[0] for codes in self.subsets.values() for code in codes.split()})

    def subsets_in(self, languages: Sequence[str]) -> tuple[str, ...]:
        """Return the subsets that hold one of `languages`: ``eng`` or ``eng-Latn``."""
        return tuple(
            name
            for name, codes in self.subsets.items()
            if any(language in (code, code.partition("-")[0]) for code in codes.split() for language in languages)
        )


@dataclass(frozen=True)
class MtebEmbedder:
    """A model that mteb can load and that gives one vector an item.

    Attributes:
        dims: widths it can give, the largest first.
        similarity: as mteb calls it: ``cosine``, ``dot``, ``euclidean`` ...
    """

    dims: tuple[int, ...]
    modalities: tuple[str, ...]
    similarity: str


@dataclass(frozen=True)
class MtebIndex:
    """All tasks and benchmarks of one mteb.

    Attributes:
        benchmarks: the parts that each is made of; a part may be a benchmark itself.
        models: by mteb's names, which are mostly ids on the Hub.
    """

    version: str
    tasks: Mapping[str, MtebTask]
    benchmarks: Mapping[str, tuple[Part, ...]]
    models: Mapping[str, MtebEmbedder] = field(default_factory=dict)

    def expand(self, name: str) -> list[Part]:
        """Return the tasks that `name` stands for: itself, or those of a benchmark.

        Raises:
            UnknownNameError: if mteb has none; the nearest names are in the hint.
        """
        if name in self.benchmarks:
            parts = [found for part in self.benchmarks[name] for found in self._leaves(part)]
            return list(dict.fromkeys(parts))
        if name not in self.tasks:
            raise UnknownNameError(
                f"mteb {self.version} has no task or benchmark {name!r}",
                hint=nearest(name, [*self.tasks, *self.benchmarks]),
            )
        return [(name, (), ())]

    def select(self, part: Part, languages: Sequence[str], subsets: Sequence[str], splits: Sequence[str]) -> Part:
        """Narrow a part to languages, subsets and splits.

        Raises:
            OptionError: if the task has none of these.
        """
        name, own_subsets, own_splits = part
        task = self.tasks[name]
        kept = own_subsets or tuple(task.subsets)
        for wanted, kind in ((subsets, "subset"), (splits, "split")):
            known = kept if kind == "subset" else own_splits or task.splits
            for value in wanted:
                if value not in known:
                    raise OptionError(f"mteb: task {name!r} has no {kind} {value!r}", hint=nearest(value, known))
        if languages:
            spoken = set(task.subsets_in(languages)) & set(kept)
            if not spoken:
                raise OptionError(
                    f"mteb: task {name!r} has nothing in {', '.join(languages)}",
                    hint=f"Its languages: {', '.join(task.languages)}.",
                )
            kept = tuple(subset for subset in kept if subset in spoken)
        kept = tuple(subset for subset in kept if not subsets or subset in subsets)
        splits = tuple(splits) or own_splits
        return name, () if kept == tuple(task.subsets) else kept, () if splits == task.splits else tuple(splits)

    def _leaves(self, part: Part) -> Iterator[Part]:
        name, subsets, splits = part
        if name in self.benchmarks:
            yield from (leaf for inner in self.benchmarks[name] for leaf in self._leaves(inner))
        else:
            yield name, subsets, splits


def known_mteb(cache: Cache) -> MtebIndex:
    """Index the installed mteb, which takes about fifteen seconds the first time; without one, read the shipped index.

    Raises:
        MissingDependencyError: if mteb is installed and cannot be imported.
    """
    if not mteb_is_installed():
        return _load(_SHIPPED)
    version = importlib.metadata.version("mteb")

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "llmquant.catalogs.mteb_scan", str(folder / "tasks.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise MissingDependencyError(f"mteb {version} cannot be imported: {last}", hint=f"Run: {_INSTALL}")

    return _load(cache.get("tasks", {"mteb": version, "format": _FORMAT}, make) / "tasks.json")


def mteb_is_installed() -> bool:
    """Say whether mteb is installed; it is not imported."""
    return importlib.util.find_spec("mteb") is not None


@functools.lru_cache(maxsize=2)
def _load(file: Path) -> MtebIndex:
    data = file.read_bytes()
    found = json.loads(lzma.decompress(data) if file == _SHIPPED else data)
    tasks = {
        name: MtebTask(name, **{**row, "modalities": tuple(row["modalities"]), "splits": tuple(row["splits"])})
        for name, row in found["tasks"].items()
    }
    benchmarks = {
        name: tuple((task, tuple(subsets), tuple(splits)) for task, subsets, splits in parts)
        for name, parts in found["benchmarks"].items()
    }
    models = {
        name: MtebEmbedder(tuple(row["dims"]), tuple(row["modalities"]), row["similarity"])
        for name, row in found["models"].items()
    }
    return MtebIndex(found["version"], tasks, benchmarks, models)


def list_tasks(name: str, cache: Cache) -> list[MtebTask]:
    """Return the tasks of a benchmark, the task of this name, or those whose names contain it, in any case.

    Raises:
        UnknownNameError: if there is none; the nearest names are in the hint.
        MissingDependencyError: if mteb is installed and cannot be imported.
    """
    index = known_mteb(cache)
    if name not in index.benchmarks and name not in index.tasks:
        found = [task for task in index.tasks.values() if name.lower() in task.name.lower()]
        if found:
            return found
    return [index.tasks[task] for task, _, _ in index.expand(name)]


__all__ = [
    "MtebEmbedder",
    "MtebIndex",
    "MtebTask",
    "Part",
    "known_mteb",
    "list_tasks",
    "mteb_is_installed",
]
