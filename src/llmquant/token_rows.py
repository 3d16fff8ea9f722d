"""Token ids and the rows of a loaded model's embedding: padding that has a row, and no id without one in a batch."""

from __future__ import annotations

from typing import Any

from llmquant.causal import refuse_outside
from llmquant.errors import ModelError


def fit_tokens(module: Any, tokenizer: Any, source: str) -> str:  # Any: transformers
    """Give a tokenizer padding that the model can look up, and refuse one whose words it cannot.

    Padding is masked, so that any token will do: the one that ends a text, where there is none or it has no row. Added
    tokens that no ordinary text becomes, such as the place of an image, may lack a row: a text that holds one is
    refused when it comes.

    Returns:
        What was changed, for readers of the results; may be empty.

    Raises:
        ModelError: if words, or the tokens that begin or end a text, have no row.
    """
    rows = int(module.get_input_embeddings().weight.shape[0])
    outside = {token: i for token, i in tokenizer.get_vocab().items() if i >= rows}
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    needed = {tokenizer.bos_token_id, tokenizer.eos_token_id}
    refuse_outside({token: i for token, i in outside.items() if i not in special or i in needed}, rows, source)
    changed = ""
    if tokenizer.pad_token is not None and not 0 <= tokenizer.pad_token_id < rows:
        changed = f"its padding token {tokenizer.pad_token!r} ({tokenizer.pad_token_id}) has no row in its embedding"
        changed += f" of {rows}: {tokenizer.eos_token!r} pads in its place"
        tokenizer.pad_token = None
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    if outside:  # only then: comparing costs a transfer from the device for every batch
        module.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: _check_ids(inputs[0], rows, source))
    return changed


def _check_ids(ids: Any, rows: int, source: str) -> None:  # Any: a tensor
    """Refuse a batch before it is looked up: on CUDA an id without a row ends the whole process."""
    if ids.numel() and int(ids.max()) >= rows:
        raise ModelError(
            f"a text became the token id {int(ids.max())}, and the embedding of {source} has {rows} rows",
            hint="The text holds a special token that the model was not made for.",
        )


__all__ = ["fit_tokens"]
