"""What is compared and measured where a study does not say."""

from __future__ import annotations

from llmquant.study.call import Call


def _ours(call: str) -> Call:
    """Write a default with its package, because another package may offer the same short name."""
    return Call.parse(f"llmquant/{call}")


DEFAULT_QUANTIZERS = tuple(
    _ours(name)
    for name in ("bf16_baseline", "bnb_8bit", "bnb_4bit_nf4", "bnb_4bit_fp4", "gptq_4bit_g128", "awq_4bit_g128")
)
DEFAULT_EVALUATORS = tuple(map(_ours, ("lm_eval(coqa)", "perplexity", "memory", "latency")))
EMBEDDER_QUANTIZERS = tuple(map(_ours, ("bf16_baseline", "bnb_8bit", "bnb_4bit_nf4")))
PAGE_EVALUATORS = tuple(map(_ours, ("mteb(ViDoRe(v1))", "mteb(ViDoRe(v2))")))
TEXT_EVALUATORS = (_ours("mteb(NanoBEIR)"),)
DEFAULT_BASELINE = _ours("bf16_baseline")
