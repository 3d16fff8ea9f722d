"""Compare log-likelihoods of texts whose shared prefix is read once with those of whole texts."""

from __future__ import annotations

from llmquant.plugins.evaluator import LoadedModel

_SHARED = "The farmer sold nine sacks of barley on Monday, and the lighthouse keeper wrote the"
_ENDINGS = (
    " name of each ship.",
    " day into a ledger bound in green cloth.",
    " number: 41?",
    " weather, again and again.",
)
# Nats per text. Built-in quantizers whose rows are independent move a tiny random model by at most a quarter of this.
_FLOAT32, _16_BIT = 1e-3, 0.5
_BUDGET = 64  # tokens per forward pass; the prefix and all endings are longer


def largest_difference(subject: LoadedModel) -> tuple[float, float]:
    """Return by how many nats a log-likelihood moves when the prefix is read once, and how much is rounding."""
    import torch

    from llmquant.engine.forward import TreeReader
    from llmquant.engine.trie import Text, plan

    module = subject.module
    prefix, *endings = (subject.tokenizer(text, add_special_tokens=False).input_ids for text in (_SHARED, *_ENDINGS))
    reader = TreeReader(module)
    together = [0.0] * len(endings)
    for forward in plan([Text([*prefix, *ending][:-1], ending) for ending in endings], _BUDGET).forwards:
        for scored in reader.read(forward):
            together[scored.target.text] += scored.logprob
    moved = 0.0
    for ending, value in zip(endings, together, strict=True):
        ids = torch.tensor([[*prefix, *ending]], device=module.device)
        with torch.no_grad():
            logprobs = module(ids, use_cache=False).logits[0, len(prefix) - 1 : -1].float().log_softmax(-1)
        alone = logprobs.gather(1, ids[0, len(prefix) :, None]).sum().item()
        moved = max(moved, abs(alone - value))
    return moved, _FLOAT32 if module.dtype == torch.float32 else _16_BIT
