"""Fit a tokenizer to its model: padding needs a row in the embedding, and texts must not all end with an end token."""

from __future__ import annotations

from typing import Any

from tokenizers.processors import TemplateProcessing

from llmquant.errors import ModelError
from llmquant.models.causal import refuse_outside


def fit_tokens(module: Any, tokenizer: Any, source: str) -> str:  # Any: transformers
    """Give a tokenizer padding that the model can look up, and refuse a tokenizer whose words the model cannot look up.

    Padding is masked, so any token will do: the end-of-text token is used where the padding token or its row is
    missing. Added tokens that never occur in ordinary text, such as an image placeholder, may lack a row: a text
    with such a token is refused when it is encoded.

    Returns:
        A note on the change, for readers of the results; may be empty.

    Raises:
        ModelError: if words, or the tokens that begin or end a text, have no row in the embedding.
    """
    rows = embedding_rows(module)
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
    if outside:  # only then, because the comparison costs one transfer from the device per batch
        module.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: _check_ids(inputs[0], rows, source))
    return changed


def embedding_rows(module: Any) -> int:  # Any: transformers
    """Count the tokens that have a row in the embedding, which a quantizer may have replaced by a layer of its own."""
    weight = getattr(module.get_input_embeddings(), "weight", None)
    return int(module.config.get_text_config().vocab_size if weight is None else weight.shape[0])


def leave_open(tokenizer: Any, source: str) -> str:  # Any: transformers
    """Stop a tokenizer from appending an end token to each text, a setting that training scripts leave behind.

    With the end token the model would have nothing to continue, and the score of an answer would include its end.

    Returns:
        A note on the change, for readers of the results; may be empty.

    Raises:
        ModelError: if the tokenizer cannot be changed.
    """
    first, last = around(tokenizer)
    if not last:
        return ""
    end = tokenizer.decode(last)
    if tokenizer.is_fast:
        names = tokenizer.convert_ids_to_tokens(first)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single=[*names, "$A"], special_tokens=list(zip(names, first, strict=True))
        )
    if around(tokenizer)[1]:
        raise ModelError(
            f"the tokenizer of {source} ends every text with {end!r}, so that the model has nothing to continue",
            hint='Write "add_eos_token": false in its tokenizer_config.json.',
        )
    return f"its tokenizer ends every text with {end!r}, which is left out"


def around(tokenizer: Any) -> tuple[list[int], list[int]]:  # Any: as above
    """Return the token ids that a tokenizer adds before and after a text."""
    alone, whole = (tokenizer("a", add_special_tokens=added).input_ids for added in (False, True))
    for begin in range(len(whole) - len(alone) + 1):
        if alone and whole[begin : begin + len(alone)] == alone:
            return whole[:begin], whole[begin + len(alone) :]
    return [], []


def _check_ids(ids: Any, rows: int, source: str) -> None:  # Any: a tensor
    """Refuse a batch before its embeddings are looked up: on CUDA an id without a row ends the whole process."""
    if ids.numel() and int(ids.max()) >= rows:
        raise ModelError(
            f"a text became the token id {int(ids.max())}, and the embedding of {source} has {rows} rows",
            hint="The text holds a special token that the model does not support.",
        )
