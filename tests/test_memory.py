"""Memory: bytes of weights counted right, peaks that see what was allocated, and the evaluator that reports both."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

import pytest
import torch

from llmquant.errors import OptionError, RunError, UnsupportedError
from llmquant.evaluators.memory.evaluator import Memory
from llmquant.evaluators.memory.options import MemoryOptions
from llmquant.loading.memory import PeakMemory, is_out_of_memory, peak_memory, touch_weights, weight_bytes

MIB = 2**20
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda.is_available() is False")


def linear_4bit(out_features, in_features, *, double):
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(in_features, out_features, bias=False, quant_type="nf4", compress_statistics=double)
    return layer.to("cpu")


def test_tied_weights_count_once(subject):
    """The head that shares the embedding's storage adds nothing: the sum is the hand count."""
    vocabulary = subject.module.get_input_embeddings().weight.shape[0]
    layer = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64
    counted = weight_bytes(subject.module)
    assert counted.parameters == 4 * (vocabulary * 64 + 2 * layer + 64)
    assert counted.quantization_state == 0


def test_rotary_frequencies_are_buffers(subject):
    """What is no parameter and in no checkpoint is held all the same."""
    frequencies = dict(subject.module.named_buffers())["model.rotary_emb.inv_freq"]
    assert weight_bytes(subject.module).buffers >= frequencies.nbytes > 0


