r"""What is computed per token from the baseline's and the variant's logits.

With :math:`p` the baseline's and :math:`q` the variant's distribution over the vocabulary, and :math:`x` the right
token:

.. math::
    \mathrm{KL}(p \| q) = \sum_v p_v (\ln p_v - \ln q_v), \qquad \Delta p = q_x - p_x
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

PerToken = Mapping[str, Tensor]
Compare = Callable[[Tensor, Tensor, Tensor, Tensor], PerToken]

# Numbers whose means are metrics of these names.
METRICS = ("kl_divergence", "kl_reverse", "top1_agreement", "top5_agreement", "dp_mean", "ln_ppl_ratio")

_TOP = 5


def divergence(baseline: Tensor, variant: Tensor, right: Tensor, space: Tensor) -> PerToken:
    """Compare two predictions of the same tokens.

    Args:
        baseline: ``(n, vocabulary)`` logits, float32.
        variant: ``(n, vocabulary)`` logits, float32.
        right: ``(n,)`` ids of the tokens that follow.
        space: from `working_space`, overwritten.

    Returns:
        ``(n,)`` per name: ``kl_divergence`` and ``kl_reverse`` in nats; whether the most probable token is the same
        (``top1_agreement``), and the share of the baseline's five most probable tokens that are among the variant's
        five (``top5_agreement``); the change of the right token's probability (``dp_mean``) and of its negative
        log-probability (``ln_ppl_ratio``); the baseline's largest probability (``confidence``).
    """
    size = min(_TOP, baseline.shape[-1])
    ours, theirs = (logits.topk(size, dim=-1).indices for logits in (baseline, variant))
    same_top = baseline.argmax(-1) == variant.argmax(-1)
    p_log, q_log, apart = space[:, : len(baseline)]
    write_log_softmax(baseline, p_log, scratch=apart)
    write_log_softmax(variant, q_log, scratch=apart)
    p_right, q_right = (at(logs, right) for logs in (p_log, q_log))
    torch.sub(p_log, q_log, out=apart)
    p, q = p_log.exp_(), q_log.exp_()
    return {
        "kl_divergence": torch.linalg.vecdot(p, apart),
        "kl_reverse": -torch.linalg.vecdot(q, apart),
        "top1_agreement": same_top.to(p.dtype),
        "top5_agreement": (ours[:, :, None] == theirs[:, None, :]).any(-1).to(p.dtype).mean(-1),
        "dp_mean": q_right.exp() - p_right.exp(),
        "ln_ppl_ratio": p_right - q_right,
        "confidence": p.amax(-1),
    }


def working_space(rows: int, vocabulary: int, device: torch.device) -> Tensor:
    """Return memory for up to `rows` tokens; new memory for every step would take longer than the arithmetic."""
    # In float32 the rounding of one log-probability, 1e-6, is as large as a small divergence. MPS has no float64.
    wide = torch.float32 if device.type == "mps" else torch.float64
    return torch.empty(3, rows, vocabulary, dtype=wide, device=device)


def write_log_softmax(logits: Tensor, out: Tensor, *, scratch: Tensor) -> None:
    """Write log-probabilities over the last axis, in the dtype of `out`; `scratch` is overwritten."""
    out.copy_(logits)
    out -= out.amax(-1, keepdim=True)
    torch.exp(out, out=scratch)
    out -= scratch.sum(-1, keepdim=True).log_()
    # A masked logit, -inf, becomes a finite log-probability, so that 0 ln 0 = 0.
    out.clamp_(min=torch.finfo(torch.float32).min)


def at(values: Tensor, right: Tensor) -> Tensor:
    """Return the ``(n,)`` values of the tokens `right`."""
    return values.gather(-1, right[:, None])[:, 0]
