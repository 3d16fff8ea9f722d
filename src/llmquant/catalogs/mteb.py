"""The catalogue of mteb's tasks and benchmarks, read without importing mteb: an index per version.

The package contains the index of the tested version; that of another installed version is made once.
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
_FORMAT = 3  # version of the cached file's format

Part: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""A task's name, and its selected subsets and splits; empty for all."""


@dataclass(frozen=True)
class MtebTask:
    """mteb's description of a task.

    Attributes:
        type: kind of task, such as ``Retrieval``, ``DocumentUnderstanding``, ``STS``.
        retrieval: whether queries are compared with documents, reranking included.
        category: kind of input, for example ``t2i`` for texts that find images.
        modalities: modalities of queries and documents together.
        subsets: language codes by subset, for example ``{"english": "eng-Latn"}``.
        queries: number of queries in all subsets and splits; ``None`` if mteb does not state it.
        documents: number of documents in the largest subset, because subsets often share documents.
        samples: number of samples, for tasks without queries.
        public: whether the data is available without an agreement.
        superseded_by: name of a later version; ``""`` for none.
        dataset: data set on the Hub; ``""`` for tasks that read other ones.
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
    dataset: str = ""

    @property
    def languages(self) -> list[str]:
        """List the task's languages, as ISO 639-3 codes."""
        return sorted({code.partition("-")[0] for codes in self.subsets.values() for code in codes.split()})

    def subsets_in(self, languages: Sequence[str]) -> tuple[str, ...]:
        """Return the subsets with one of `languages`: ``eng`` or ``eng-Latn``."""
        return tuple(
            name
            for name, codes in self.subsets.items()
            if any(language in (code, code.partition("-")[0]) for code in codes.split() for language in languages)
        )


@dataclass(frozen=True)
class MtebEmbedder:
    """A model that mteb can load and that returns one vector per item.

    Attributes:
        dims: supported widths, the largest first.
        similarity: mteb's name of the similarity: ``cosine``, ``dot``, ``euclidean`` ...
    """

    dims: tuple[int, ...]
    modalities: tuple[str, ...]
    similarity: str


@dataclass(frozen=True)
class MtebIndex:
    """All tasks and benchmarks of one mteb.

    Attributes:
        benchmarks: the parts of each benchmark; a part may be a benchmark itself.
        models: models by mteb's names, which are mostly Hub ids.
    """

    version: str
    tasks: Mapping[str, MtebTask]
    benchmarks: Mapping[str, tuple[Part, ...]]
    models: Mapping[str, MtebEmbedder] = field(default_factory=dict)

    def expand(self, name: str) -> list[Part]:
        """Return the tasks of `name`: the task itself, or the tasks of a benchmark.

        Raises:
            UnknownNameError: if mteb has no such name; the hint has the nearest names.
        """
        if name not in self.tasks and name not in self.benchmarks:
            raise UnknownNameError(
                f"mteb {self.version} has no task or benchmark {name!r}",
                hint=nearest(name, [*self.tasks, *self.benchmarks]),
            )
        return list(dict.fromkeys(self._leaves((name, (), ()))))

    def select(self, part: Part, languages: Sequence[str], subsets: Sequence[str], splits: Sequence[str]) -> Part:
        """Narrow a part to languages, subsets and splits.

        Raises:
            OptionError: if the task has none of them.
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
        return name, () if kept == tuple(task.subsets) else kept, () if splits == task.splits else splits

    def _leaves(self, part: Part) -> Iterator[Part]:
        if part[0] in self.benchmarks:
            yield from (leaf for inner in self.benchmarks[part[0]] for leaf in self._leaves(inner))
        else:
            yield part


def known_mteb(cache: Cache) -> MtebIndex:
    """Read the shipped index, or that of another installed version of mteb.

    Raises:
        MissingDependencyError: as `scanned_mteb`.
    """
    shipped = _load(_SHIPPED)
    if not mteb_is_installed() or importlib.metadata.version("mteb") == shipped.version:
        return shipped
    return scanned_mteb(cache)


def scanned_mteb(cache: Cache) -> MtebIndex:
    """Index the installed mteb, about fifteen seconds at the first call.

    Raises:
        MissingDependencyError: if mteb is installed but cannot be imported.
    """
    version = importlib.metadata.version("mteb")

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "llmquant.catalogs.mteb_scan", str(folder / "tasks.json")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise MissingDependencyError(f"mteb {version} cannot be imported: {last}", hint=f"Run: {_INSTALL}")

    return _load(cache.get("tasks", {"mteb": version, "format": _FORMAT}, make, name=f"mteb {version}") / "tasks.json")


def mteb_is_installed() -> bool:
    """Return whether mteb is installed, without importing it."""
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
    """Return a benchmark's tasks, the task of this name, or the tasks whose names contain it, ignoring case.

    Raises:
        UnknownNameError: if no name matches; the hint has the nearest names.
        MissingDependencyError: if mteb is installed but cannot be imported.
    """
    index = known_mteb(cache)
    if name not in index.benchmarks and name not in index.tasks:
        found = [task for task in index.tasks.values() if name.lower() in task.name.lower()]
        if found:
            return found
    return [index.tasks[task] for task, _, _ in index.expand(name)]
