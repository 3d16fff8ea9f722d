"""The definitions of llama.cpp's ``llama-perplexity --kl-divergence``: its windows, and its numbers per token."""

from __future__ import annotations

import torch
from torch import Tensor

from llmquant.evaluators.fidelity.divergence import PerToken, at, write_log_softmax
from llmquant.evaluators.perplexity.windows import Window

LLAMA_CPP_METRICS = ("kl_divergence", "top1_agreement", "dp_mean", "ln_ppl_ratio")


def llama_cpp_windows(tokens: int, *, window: int, stride: int, lead: int) -> list[Window]:
    """Cut a text into chunks of `window` tokens, of which the second half is scored, and leave out the rest.

    llama.cpp puts a BOS before the text and again in the place of each chunk's first token, scores the tokens after
    position ``window // 2``, and needs two chunks.

    Args:
        tokens: number of tokens in the text, without the BOS.
        window: tokens per chunk, with the BOS.
        stride: `window`.
        lead: 1 for a tokenizer with a BOS, else 0.

    Returns:
        No window if the text is too short.
    """
    whole = tokens + lead
    if whole < 2 * window:
        return []
    starts = range(0, whole - window + 1, window)
    return [Window(start, start + window // 2 + 1 - lead, start + window - lead) for start in starts]


def llama_cpp_divergence(baseline: Tensor, variant: Tensor, right: Tensor, space: Tensor) -> PerToken:
    r"""Compare two predictions as llama.cpp's ``llama-perplexity --kl-divergence`` does.

    The baseline's logits :math:`l` are kept as 16-bit codes between :math:`m = \max(\min l, \max l - 16)` and
    :math:`\max l`, so that a token below :math:`m` gets the probability of :math:`m`, the baseline's probabilities do
    not add up to 1, and the divergence can be slightly negative; terms with :math:`\ln p_v \le -16` are left out.

    Args:
        baseline: ``(n, vocabulary)`` logits, float32.
        variant: ``(n, vocabulary)`` logits, float32.
        right: ``(n,)`` ids of the tokens that follow.
        space: from `working_space`, overwritten.

    Returns:
        ``(n,)`` per name, as for `divergence`, of the numbers that llama.cpp has.
    """
    highest = baseline.amax(-1, keepdim=True)
    lowest = torch.maximum(baseline.amin(-1, keepdim=True), highest - 16)
    # As in that program, codes and their scale are computed in float32, the rest in float64.
    log_sum = (baseline - highest).double().exp().sum(-1, keepdim=True).log().float()
    step = (highest - lowest) / 65535
    codes = torch.where(baseline > lowest, torch.round((baseline - lowest) * (1 / step)), 0).nan_to_num(0)
    p_log, q_log, terms = space[:, : len(baseline)]
    p_log.copy_(step * codes + (lowest - highest - log_sum))
    write_log_softmax(variant, q_log, scratch=terms)
    p_right, q_right = (at(logs, right) for logs in (p_log, q_log))
    return {
        "kl_divergence": torch.where(p_log > -16, p_log.exp() * (p_log - q_log), 0).sum(-1),
        "top1_agreement": (p_log.argmax(-1) == variant.argmax(-1)).to(q_log.dtype),
        "dp_mean": q_right.exp() - p_right.exp(),
        "ln_ppl_ratio": p_right - q_right,
        "confidence": p_log.amax(-1).exp(),
    }
