"""The plugins that come with llmquant: strings only, the same way a third party declares its own."""

from __future__ import annotations

from collections.abc import Sequence

from llmquant.plugins.spec import PluginSpec, hookimpl

_LOCAL = 'pip install "llmquant[local]"'
_TORCH = ("torch>=2.8", "transformers>=5.0", "accelerate>=1.10", "safetensors>=0.6")
_BITSANDBYTES = (*_TORCH, "bitsandbytes>=0.49")

QUANTIZERS: tuple[PluginSpec, ...] = (
    PluginSpec(
        kind="quantizer",
        name="baseline",
        summary="No quantization: every weight in one floating-point type.",
        options="llmquant.quantizers.baseline_options:BaselineOptions",
        target="llmquant.quantizers.baseline:Baseline",
        presets={
            "bf16_baseline": {"dtype": "bfloat16"},
            "fp16_baseline": {"dtype": "float16"},
            "fp32_baseline": {"dtype": "float32"},
        },
        accepts=("causal_lm", "embedder"),
        requires=_TORCH,
        install=_LOCAL,
    ),
    PluginSpec(
        kind="quantizer",
        name="bnb_4bit",
        summary="bitsandbytes 4-bit, quantized while loading, no calibration.",
        options="llmquant.quantizers.bitsandbytes_options:Bnb4bitOptions",
        target="llmquant.quantizers.bitsandbytes:Bnb4bit",
        presets={
            "bnb_4bit_nf4": {"quant_type": "nf4"},
            "bnb_4bit_fp4": {"quant_type": "fp4"},
            "bnb_4bit_nf4_no_double": {"quant_type": "nf4", "double_quant": False},
            "bnb_4bit_fp4_no_double": {"quant_type": "fp4", "double_quant": False},
            "bnb_4bit_nf4_bf16": {"quant_type": "nf4", "compute_dtype": "bfloat16"},
        },
        accepts=("causal_lm", "embedder"),
        requires=_BITSANDBYTES,
        install=_LOCAL,
    ),
    PluginSpec(
        kind="quantizer",
        name="bnb_8bit",
        summary="bitsandbytes LLM.int8(), quantized while loading, no calibration.",
        options="llmquant.quantizers.bitsandbytes_options:Bnb8bitOptions",
        target="llmquant.quantizers.bitsandbytes:Bnb8bit",
        accepts=("causal_lm", "embedder"),
        requires=_BITSANDBYTES,
        install=_LOCAL,
    ),
)

EVALUATORS: tuple[PluginSpec, ...] = (
    PluginSpec(
        kind="evaluator",
        name="lm_eval",
        summary="Tasks of EleutherAI's lm-evaluation-harness, on their own data or on local rows.",
        options="llmquant.evaluators.lm_eval_options:LmEvalOptions",
        target="llmquant.evaluators.lm_eval:LmEval",
        # 0.4.12 is the first whose task manager builds what it is given and nothing else.
        requires=("lm-eval>=0.4.12", "torch>=2.8", "transformers>=5.0"),
        install=_LOCAL,
        documents=True,
    ),
    PluginSpec(
        kind="evaluator",
        name="perplexity",
        summary="How well a text is predicted: perplexity, bits per byte and nats per token.",
        options="llmquant.evaluators.perplexity_options:PerplexityOptions",
        target="llmquant.evaluators.perplexity:Perplexity",
        requires=("torch>=2.8", "transformers>=5.0"),
        install=_LOCAL,
    ),
    PluginSpec(
        kind="evaluator",
        name="memory",
        summary="Bytes of the weights, the checkpoint and the key-value cache; peaks of loading, prefill and decode.",
        options="llmquant.evaluators.memory_options:MemoryOptions",
        target="llmquant.evaluators.memory:Memory",
        requires=("torch>=2.8", "transformers>=5.0"),
        install=_LOCAL,
        hardware=True,
    ),
    PluginSpec(
        kind="evaluator",
        name="latency",
        summary="Milliseconds of prefill, to the first token and for each further token, by prompt length.",
        options="llmquant.evaluators.latency_options:LatencyOptions",
        target="llmquant.evaluators.latency:Latency",
        requires=("torch>=2.8", "transformers>=5.0"),
        install=_LOCAL,
        hardware=True,
    ),
    PluginSpec(
        kind="evaluator",
        name="throughput",
        summary="Tokens a second in static batches, by batch size.",
        options="llmquant.evaluators.throughput_options:ThroughputOptions",
        target="llmquant.evaluators.throughput:Throughput",
        requires=("torch>=2.8", "transformers>=5.0"),
        install=_LOCAL,
        hardware=True,
    ),
)

EXECUTORS: tuple[PluginSpec, ...] = (
    PluginSpec(
        kind="executor",
        name="local",
        summary="This machine: a fresh process a job, one at a time on the CPU, one a GPU when there are several.",
        options="llmquant.executors.local_options:LocalOptions",
        target="llmquant.executors.local:from_options",
        accepts=(),
    ),
)


@hookimpl
def llmquant_register() -> Sequence[PluginSpec]:
    """Return the plugins of llmquant itself."""
    return [*QUANTIZERS, *EVALUATORS, *EXECUTORS]
