"""Names of variants that are short enough for tables and charts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from llmquant.errors import OptionError
from llmquant.study.call import Call, Json

# One longer label makes the names of a study short.
_LONG = 40
# Between a label's call and the form of its vectors.
_FORM = " · "
_PATH = re.compile(r"[^\s(),=]*/([^\s(),=/]+)")


def quantizer_of(label: str) -> str:
    """Return a variant's label without the form of its vectors."""
    return label.partition(_FORM)[0]


@dataclass(frozen=True)
class ShortNames:
    """Short names of variants by label; none if all labels are short.

    Attributes:
        notes: sentences that say what the names leave out.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Iterable[str]) -> ShortNames:
        """Leave out the folders of paths, and options that all calls of a plugin share, unless names become equal."""
        labels = list(dict.fromkeys(labels))
        if max(map(len, labels), default=0) <= _LONG:
            return cls()
        calls = {label: call for label in labels if '"' not in label and (call := _call(label)) is not None}
        of_one: dict[str, list[Call]] = {}
        for call in calls.values():
            of_one.setdefault(call.name, []).append(call)
        shared = {name: _shared(each) for name, each in of_one.items()}
        names = {}
        for label, call in calls.items():
            own = {key: value for key, value in call.options.items() if key not in shared[call.name]}
            names[label] = _FORM.join([str(replace(call, options=own)), *label.split(_FORM)[1:]])
        paths = {found[0]: found[1] for name in names.values() for found in _PATH.finditer(name)}
        count = Counter(paths.values())
        ends = {path: end for path, end in paths.items() if count[end] == 1}
        names = {label: _PATH.sub(lambda found: ends.get(found[0], found[0]), name) for label, name in names.items()}
        if len({names.get(label, label) for label in labels}) < len(labels):
            return cls()
        also = [f"Every {name} also has {str(Call('', (), left))[1:-1]}." for name, left in shared.items() if left]
        return cls(names, (*also, *(f"{end} is {path}." for path, end in ends.items())))

    def name(self, label: str) -> str:
        """Return a variant's name."""
        return self.names.get(label, label)

    def text(self, text: str) -> str:
        """Write the names in place of the labels in a text."""
        for label in sorted(self.names, key=len, reverse=True):
            text = text.replace(label, self.names[label])
        return text


def _call(label: str) -> Call | None:
    try:
        return Call.parse(quantizer_of(label))
    except OptionError:  # an imported variant's label need not be a call
        return None


def _shared(calls: list[Call]) -> Mapping[str, Json]:
    """Return the options that several calls have, all with the same value."""
    first, *others = calls
    if all(call == first for call in others):
        return {}
    return {
        key: value for key, value in first.options.items() if all(call.options.get(key) == value for call in others)
    }