@pytest.mark.parametrize("shape", [(128, 256), (192, 576)])
def test_nf4_scales_without_double_quantization(shape):
    """One float32 scale a block of 64, and a code table of 16 float32."""
    counted = weight_bytes(linear_4bit(*shape, double=False))
    weights = math.prod(shape)
    assert counted.parameters == weights // 2
    assert counted.quantization_state == 4 * (weights // 64) + 64


@pytest.mark.parametrize("shape", [(128, 256), (192, 576)])
def test_double_quantization_saves_what_its_formula_says(shape):
    """Scales shrink to a byte; a float32 for 256 of them, a table of 256 and an offset come on top."""
    plain, double = (weight_bytes(linear_4bit(*shape, double=double)) for double in (False, True))
    blocks = math.prod(shape) // 64
    assert plain.quantization_state - double.quantization_state == 4 * blocks - (
        blocks + 4 * math.ceil(blocks / 256) + 4 * 256 + 4
    )
    assert plain.parameters == double.parameters


def test_int8_layers_count_the_same_after_they_moved_their_state():
    """The first forward pass moves codes and scales from the parameter to the layer; the count does not change."""
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(64, 32, bias=False, has_fp16_weights=False, threshold=6.0).to("cpu").eval()
    before = weight_bytes(layer)
    with torch.inference_mode():
        layer(torch.randn(1, 64))
    assert layer.weight.SCB is None, "this test is about state that has moved"
    assert before == weight_bytes(layer)
    assert (before.parameters, before.quantization_state) == (64 * 32, 4 * 32)


def test_the_packing_of_a_cpu_with_bfloat16_counts_as_it_is():
    """Repacked for AVX512-BF16, doubly quantized scales are bfloat16 and the nested state is gone."""
    functional = pytest.importorskip("bitsandbytes.functional")
    layer = linear_4bit(128, 256, double=True)
    layer.weight.data, layer.weight.quant_state = functional._convert_weight_packed_for_cpu(
        layer.weight.data, layer.weight.quant_state
    )
    counted = weight_bytes(layer)
    blocks = 128 * 256 // 64
    assert counted.parameters == 128 * 256 // 2
    assert counted.quantization_state == 2 * blocks + 64 + 4


def test_codes_and_scales_of_a_tensor_subclass_are_told_apart():
    """A wrapper subclass has no storage of its own: its inner tensors are counted, the largest as codes."""
    module = torch.nn.Module()
    module.weight = torch.nn.Parameter(_Wrapped(torch.zeros(64, dtype=torch.int8), torch.zeros(4)), requires_grad=False)
    counted = weight_bytes(module)
    assert (counted.parameters, counted.quantization_state) == (64, 16)


@pytest.mark.parametrize("codes", ["qweight", "weight_packed"])
def test_what_a_layer_holds_beside_its_codes_is_quantization_state(codes):
    """Whatever a kernel calls its scales, zero points and indices, and in buffers and attributes alike."""
    layer = torch.nn.Module()
    layer.register_buffer(codes, torch.zeros(8, 16, dtype=torch.int32))
    layer.register_buffer("bias", torch.zeros(4))
    layer.register_buffer("scales", torch.zeros(2, 16, dtype=torch.float16))
    layer.register_parameter("zeros", torch.nn.Parameter(torch.zeros(2, 16)))
    layer.scales_and_zeros = torch.zeros(2, 16, 2)
    module = torch.nn.Sequential(layer)
    module.register_buffer("something_else", torch.zeros(3))
    counted = weight_bytes(module)
    assert (counted.parameters, counted.quantization_state, counted.buffers) == (512 + 16, 64 + 128 + 256, 12)


@pytest.mark.parametrize("bits", [8, 4, 3, 2])
def test_scales_and_zeros_of_hqq_are_quantization_state(bits):
    """Of an HQQ layer nothing is a buffer: codes and bias are parameters, all else belongs to the quantization."""
    pytest.importorskip("hqq", reason="needs llmquant[hqq]")
    from llmquant.quantizers.hqq.quantizer import HqqLinear

    layer = HqqLinear(torch.nn.Linear(64, 32))
    layer.quantize(torch.randn(32, 64), bits, 32)
    counted = weight_bytes(layer)
    assert counted.parameters == layer.qweight.nbytes + 4 * 32
    assert counted.quantization_state == layer.scales.nbytes + layer.zeros.nbytes == 2 * 4 * 64
    assert counted.buffers == 0


def test_meta_tensors_hold_nothing():
    """A model that has not been loaded weighs nothing."""
    assert weight_bytes(torch.nn.Linear(8, 8, device="meta")).total == 0


def test_a_known_allocation_is_the_peak():
    """64 MiB that were there for a moment are the peak, within 4 MiB, though they are gone at the end."""
    with peak_memory("cpu") as peak:
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        del block
    if peak.bytes is None:
        pytest.skip(peak.reason)
    assert abs(peak.bytes - 64 * MIB) < 4 * MIB


def test_what_was_there_before_is_no_part_of_a_peak():
    """An earlier and larger peak, and memory still held, are not seen."""
    held = torch.ones(128 * MIB, dtype=torch.uint8)
    earlier = torch.ones(128 * MIB, dtype=torch.uint8)
    del earlier
    with peak_memory("cpu") as peak:
        block = torch.ones(16 * MIB, dtype=torch.uint8)
        del block
    if peak.bytes is None:
        pytest.skip(peak.reason)
    assert peak.bytes < 24 * MIB
    assert held.numel() == 128 * MIB


def test_memory_mapped_weights_are_seen_once_they_are_touched(tmp_path):
    """A mapped file takes nothing before it is read; touching its pages makes its size show in the peak."""
    (tmp_path / "weights").write_bytes(bytes(64 * MIB))
    module = torch.nn.Module()
    module.register_buffer("weight", torch.from_file(str(tmp_path / "weights"), size=64 * MIB, dtype=torch.uint8))
    with peak_memory("cpu") as peak:
        touch_weights(module)
    if peak.bytes is None:
        pytest.skip(peak.reason)
    assert abs(peak.bytes - 64 * MIB) < 4 * MIB


def test_a_backend_without_a_high_water_mark_says_so():
    """Where nothing can be measured the value is absent and the reason is given."""
    with peak_memory("mps") as peak:
        pass
    assert peak.bytes is None
    assert "mps" in peak.reason


@pytest.mark.gpu
@needs_cuda
def test_cuda_peak_sees_a_known_allocation():
    """64 MiB that were on the GPU for a moment are the peak."""
    with peak_memory("cuda") as peak:
        block = torch.ones(64 * MIB, dtype=torch.uint8, device="cuda")
        del block
    assert peak.bytes == 64 * MIB


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 18.00 GB)"),
    ],
)
def test_every_backends_out_of_memory_is_known(error):
    """Each backend says it in its own way."""
    assert is_out_of_memory(error)


def test_other_errors_are_not_out_of_memory():
    """An error in a layer is not taken for a lack of memory."""
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def evaluate(subject, ctx, **options):
    (result,) = Memory(MemoryOptions(**{"prompt_tokens": 32, "decode_tokens": 4, **options})).evaluate(subject, ctx)
    return result, {number.metric: number for number in result.measurements}


def test_every_metric_is_in_bytes(subject, context):
    """What is held, on disk, and at the peaks of loading, prefill and decode; all in bytes."""
    result, numbers = evaluate(subject, context())
    expected = {
        "weights_bytes",
        "weights_parameters_bytes",
        "weights_quantization_state_bytes",
        "weights_buffers_bytes",
        "checkpoint_disk_bytes",
        "kv_cache_bytes_per_token",
        "load_peak_bytes",
        "prefill_peak_bytes",
        "decode_peak_bytes",
    }
    assert expected == set(numbers) | set(result.details["not_measured"])
    assert {number.unit for number in numbers.values()} == {"bytes"}
    held = {name for name in expected if not name.endswith(("state_bytes", "peak_bytes"))}
    assert all(numbers[name].value > 0 for name in held)
    assert numbers["weights_quantization_state_bytes"].value == 0  # of float32


