"""Calibration options shared by GPTQ, AWQ and similar methods: which text, and how much of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

from llmquant.errors import OptionError
from llmquant.models.info import ModelInfo
from llmquant.storage.text_files import read_rows, read_text
from llmquant.study.experiment import InputFile
from llmquant.study.folders import near

# The sets that GPTQ's reference implementation calibrates on (Frantar et al., arXiv:2210.17323).
DATA_SETS = {
    "c4": ("allenai/c4", "en"),
    "wikitext2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
}
# One word with a folder or an ending is the path of a text that is not there.
_PATH = re.compile(r"\S*(/\S+|\S\.[A-Za-z]{2,5})")
_SPECIAL = 4  # tokens that a tokenizer may add to each document
Calibration = Literal["c4", "wikitext2"] | InputFile | tuple[str, ...]


class Calibrated:
    """Options of a quantizer that reads calibration text: base class of those of GPTQ, AWQ and AutoRound.

    Attributes:
        calibration: calibration text: ``c4`` (English) or ``wikitext2``, the training split of each, from the Hub; a
            file, either plain text or ``.jsonl`` with a column ``text``; or the texts themselves.
        samples: number of calibration sequences, for example 128.
        sequence_length: tokens per calibration sequence, for example 2048.
        calibration_seed: seed that selects the sequences, for example 0.
    """

    calibration: Calibration
    samples: int
    sequence_length: int
    calibration_seed: int

    def texts(self) -> Iterator[str]:
        """Yield the local documents; nothing for a data set of the Hub.

        Raises:
            OptionError: if a file has the wrong format.
        """
        if isinstance(self.calibration, tuple):
            yield from self.calibration
        elif isinstance(self.calibration, InputFile) and self.calibration.path is not None:
            yield from read_documents(self.calibration.path, self.calibration.name)

    def hub_rows(self) -> Mapping[str, str]:
        """Return the data set of the Hub that is read, and what to write instead; nothing for local texts."""
        chosen = self.calibration
        return {":".join(DATA_SETS[chosen]): "calibration=FILE.txt"} if isinstance(chosen, str) else {}


def check_calibration_values(options: Calibrated, name: str) -> None:
    """Refuse numbers that are out of range.

    Args:
        name: name of the quantizer, for the message.

    Raises:
        OptionError: naming the first such number.
    """
    for field, least in (("samples", 1), ("sequence_length", 16), ("calibration_seed", 0)):
        if getattr(options, field) < least:
            raise OptionError(f"{name}: {field} must be at least {least}, found {getattr(options, field)}")


def check_calibration(options: Calibrated, model: ModelInfo, name: str) -> None:
    """Refuse a text that is missing, unreadable or far too short, and sequences that are too long for the model.

    Raises:
        OptionError: naming the text or the length.
    """
    positions = model.text_config.get("max_position_embeddings")
    if isinstance(positions, int) and options.sequence_length > positions:
        raise OptionError(
            f"{name}: sequence_length is {options.sequence_length}; {model.source} reads at most {positions} tokens",
            hint=f"Use sequence_length={positions} or less.",
        )
    texts = list(options.texts())
    held = sum(len(text.encode()) for text in texts)
    needed = options.samples * options.sequence_length
    if texts and held + _SPECIAL * len(texts) < needed:  # a token of the text has at least a byte
        what = options.calibration
        if not isinstance(what, InputFile) and _PATH.fullmatch(texts[0]):
            raise OptionError(f"{name}: calibration: there is no file {texts[0]!r}", hint=near(Path(texts[0])))
        shown = what.name if isinstance(what, InputFile) else f"the text {texts[0][:40]!r}"
        raise OptionError(
            f"{name}: calibration: {shown} holds {held} bytes, which cannot fill {options.samples} sequences of "
            f"{options.sequence_length} tokens",
            hint="Use c4, wikitext2, the path of an existing longer text, or fewer or shorter sequences.",
        )


def read_documents(path: Path, name: str) -> Iterator[str]:
    """Yield the documents of a file: the column ``text`` of a ``.jsonl`` file, the whole text of any other file.

    Args:
        name: the file's name in messages.

    Raises:
        OptionError: if it is not UTF-8 text, or a line has no text.
    """
    where = f"calibration: {name}"
    if not name.lower().endswith(".jsonl"):
        yield read_text(path, where)
        return
    for number, row in read_rows(path, where):
        if not isinstance(row.get("text"), str):
            raise OptionError(
                f"{where}, line {number} has no text; it has {', '.join(map(repr, row)) or 'nothing'}",
                hint='Each line is a JSON object with a text in its field "text".',
            )
        yield row["text"]
