"""Calibration tokens: the same text, seed and tokenizer always produce the same sequences."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmquant.errors import RunError, first_line
from llmquant.plugins.context import Context
from llmquant.quantizers.calibration.options import DATA_SETS, Calibrated, read_documents
from llmquant.study.counting import counted
from llmquant.study.experiment import Digest, InputFile, digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

RECORD = "calibration.json"
_SHUFFLED_ROWS = 10_000


@dataclass(frozen=True)
class CalibrationTokens:
    """Sequences of equal length, without padding.

    Attributes:
        ids: token ids, ``samples`` lists of ``sequence_length``.
        source: the text's name.
        digest: digest of all ids in order.
    """

    ids: list[list[int]]
    source: str
    digest: Digest

    def record(self, out: Path) -> None:
        """Write a record of the sequences to ``calibration.json`` in the folder `out`, for the checkpoint's recipe."""
        said = {
            "source": self.source,
            "samples": len(self.ids),
            "sequence_length": len(self.ids[0]),
            "tokens_digest": self.digest,
        }
        (out / RECORD).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def calibration_tokens(options: Calibrated, tokenizer: PreTrainedTokenizerBase, ctx: Context) -> CalibrationTokens:
    """Return the sequences that `options` request.

    Documents are shuffled, tokenized one by one with the tokenizer's own special tokens, joined and cut. From a single
    text, sequences are drawn from its whole length.

    Raises:
        RunError: if the text is too short, or a data set cannot be fetched.
    """
    length, samples = options.sequence_length, options.samples
    draw = random.Random(options.calibration_seed)
    documents, source = _documents(options, draw, ctx)
    found: list[list[int]] = []
    single = isinstance(documents, list) and len(documents) == 1
    for sequence in _cut(_token_ids(documents, tokenizer), length):
        found.append(sequence)
        if len(found) == samples and not single:
            break
    if len(found) < samples:
        raise RunError(
            f"calibration text {source} fills {counted(len(found), 'sequence')} of {length} tokens, and {samples} are "
            "needed",
            hint=f"Use a longer text, or samples={len(found)}." if found else "Use a longer text.",
        )
    ids = draw.sample(found, samples) if single else found
    return CalibrationTokens(ids, source, digest_of(ids))


def _documents(options: Calibrated, draw: random.Random, ctx: Context) -> tuple[Iterable[str], str]:
    chosen = options.calibration
    if isinstance(chosen, str):
        return _fetch(chosen, options.calibration_seed), chosen
    if isinstance(chosen, InputFile):
        documents, source = list(read_documents(ctx.local(chosen), chosen.name)), chosen.name
    else:
        documents, source = list(chosen), counted(len(chosen), "text")
    draw.shuffle(documents)
    return documents, source


def _fetch(name: str, seed: int) -> Iterator[str]:
    """Stream the training split; only the documents that are read are fetched."""
    import datasets

    repository, configuration = DATA_SETS[name]
    try:
        rows = datasets.load_dataset(repository, configuration, split="train", streaming=True)
        for row in rows.shuffle(seed=seed, buffer_size=_SHUFFLED_ROWS):
            if row["text"].strip():
                yield row["text"]
    except Exception as error:  # datasets, the Hub's client and its transport each raise their own errors
        reason = first_line(error)
        raise RunError(
            f"calibration text {name} ({repository}) could not be fetched: {reason}",
            hint="Check the connection, or use a text file: calibration=FILE.txt.",
        ) from error


def _token_ids(documents: Iterable[str], tokenizer: Any) -> Iterator[int]:  # Any: a tokenizer
    for text in documents:
        # verbose=False: the tokenizer would warn about texts longer than the model's context, which are cut later.
        yield from tokenizer(text, verbose=False)["input_ids"]


def _cut(ids: Iterable[int], length: int) -> Iterator[list[int]]:
    """Yield whole sequences; left-over tokens at the end are dropped."""
    sequence: list[int] = []
    for token in ids:
        sequence.append(token)
        if len(sequence) == length:
            yield sequence
            sequence = []