def test_weights_that_run_dequantized_have_the_size_that_is_served_too(subject, context):
    """It is the one that the quantizer read back."""
    applied = dataclasses.replace(subject.applied, served_bytes=1000)
    _, numbers = evaluate(dataclasses.replace(subject, applied=applied), context())
    assert numbers["weights_served_bytes"].value == 1000


def test_peaks_name_their_conditions(subject, context):
    """Peaks of different prompts or batches are never compared with each other."""
    _, numbers = evaluate(subject, context(), batch=2)
    assert numbers["kv_cache_bytes_per_token"].at == {"prompt_tokens": 32, "batch": 2}
    if "decode_peak_bytes" in numbers:
        assert numbers["decode_peak_bytes"].at == {"prompt_tokens": 32, "batch": 2, "decode_tokens": 4}


@pytest.mark.parametrize("batch", [1, 3])
def test_the_cache_is_as_large_as_the_configuration_predicts(subject, context, batch):
    """Two vectors of 16 float32 for each of 2 layers and 2 key-value heads, measured and predicted."""
    result, numbers = evaluate(subject, context(), batch=batch)
    assert numbers["kv_cache_bytes_per_token"].value == 2 * 2 * 2 * 16 * 4
    assert result.details["kv_cache"]["predicted_bytes_per_token"] == 2 * 2 * 2 * 16 * 4


def test_decode_holds_at_least_the_cache(subject, context):
    """Peaks are above the weights and have the cache in them."""
    _, numbers = evaluate(subject, context(), prompt_tokens=512)
    if "decode_peak_bytes" not in numbers:
        pytest.skip("this system does not tell peaks")
    assert numbers["decode_peak_bytes"].value >= 512 * numbers["kv_cache_bytes_per_token"].value


def test_a_peak_that_was_not_measured_is_absent_with_its_reason(subject, context):
    """None is not zero: the metric is left out and the details say why."""
    result, numbers = evaluate(replace(subject, load=replace(subject.load, peak_bytes=None)), context())
    assert "load_peak_bytes" not in numbers
    assert result.details["not_measured"]["load_peak_bytes"]


def test_the_checkpoints_files_are_what_lies_on_disk(subject, context):
    """Quantized while loading or not, the weights came from these files."""
    _, numbers = evaluate(subject, context())
    assert numbers["checkpoint_disk_bytes"].value == (subject.path / "model.safetensors").stat().st_size


def test_sequences_beyond_the_models_positions_are_refused(subject):
    """The refusal names the longest prompt that fits."""
    with pytest.raises(UnsupportedError, match="2016"):
        MemoryOptions(prompt_tokens=2040).check(subject.info, "cpu")


def test_a_model_without_a_limit_takes_any_length(subject):
    """A configuration that states no positions refuses nothing."""
    MemoryOptions(prompt_tokens=10**6).check(replace(subject.info, config={}), "cpu")


@pytest.mark.parametrize("wrong", [{"prompt_tokens": 0}, {"decode_tokens": -1}, {"batch": 0}])
def test_sizes_below_one_are_refused(wrong):
    """Constructing the options is enough to find the mistake."""
    with pytest.raises(OptionError, match=next(iter(wrong))):
        MemoryOptions(**wrong)


def test_a_peak_is_unknown_until_the_work_ends():
    """Nobody reads a half-finished measurement as zero."""
    assert PeakMemory().bytes is None


class _Wrapped(torch.Tensor):
    """A quantized tensor as torchao makes them: a wrapper around codes and scales."""

    @staticmethod
    def __new__(cls, codes, scales):
        return torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)

    def __init__(self, codes, scales):
        self.codes, self.scales = codes, scales

    def __tensor_flatten__(self):
        return ["scales", "codes"], None

    @classmethod
    def __tensor_unflatten__(cls, inner, context, size, stride):
        return cls(inner["codes"], inner["scales"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0].codes, args[0].scales)
        raise NotImplementedError(func)


def test_a_gpu_that_is_missing_is_said(monkeypatch):
    """A rented machine whose PyTorch finds no GPU names PyTorch's version and the cure, and no assertion of PyTorch."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(RunError, match="finds no GPU on this machine") as error, peak_memory("cuda"):
        pass
    assert "built without CUDA" in error.value.hint
