"""Read a task's YAML with its includes merged and its functions kept as names, without importing lm-eval."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class Function:
    """``!function module.name`` in a task's YAML, not imported.

    Attributes:
        module: module relative to the YAML's folder if its file exists there, else an installed module.
        folder: folder of the YAML; ``None`` for a text without a file.
    """

    module: str
    name: str
    folder: Path | None = None

    @property
    def file(self) -> Path | None:
        """The source file in the YAML's folder, if it exists."""
        file = None if self.folder is None else self.folder / f"{self.module.replace('.', '/')}.py"
        return file if file is not None and file.is_file() else None


def read_yaml(text: str, folder: Path | None = None) -> dict[str, Any]:  # Any: YAML values
    """Parse a task's YAML; functions stay names.

    Raises:
        ValueError: if the text is not a table.
        yaml.YAMLError: if the text is not YAML.
    """

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        pass

    def function(loader: Any, node: Any) -> Function:  # Any: yaml's loader and node
        module, _, name = str(loader.construct_scalar(node)).rpartition(".")
        return Function(module, name, folder)

    Loader.add_constructor("!function", function)
    value = yaml.load(text, Loader=Loader)
    if not isinstance(value, dict):
        raise ValueError("a task's YAML is a table of keys and values")
    return value


def read_task(file: Path) -> dict[str, Any]:  # Any: YAML values
    """Read a task's YAML with its includes merged; functions stay names.

    Raises:
        OSError, ValueError, yaml.YAMLError: if the YAML or an include cannot be read.
    """
    own = read_yaml(file.read_text(encoding="utf-8"), file.parent)
    merged: dict[str, Any] = {}  # Any: see above
    for include in strings(own.pop("include", ())):
        merged |= read_task(file.parent / include)
    return merged | own


def write_yaml(value: Mapping[str, Any]) -> str:  # Any: YAML values
    """Write a task's YAML, with functions as names."""

    class Dumper(yaml.SafeDumper):
        pass

    Dumper.add_representer(Function, lambda dumper, f: dumper.represent_scalar("!function", f"{f.module}.{f.name}"))
    return yaml.dump(dict(value), Dumper=Dumper)


def strings(value: Any) -> tuple[str, ...]:  # Any: YAML values
    """Read a word or a list of words as a tuple."""
    return (value,) if isinstance(value, str) else tuple(str(item) for item in value or ())


def leaves(value: Any) -> Iterator[Any]:  # Any: YAML or JSON values
    """Yield every value in tables and lists, at any depth."""
    if isinstance(value, Mapping | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from leaves(item)
    else:
        yield value
