"""The catalogue of the installed lm-eval's tasks and their YAML files, read without importing lm-eval.

lm-eval's own ``TaskManager()`` parses 14,000 YAMLs with their includes (10 to 53 s); only five of their keys hold a
task's name and groups, and a text scan finds these keys in about a second. The result is cached by version.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from llmquant.catalogs.lm_eval_yaml import read_yaml, strings
from llmquant.errors import MissingDependencyError, UnknownNameError, nearest
from llmquant.storage.cache import Cache

INSTALL = 'pip install "llmquant[local]"'
_FORMAT = 1  # version of the cached file's format

_KEY = re.compile(r"""^(["']?)(task|group|tag|include|class)\1[ \t]*:[ \t]*(.*)$""", re.MULTILINE)
_ITEM = re.compile(r"""[ \t]*-[ \t]+(["']?)([\w.+/-]+)\1[ \t]*(?:#.*)?""")
_WORD = re.compile(r"""(["']?)([\w.+/-]+)\1[ \t]*(?:#.*)?""")


@dataclass(frozen=True)
class Entry:
    """A name that ``tasks`` may hold.

    Attributes:
        file: the YAML that defines the name, relative to the folder of all tasks; ``""`` for a tag.
        members: names of a group's or tag's tasks, groups and tags; some may not be entries (inline tasks are not).
    """

    kind: Literal["task", "group", "tag"]
    file: str
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskIndex:
    """All tasks, groups and tags of one lm-eval.

    Attributes:
        root: the folder of all tasks.
    """

    root: Path
    version: str
    entries: Mapping[str, Entry]

    def find(self, name: str) -> Entry:
        """Look a name up.

        Raises:
            UnknownNameError: if lm-eval has no such name; the hint has the nearest names.
        """
        entry = self.entries.get(name)
        if entry is None:
            raise UnknownNameError(
                f"lm-eval {self.version} has no task, group or tag {name!r}", hint=nearest(name, self.entries)
            )
        return entry

    def files(self, name: str) -> list[Path]:
        """List the YAMLs that `name` needs: its own and those of all its members, in lm-eval's order.

        Raises:
            UnknownNameError: if lm-eval has no such name.
        """
        self.find(name)
        return [self.root / file for file in sorted({self.entries[n].file for n in self._closure(name)} - {""})]

    def leaves(self, name: str) -> list[str]:
        """List the tasks of `name`: the task itself, or all tasks of a group or tag.

        Raises:
            UnknownNameError: if lm-eval has no such name.
        """
        self.find(name)
        return sorted(found for found in self._closure(name) if self.entries[found].kind == "task")

    def _closure(self, name: str) -> set[str]:
        found, left = set(), [name]
        while left:
            current = left.pop()
            if current in self.entries and current not in found:
                found.add(current)
                left += self.entries[current].members
        return found


_known: dict[tuple[Path, str], TaskIndex] = {}  # by lm-eval's folder and version


def installed_tasks(cache: Cache) -> TaskIndex:
    """Index the installed lm-eval; the first call takes about a second, later processes a tenth.

    Raises:
        MissingDependencyError: if lm-eval is not installed.
    """
    spec = importlib.util.find_spec("lm_eval")  # finds the package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise MissingDependencyError(
            "evaluator 'lm_eval' needs lm-eval, which is not installed", hint=f"Run: {INSTALL}"
        )
    root = Path(spec.submodule_search_locations[0]) / "tasks"
    version = importlib.metadata.version("lm-eval")
    if (root, version) in _known:
        return _known[root, version]

    def make(folder: Path) -> None:
        entries = {name: [entry.kind, entry.file, entry.members] for name, entry in scan(root).items()}
        (folder / "tasks.json").write_text(json.dumps(entries), encoding="utf-8")

    folder = cache.get("tasks", {"lm_eval": version, "format": _FORMAT}, make, name=f"lm-eval {version}")
    rows = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    entries = {name: Entry(kind, path, tuple(members)) for name, (kind, path, members) in rows.items()}
    return _known.setdefault((root, version), TaskIndex(root, version, entries))


def scan(root: Path) -> dict[str, Entry]:
    """Read the names in all YAMLs under `root`; as in lm-eval's own index, the first file with a name wins."""
    entries: dict[str, Entry] = {}
    tagged: dict[str, list[str]] = {}
    names: dict[Path, _Names | None] = {}
    files = (file for file in root.rglob("*.yaml") if "__pycache__" not in file.parts)
    for file in sorted(files, key=lambda file: file.as_posix()):
        found = _names(file, names)
        if found is None:
            continue
        relative = file.relative_to(root).as_posix()
        if found.group and not found.python:
            entries.setdefault(found.group, Entry("group", relative, found.members))
        elif found.task and found.task not in entries:
            entries[found.task] = Entry("task", relative)
            for tag in found.tags:
                entries.setdefault(tag, Entry("tag", ""))  # reserves the name: a later group with this name is ignored
                tagged.setdefault(tag, []).append(found.task)
    for tag, tasks in tagged.items():
        if entries[tag].kind == "tag":
            entries[tag] = Entry("tag", "", tuple(tasks))
    return entries


@dataclass(frozen=True)
class _Names:
    """The five keys of one YAML with includes merged; empty for missing keys."""

    task: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    members: tuple[str, ...] = ()
    python: bool = False


def _names(file: Path, seen: dict[Path, _Names | None]) -> _Names | None:
    """Read one YAML; ``None`` for YAMLs that lm-eval skips too, because it cannot read them or their includes."""
    if file in seen:
        return seen[file]
    seen[file] = None  # ends circular includes
    try:
        own = _own_keys(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    merged: dict[str, Any] = {}  # Any: YAML values
    for include in strings(own.pop("include", ())):
        base = _names(file.parent / include, seen)
        if base is None:
            return None
        merged |= {key: value for key, value in vars(base).items() if value}
    if "task" in own:
        task = own["task"]
        merged |= (
            {"task": task, "members": ()}
            if isinstance(task, str)
            else {"task": "", "members": tuple(dict.fromkeys(_members(task)))}
        )
    if "group" in own:
        merged["group"] = own["group"]
    if "tag" in own:
        merged["tags"] = strings(own["tag"])
    if "class" in own:
        merged["python"] = True
    seen[file] = _Names(**merged)
    return seen[file]


def _own_keys(text: str) -> dict[str, Any]:  # Any: YAML values
    """Read the five keys of a YAML from its text, or parse the YAML if they are not words or lists of words."""
    found: dict[str, Any] = {}  # Any: see above
    for match in _KEY.finditer(text):
        key, value = match[2], match[3].strip()
        word = _WORD.fullmatch(value)
        if word:
            found[key] = word[2]
        elif key == "class":
            found[key] = value
        elif not value and (items := _items(text[match.end() + 1 :])):
            found[key] = items
        else:
            parsed = read_yaml(text)
            return {k: parsed[k] for k in ("task", "group", "tag", "include", "class") if parsed.get(k)}
    return found


def _items(text: str) -> list[str]:
    """Read a block list of words; empty if the block holds anything else."""
    items: list[str] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.lstrip().startswith("- "):
            return [] if line[0] in " \t-" else items
        item = _ITEM.fullmatch(line)
        if not item:
            return []
        items.append(item[2])
    return items


def _members(items: Any) -> Iterator[str]:  # Any: YAML values
    """Name the members of a group: words, ``{task: name}``, ``{group: name}``, or inline groups."""
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from strings(item.get("group"))
            yield from _members(item.get("task", []))
