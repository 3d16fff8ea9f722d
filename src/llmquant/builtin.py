"""The plugins included in llmquant, declared with strings only, like the plugins of a third party."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from llmquant.builtin_embedders import EMBEDDER_EVALUATORS, EMBEDDERS, TORCH
from llmquant.plugins.spec import PluginSpec, hookimpl

_LOCAL = 'pip install "llmquant[local]"'
_BITSANDBYTES = (*TORCH, "bitsandbytes>=0.50")
# transformers loads GPTQ checkpoints with optimum.
_GPTQMODEL = (*TORCH, "gptqmodel>=7.6", "optimum>=2.0")
_TORCHAO = (*TORCH, "torchao>=0.18")
_TORCHAO_LINE = 'pip install "llmquant[torchao]"'
_GPTQ = 'pip install "llmquant[gptq]"'

_quantizer = partial(PluginSpec, "quantizer", requires=TORCH, install=_LOCAL)
_evaluator = partial(PluginSpec, "evaluator", requires=("torch>=2.8", "transformers>=5.22"), install=_LOCAL)
_executor = partial(PluginSpec, "executor", accepts=())

QUANTIZERS: tuple[PluginSpec, ...] = (
    _quantizer(
        name="baseline",
        summary="No quantization: every weight in one floating-point type.",
        options="llmquant.quantizers.baseline.options:BaselineOptions",
        target="llmquant.quantizers.baseline.quantizer:Baseline",
        presets={
            "bf16_baseline": {"dtype": "bfloat16"},
            "fp16_baseline": {"dtype": "float16"},
            "fp32_baseline": {"dtype": "float32"},
        },
        accepts=("causal_lm", "embedder"),
    ),
    _quantizer(
        name="bnb_4bit",
        summary="bitsandbytes 4-bit, quantized while loading, no calibration.",
        options="llmquant.quantizers.bitsandbytes.options:Bnb4bitOptions",
        target="llmquant.quantizers.bitsandbytes.quantizer:Bnb4bit",
        presets={
            "bnb_4bit_nf4": {"quant_type": "nf4"},
            "bnb_4bit_fp4": {"quant_type": "fp4"},
            "bnb_4bit_nf4_no_double": {"quant_type": "nf4", "double_quant": False},
            "bnb_4bit_fp4_no_double": {"quant_type": "fp4", "double_quant": False},
            "bnb_4bit_nf4_bf16": {"quant_type": "nf4", "compute_dtype": "bfloat16"},
        },
        accepts=("causal_lm", "embedder"),
        requires=_BITSANDBYTES,
        version="2",  # computes in bfloat16 on CUDA
    ),
    _quantizer(
        name="bnb_8bit",
        summary="bitsandbytes LLM.int8(), quantized while loading, no calibration.",
        options="llmquant.quantizers.bitsandbytes.options:Bnb8bitOptions",
        target="llmquant.quantizers.bitsandbytes.quantizer:Bnb8bit",
        accepts=("causal_lm", "embedder"),
        requires=_BITSANDBYTES,
        row_independent=False,
        version="2",  # embedders encode one item at a time
    ),
    _quantizer(
        name="gptq",
        summary="GPTQ, calibrated, through GPTQModel.",
        options="llmquant.quantizers.gptqmodel.options:GptqOptions",
        target="llmquant.quantizers.gptqmodel.quantizer:Gptq",
        presets={
            "gptq_4bit_g128": {"bits": 4, "group_size": 128},
            "gptq_4bit_g64": {"bits": 4, "group_size": 64},
            "gptq_4bit_g32": {"bits": 4, "group_size": 32},
            "gptq_3bit_g128": {"bits": 3, "group_size": 128},
            "gptq_8bit_g128": {"bits": 8, "group_size": 128},
        },
        requires=_GPTQMODEL,
        install=_GPTQ,
        checkpoint=True,
    ),
    _quantizer(
        name="awq",
        summary="AWQ 4-bit in the GEMM layout, calibrated, through GPTQModel.",
        options="llmquant.quantizers.gptqmodel.options:AwqOptions",
        target="llmquant.quantizers.gptqmodel.quantizer:Awq",
        presets={"awq_4bit_g128": {"group_size": 128}},
        requires=_GPTQMODEL,
        install='pip install "llmquant[awq]"',
        checkpoint=True,
    ),
    _quantizer(
        name="round_to_nearest",
        summary="Round-to-nearest in GPTQ's layout, no calibration: the reference for GPTQ and AWQ.",
        options="llmquant.quantizers.gptqmodel.options:RoundToNearestOptions",
        target="llmquant.quantizers.gptqmodel.quantizer:RoundToNearest",
        presets={
            "rtn_4bit_g128": {"bits": 4, "group_size": 128},
            "rtn_4bit_g128_asym": {"bits": 4, "group_size": 128, "sym": False},
            "rtn_3bit_g128": {"bits": 3, "group_size": 128},
        },
        requires=_GPTQMODEL,
        install=_GPTQ,
        checkpoint=True,
    ),
    _quantizer(
        name="auto_round",
        summary="AutoRound: rounding tuned by signed gradient descent, calibrated, through Intel's auto-round.",
        options="llmquant.quantizers.auto_round.options:AutoRoundOptions",
        target="llmquant.quantizers.auto_round.quantizer:AutoRound",
        presets={
            "auto_round_4bit_g128": {"bits": 4, "group_size": 128},
            "auto_round_3bit_g128": {"bits": 3, "group_size": 128},
            "auto_round_2bit_g64": {"bits": 2, "group_size": 64},
        },
        requires=(*TORCH, "auto-round>=0.16"),
        install='pip install "llmquant[auto-round]"',
        checkpoint=True,
    ),
    _quantizer(
        name="compressed_tensors",
        summary="vLLM's checkpoint format: int8, int4 or float8, rounded to nearest, no calibration.",
        options="llmquant.quantizers.compressed_tensors.options:CompressedTensorsOptions",
        target="llmquant.quantizers.compressed_tensors.quantizer:CompressedTensors",
        presets={
            "compressed_w8a8": {"scheme": "w8a8"},
            "compressed_w4a16_g128": {"scheme": "w4a16", "group_size": 128},
            "compressed_fp8": {"scheme": "fp8"},
        },
        requires=(*TORCH, "compressed-tensors>=0.20"),
        install='pip install "llmquant[compressed-tensors]"',
        checkpoint=True,
    ),
    _quantizer(
        name="torchao",
        summary="torchao int8, float8, NVFP4 and MXFP4, quantized while loading, no calibration.",
        options="llmquant.quantizers.torchao.options:TorchaoOptions",
        target="llmquant.quantizers.torchao.quantizer:Torchao",
        presets={
            "torchao_int8": {"scheme": "int8"},
            "torchao_int8_dynamic": {"scheme": "int8_dynamic"},
            "torchao_float8": {"scheme": "float8"},
            "torchao_float8_dynamic": {"scheme": "float8_dynamic"},
            "torchao_nvfp4": {"scheme": "nvfp4"},
            "torchao_nvfp4_dynamic": {"scheme": "nvfp4_dynamic"},
            "torchao_mxfp4": {"scheme": "mxfp4"},
        },
        accepts=("causal_lm", "embedder"),
        requires=_TORCHAO,
        install=_TORCHAO_LINE,
        row_independent=False,
    ),
    _quantizer(
        name="torchao_int4",
        summary="torchao int4, weights only, quantized while loading, no calibration.",
        options="llmquant.quantizers.torchao.options:TorchaoInt4Options",
        target="llmquant.quantizers.torchao.quantizer:TorchaoInt4",
        presets={
            "torchao_int4_g128": {"group_size": 128},
            "torchao_int4_g64": {"group_size": 64},
            "torchao_int4_g32": {"group_size": 32},
        },
        accepts=("causal_lm", "embedder"),
        requires=_TORCHAO,
        install=_TORCHAO_LINE,
    ),
    _quantizer(
        name="quanto",
        summary="optimum-quanto int8, int4 and float8, quantized while loading, no calibration.",
        options="llmquant.quantizers.quanto.options:QuantoOptions",
        target="llmquant.quantizers.quanto.quantizer:Quanto",
        presets={
            "quanto_int8": {"weights": "int8"},
            "quanto_int4": {"weights": "int4"},
            "quanto_float8": {"weights": "float8"},
        },
        accepts=("causal_lm", "embedder"),
        requires=(*TORCH, "optimum-quanto>=0.2.7"),
        install='pip install "llmquant[quanto]"',
    ),
    _quantizer(
        name="hqq",
        summary="HQQ 4- and 3-bit, quantized while loading, no calibration.",
        options="llmquant.quantizers.hqq.options:HqqOptions",
        target="llmquant.quantizers.hqq.quantizer:Hqq",
        presets={
            "hqq_4bit_g64": {"bits": 4, "group_size": 64},
            "hqq_3bit_g64": {"bits": 3, "group_size": 64},
        },
        accepts=("causal_lm", "embedder"),
        requires=(*TORCH, "hqq>=0.2.8"),
        install='pip install "llmquant[hqq]"',
    ),
    _quantizer(
        name="gguf",
        summary="llama.cpp's block quantization by ggml, run dequantized: quality is real; memory and speed are not.",
        options="llmquant.quantizers.gguf.options:GgufOptions",
        target="llmquant.quantizers.gguf.quantizer:Gguf",
        presets={
            f"gguf_{kind}": {"file_type": kind}
            for kind in ("q2_k", "q3_k_m", "q4_0", "q4_k_m", "q5_0", "q5_k_m", "q6_k", "q8_0")
        },
        requires=(*TORCH, "gguf>=0.17", "libggml-python>=0.20"),
        install='pip install "llmquant[gguf]"',
        checkpoint=True,
    ),
    _quantizer(
        name="prequantized",
        summary="Published quantized checkpoint (GPTQ, AWQ, bitsandbytes, compressed-tensors) of the same model.",
        options="llmquant.quantizers.prequantized.options:PrequantizedOptions",
        target="llmquant.quantizers.prequantized.quantizer:Prequantized",
        row_independent=False,
        version="2",  # uses the model's tokenizer
    ),
)

EVALUATORS: tuple[PluginSpec, ...] = (
    _evaluator(
        name="lm_eval",
        summary="Tasks of EleutherAI's lm-evaluation-harness, on their own data or on local rows.",
        options="llmquant.evaluators.lm_eval.options:LmEvalOptions",
        target="llmquant.evaluators.lm_eval.evaluator:LmEval",
        # 0.4.12 is the first version whose task manager builds only the requested tasks.
        requires=("lm-eval>=0.4.12", "torch>=2.8", "transformers>=5.22"),
        documents=True,
        version="4",  # models that read padding answer one prompt at a time
    ),
    _evaluator(
        name="perplexity",
        summary="Prediction quality on a text: perplexity, bits per byte and nats per token.",
        options="llmquant.evaluators.perplexity.options:PerplexityOptions",
        target="llmquant.evaluators.perplexity.evaluator:Perplexity",
        version="3",  # reads all tokens that a tokenizer puts before a text
    ),
    _evaluator(
        name="fidelity",
        summary="Distance from the baseline's predictions on a text: KL divergence, same top token, noise floor.",
        options="llmquant.evaluators.fidelity.options:FidelityOptions",
        target="llmquant.evaluators.fidelity.evaluator:Fidelity",
        reference=True,
        version="2",  # likewise
    ),
    _evaluator(
        name="memory",
        summary="Bytes of the weights, the checkpoint and the key-value cache; peaks of loading, prefill and decode.",
        options="llmquant.evaluators.memory.options:MemoryOptions",
        target="llmquant.evaluators.memory.evaluator:Memory",
        accepts=("causal_lm", "embedder"),
        hardware=True,
        version="2",  # the quantization parameters of HQQ and GPTQ are not counted as buffers
    ),
    _evaluator(
        name="latency",
        summary="Milliseconds for prefill, to the first token and per further token, by prompt length.",
        options="llmquant.evaluators.speed.options:LatencyOptions",
        target="llmquant.evaluators.speed.latency:Latency",
        hardware=True,
    ),
    _evaluator(
        name="throughput",
        summary="Tokens per second in static batches, by batch size.",
        options="llmquant.evaluators.speed.options:ThroughputOptions",
        target="llmquant.evaluators.speed.throughput:Throughput",
        hardware=True,
    ),
)

EXECUTORS: tuple[PluginSpec, ...] = (
    _executor(
        name="local",
        summary="This machine, on its CPU or GPUs: one new process per job.",
        options="llmquant.executors.local.options:LocalOptions",
        target="llmquant.executors.local.executor:from_options",
    ),
    _executor(
        name="ray",
        summary="A Ray cluster, existing or started on this machine: one actor per job.",
        options="llmquant.executors.ray.options:RayOptions",
        target="llmquant.executors.ray.executor:from_options",
        requires=("ray>=2.50",),
        install='pip install "llmquant[ray]"',
    ),
    _executor(
        name="modal",
        summary="Modal's GPUs: one container per job.",
        options="llmquant.executors.modal.options:ModalOptions",
        target="llmquant.executors.modal.executor:from_options",
        requires=("modal>=1.6.4,<1.7",),
        install='pip install "llmquant[modal]"',
    ),
)


@hookimpl
def llmquant_register() -> Sequence[PluginSpec]:
    """Return the plugins included in llmquant."""
    return [*QUANTIZERS, *EVALUATORS, *EMBEDDER_EVALUATORS, *EMBEDDERS, *EXECUTORS]
