"""Checks shared by the options of the hardware evaluators: positive sizes, and lengths that the model supports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmquant.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

# Names of the longest sequence in configurations; the second is GPT-2's, the third MPT's.
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len")


def require_positive(**values: object) -> None:
    """Refuse numbers that are zero or less, and lists of sizes that are empty or hold a size twice or below 1.

    Raises:
        OptionError: naming the first such option and its value.
    """
    for name, value in values.items():
        if isinstance(value, tuple):
            if not value or min(value) < 1 or len(set(value)) < len(value):
                raise OptionError(f"{name} must be different whole numbers above 0, found {list(value)}")
        elif isinstance(value, int | float) and not value > 0:
            raise OptionError(f"{name} must be above 0, found {value}")


def positions(model: ModelInfo) -> int | None:
    """Return the tokens that a model reads at most; ``None`` for a model without a stated limit."""
    config = model.text_config
    return next((config[key] for key in _POSITIONS if isinstance(config.get(key), int)), None)


def require_positions(model: ModelInfo, *, prompt_tokens: int, generated_tokens: int, name: str) -> None:
    """Refuse sequences longer than the model's positions; a model without a stated limit accepts any length.

    The message uses the option's `name` for `generated_tokens`.

    Raises:
        UnsupportedError: with the longest prompt that fits.
    """
    limit = positions(model)
    if limit is None or prompt_tokens + generated_tokens <= limit:
        return
    longest = limit - generated_tokens
    hint = f"The longest prompt_tokens that fits is {longest}." if longest > 0 else f"{name} must be below {limit}."
    raise UnsupportedError(
        f"prompt_tokens={prompt_tokens} and {name}={generated_tokens} are more than the {limit} positions "
        f"of {model.source}",
        hint=hint,
    )
