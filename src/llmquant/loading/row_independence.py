"""Check that a row's results are independent of the other rows of its batch."""

from __future__ import annotations

from typing import Any

import torch

from llmquant.errors import PluginError
from llmquant.loading.token_rows import embedding_rows
from llmquant.plugins.evaluator import LoadedModel

_LENGTHS = (6, 11, 16)  # of the checked row, which is padded, and of its company
_CANDIDATES = 1024
# Standard deviations by which logits may move. On a CPU they move by 0 with every built-in quantizer whose rows are
# independent, and with LLM.int8 by 0.13 (2 random layers) to 1 (SmolLM2-135M); kernels of GPUs may add in any order.
_MOVES_FLOAT32, _MOVES_16_BIT = 1e-4, 0.01


def check_row_independence(model: LoadedModel, label: str) -> str:
    """Read a short row among copies of itself, then among longer rows, and check that its logits stay the same.

    Both batches have the same shape and padding, so that the same kernels run and equal inputs give equal numbers. The
    longer rows provoke outliers: the first consists of one token with a large embedding, the second has tokens from
    the whole vocabulary.

    Args:
        label: the quantizer's name or call.

    Returns:
        What was found, or why the check was skipped.

    Raises:
        PluginError: if the logits move.
    """
    module = model.module
    positions = getattr(module.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if positions is not None and 0 < positions < _LENGTHS[-1]:
        return f"skipped, because the model reads fewer than {_LENGTHS[-1]} tokens"
    if any("expert" in name for name, _ in module.named_modules()):
        return "skipped, because rounding can send a token to another expert"
    row, *company = _rows(module, len(model.tokenizer))
    alone, together = (_logits(module, rows) for rows in ([row] * len(_LENGTHS), [row, *company]))
    if not torch.isfinite(alone).all():
        return "skipped, because the logits are not finite"
    moved = ((together - alone).abs().max() / alone.std()).item()
    if not moved <= (_MOVES_FLOAT32 if module.dtype == torch.float32 else _MOVES_16_BIT):
        raise PluginError(
            f"{label} declares row_independent, but rows change each other: the logits of a text move by {moved:.2g} "
            f"standard deviations when other texts are in its batch",
            hint="The plugin must scale inputs token by token, or declare row_independent=False. Until then, omit it.",
        )
    return f"the logits of a text moved by {moved:.2g} standard deviations when other texts were in its batch"


def _rows(module: Any, words: int) -> list[torch.Tensor]:  # Any: transformers has no types
    """Return a row of each length."""
    embedding = module.get_input_embeddings()
    words = min(words, embedding_rows(module))
    row, _, mixed = _spread(words, sum(_LENGTHS)).split(_LENGTHS)
    candidates = _spread(words, _CANDIDATES)
    with torch.no_grad():
        largest = embedding(candidates.to(module.device)).float().norm(dim=-1).argmax().cpu()
    return [row, candidates[largest].repeat(_LENGTHS[1]), mixed]


def _spread(words: int, count: int) -> torch.Tensor:
    """Return evenly spread tokens of the vocabulary."""
    return torch.arange(1, count + 1) * words // (count + 1)


def _logits(module: Any, rows: list[torch.Tensor]) -> torch.Tensor:  # Any: as above
    """Return the logits of the first row, of shape (tokens, vocabulary)."""
    ids = torch.zeros(len(rows), _LENGTHS[-1], dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, row in enumerate(rows):
        ids[number, -len(row) :], mask[number, -len(row) :] = row, 1
    with torch.no_grad():
        logits = module(input_ids=ids.to(module.device), attention_mask=mask.to(module.device), use_cache=False).logits
    return logits[0, -len(rows[0]) :].float()
