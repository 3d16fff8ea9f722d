"""Tokens that a loaded model can read: padding that has a row in its embedding, and no end in every text."""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing

from llmquant.errors import ModelError
from llmquant.models.causal import refuse_outside


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


def leave_open(tokenizer: Any, source: str) -> str:  # Any: transformers
    """Keep a tokenizer from ending each text with a token, as training scripts save it.

    What a model shall continue would be over, and an answer that is scored would be the end and not its last token.

    Returns:
        What was changed, for readers of the results; may be empty.

    Raises:
        ModelError: if it cannot be kept from it.
    """
    first, last = _around(tokenizer)
    if not last:
        return ""
    end = tokenizer.decode(last)
    if tokenizer.is_fast:
        names = tokenizer.convert_ids_to_tokens(first)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*names, "$A"], special_tokens=list(zip(names, first, strict=True))
        )
    if _around(tokenizer)[1]:
        raise ModelError(
            f"the tokenizer of {source} ends every text with {end!r}, so that the model has nothing to continue",
            hint='Write "add_eos_token": false in its tokenizer_config.json.',
        )
    return f"its tokenizer ends every text with {end!r}, which is left out"


def _around(tokenizer: Any) -> tuple[list[int], list[int]]:  # Any: as above
    """Return what a tokenizer adds in front of a text and behind it."""
    alone, whole = (tokenizer("a", add_special_tokens=added).input_ids for added in (False, True))
    for begin in range(len(whole) - len(alone) + 1):
        if alone and whole[begin : begin + len(alone)] == alone:
            return whole[:begin], whole[begin + len(alone) :]
    return [], []


def _check_ids(ids: Any, rows: int, source: str) -> None:  # Any: a tensor
    """Refuse a batch before it is looked up: on CUDA an id without a row ends the whole process."""
    if ids.numel() and int(ids.max()) >= rows:
        raise ModelError(
            f"a text became the token id {int(ids.max())}, and the embedding of {source} has {rows} rows",
            hint="The text holds a special token that the model was not made for.",
        )


__all__ = ["fit_tokens", "leave_open"]
