"""Options of the perplexity evaluator: the text, its length, and its windows."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from llmquant.errors import OptionError, raise_all
from llmquant.plugins.evaluator import Cost
from llmquant.storage.text_files import read_text
from llmquant.study.experiment import Documents, InputFile
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

NAMED = {"wikitext2": "Salesforce/wikitext:wikitext-2-raw-v1:test:text"}
# Only for estimates: tokens of WikiText-2's test set, and bytes of English per token.
_TOKENS = 290_000
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True)
class PerplexityOptions:
    """How well a model predicts a text, in windows that slide over the text.

    Attributes:
        text: a UTF-8 text file; ``wikitext2``, the test set of WikiText-2 raw; or another data set of the Hub as
            ``repository:configuration:split:column``, its rows joined by empty lines.
        window: tokens that the model reads at a time, for example 2048; at most the model's number of positions.
        stride: tokens between two windows' ends, for example 512: each token is scored once, after more than
            ``window - stride`` other tokens. ``None`` is half a window. A whole window cuts the text into chunks, which
            is faster and gives a higher perplexity.
        max_tokens: number of leading tokens of the text to use, for example 100000; ``None`` means all. Published
            numbers use the whole text.
        batch_size: windows per batch, for example 1.
    """

    evaluator: ClassVar[str] = "perplexity"  # for messages
    strides_per_window: ClassVar[int] = 2  # where no stride is given

    text: Literal["wikitext2"] | InputFile | str = "wikitext2"
    window: int = 1024
    stride: int | None = None
    max_tokens: int | None = 16_384
    batch_size: int = 1

    def __post_init__(self) -> None:
        """Refuse values that are out of range or contradict each other."""
        raise_all(list(_wrong_values(self)))

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse a text that is missing, is not a text, or does not fill a window.

        Raises:
            OptionError: naming the fault.
        """
        if not isinstance(self.text, InputFile):
            if self.text != "wikitext2" and not _is_data_set(self.text):
                if Path(self.text).exists():
                    what = "is a folder" if Path(self.text).is_dir() else "is empty"
                    raise OptionError(f"{self.evaluator}: {self.text} {what}", hint="Use a text file.")
                raise OptionError(
                    f"{self.evaluator}: {self.text!r} is neither a file nor the name of a data set",
                    hint="Use a text file, wikitext2, or repository:configuration:split:column.",
                )
            return
        if self.text.path is None:  # a worker need not check again
            return
        size = len("".join(self.texts()).encode())
        if size < self.window:
            raise OptionError(
                f"{self.evaluator}: {self.text.name} holds {size} bytes, which cannot fill a window of {self.window} "
                "tokens",
                hint="Use a longer text or a smaller window.",
            )

    def metrics(self) -> Collection[str]:
        """Return the names of the scores."""
        return ("perplexity", "nll_per_token", "bits_per_byte")

    def texts(self) -> Iterator[str]:
        """Yield the local evaluation text."""
        if isinstance(self.text, InputFile) and self.text.path is not None:
            yield read_text(self.text.path, f"{self.evaluator}: {self.text.name}")

    def hub_rows(self) -> Mapping[str, str]:
        """Return the data set of the text, and what to write instead; nothing for a file."""
        if isinstance(self.text, InputFile):
            return {}
        return {NAMED.get(self.text, self.text): f"{self.evaluator}(FILE.txt)"}

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Return the work: every window is read completely."""
        tokens = _TOKENS
        if isinstance(self.text, InputFile) and self.text.path is not None:
            tokens = self.text.path.stat().st_size // _BYTES_PER_TOKEN
        tokens = min(tokens, self.max_tokens or tokens)
        window, stride = windows_of(self, None)
        return Cost(window * (1 + max(0, -(-(tokens - window) // stride))))


def windows_of(options: PerplexityOptions, positions: int | None) -> tuple[int, int]:
    """Return window and stride for a model with at most `positions` positions; ``None`` means no limit."""
    window = min(options.window, positions or options.window)
    return window, min(options.stride or max(1, window // options.strides_per_window), window)


def _wrong_values(options: PerplexityOptions) -> Iterator[OptionError]:
    if options.window < 2:
        yield OptionError(f"{options.evaluator}: window must be at least 2, found {options.window}")
    elif options.stride is not None and not 0 < options.stride <= options.window:
        yield OptionError(
            f"{options.evaluator}: stride must be 1 to window ({options.window}), found {options.stride}",
            hint="Tokens between two windows would not be scored." if options.stride > options.window else "",
        )
    if options.max_tokens is not None and options.max_tokens < 2:
        yield OptionError(f"{options.evaluator}: max_tokens must be at least 2, found {options.max_tokens}")
    if options.batch_size < 1:
        yield OptionError(f"{options.evaluator}: batch_size must be at least 1, found {options.batch_size}")


def _is_data_set(text: str) -> bool:
    parts = text.split(":")
    return len(parts) == 4 and all(parts[i] for i in (0, 2, 3))
