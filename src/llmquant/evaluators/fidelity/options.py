"""Options of the fidelity evaluator: those of perplexity, other programs' definitions, and the noise floor."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

from llmquant.errors import OptionError
from llmquant.evaluators.perplexity.options import PerplexityOptions


@dataclass(frozen=True)
class FidelityOptions(PerplexityOptions):
    """How far a variant's predictions are from the baseline's, on the tokens that ``perplexity`` scores.

    Attributes:
        text: the text, as for ``perplexity``.
        window: tokens that the model reads at a time, for example 2048; at most the model's number of positions.
        stride: tokens between two windows' ends, for example 512. ``None`` is a whole window, so that every window has
            tokens after a short and after a long context.
        max_tokens: number of leading tokens of the text to use, for example 100000; ``None`` means all. The baseline's
            run keeps one vector of the model's width per token.
        batch_size: windows per batch, for example 1.
        compat: ``llama.cpp`` computes what that program's ``--kl-divergence`` computes; ``None`` is llmquant's own
            definitions.
        floor: measure the noise floor on the baseline: its divergence from itself in another dtype.
    """

    evaluator: ClassVar[str] = "fidelity"
    strides_per_window: ClassVar[int] = 1

    compat: Literal["llama.cpp"] | None = None
    floor: bool = True

    def __post_init__(self) -> None:
        """Refuse values that are out of range or contradict each other."""
        super().__post_init__()
        if self.compat is None:
            return
        if self.stride not in (None, self.window):
            raise OptionError(
                f"fidelity: compat=llama.cpp cuts the text into whole windows, found stride={self.stride}",
                hint="Leave out stride.",
            )
        if self.window < 4:  # the second half of a smaller window has no token to predict
            raise OptionError(f"fidelity: with compat=llama.cpp, window must be at least 4, found {self.window}")
        if self.max_tokens is not None and self.max_tokens < 2 * self.window - 1:  # perhaps a BOS is added
            raise OptionError(
                f"fidelity: compat=llama.cpp needs two windows of {self.window} tokens, found "
                f"max_tokens={self.max_tokens}",
                hint="Use a smaller window or more tokens.",
            )

    def metrics(self) -> Collection[str]:
        """Return the only score with a direction: a smaller divergence is not a better model."""
        return ("ln_ppl_ratio",)
