"""No result depends on what else was in a batch: who couples rows says so, and is read alone."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import coupling
import llmquant as lq
from embedding import build_subject
from llmquant.errors import PluginError, UnsupportedError
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.loading.row_independence import check_row_independence
from llmquant.models.info import inspect_model
from llmquant.plugins.discovery import checked_spec
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from llmquant.study.experiment import ModelRequest
from made_up import NO_FILES
from misbehaving_studies import Here
from quantizing import load_as
from subjects import load_subject

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize(("rope", "independent"), [("longrope", False), ("dynamic", False), ("linear", True)])
def test_a_rotary_embedding_that_follows_the_longest_row_couples_rows(tiny_model, tmp_path, rope, independent):
    """Whatever quantizes the model."""
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": rope, "factor": 2.0}
    (model / "config.json").write_text(json.dumps(config))
    assert inspect_model(ModelRequest(str(model)), Cache.default()).row_independent is independent


RECURRENT = {
    "rwkv": {"hidden_size": 32, "attention_hidden_size": 32, "num_hidden_layers": 2},
    "recurrent_gemma": {
        **{"hidden_size": 32, "lru_width": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "head_dim": 8},
        **{"intermediate_size": 48, "block_types": ["recurrent", "recurrent", "attention"]},
    },
    "xlstm": {
        **{"hidden_size": 64, "num_blocks": 2, "num_heads": 4, "qk_dim_factor": 1.0},
        **{"chunkwise_kernel": "chunkwise--native_autograd", "sequence_kernel": "native_sequence__native"},
        "step_kernel": "native",
    },
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2},
    "mamba2": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_heads": 8,
        "head_dim": 8,
        "state_size": 8,
        "n_groups": 2,
    },
}


@pytest.mark.parametrize(("kind", "reads"), [(kind, not kind.startswith("mamba")) for kind in RECURRENT])
def test_models_that_read_padding_are_known(kind, reads):
    """Their answers to a shorter prompt of a batch would be wrong: the first token's logits are not those alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, vocab_size=61, eos_token_id=2, pad_token_id=0, **RECURRENT[kind])
        module = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    prompt = torch.arange(10, 16)[None]

    def first(padding):
        ids, mask = torch.nn.functional.pad(prompt, (padding, 0), value=5), torch.ones_like(prompt)
        mask = torch.nn.functional.pad(mask, (padding, 0))
        settings = {"max_new_tokens": 1, "output_logits": True, "return_dict_in_generate": True}
        return module.generate(input_ids=ids, attention_mask=mask, **settings).logits[0]

    assert (float((first(4) - first(0)).abs().max()) > 1e-3) is reads
    assert replace(NO_FILES, config=config.to_dict()).reads_padding is reads


@pytest.mark.parametrize(("task", "refused"), [("coqa", True), ("arc_easy", False)])
def test_a_model_that_reads_padding_answers_one_prompt_at_a_time(task, refused):
    """A larger batch is refused where answers are generated; scored answers are padded behind."""
    model = replace(NO_FILES, config={"model_type": "rwkv"})
    assert not model.row_independent
    LmEvalOptions((task,)).check(model, "cpu")
    with pytest.raises(UnsupportedError, match="reads the padding") if refused else contextlib.nullcontext():
        LmEvalOptions((task,), batch_size=8).check(model, "cpu")


@pytest.mark.parametrize(
    ("quantizer", "independent"),
    [
        ("bf16_baseline", True),
        ("bnb_4bit_nf4", True),
        ("bnb_8bit", False),
        ("bnb_8bit(threshold=0)", True),
        ("torchao_int8_dynamic", True),
        ("torchao_float8_dynamic", True),
        ("torchao_nvfp4_dynamic", False),
        ("torchao_mxfp4", True),
    ],
)
def test_quantizers_declare_whether_they_couple_rows(quantizer, independent):
    """Where a plugin has both kinds, the options tell them apart."""
    assert registry().choose("quantizer", Call.parse(quantizer)).row_independent is independent


@pytest.mark.parametrize(
    ("settings", "independent"),
    [
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, False),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, True),
        ({"quant_method": "gptq", "bits": 4}, True),
        (
            {"config_groups": {"group_0": {"input_activations": {"dynamic": True, "strategy": "tensor"}}}},
            False,
        ),
        ({"config_groups": {"group_0": {"input_activations": {"dynamic": True, "strategy": "token"}}}}, True),
        ({"config_groups": {"group_0": {"input_activations": {"dynamic": False, "strategy": "tensor"}}}}, True),
        ({"config_groups": {"group_0": {"input_activations": None}, "W8A16": ["Linear"]}}, True),
    ],
)
def test_a_checkpoint_from_elsewhere_tells_by_its_settings(tiny_model, monkeypatch, settings, independent):
    """One scale for all inputs of a batch couples its rows, one for each token does not."""
    from llmquant.quantizers.prequantized.options import Checkpoint, PrequantizedOptions

    info = inspect_model(ModelRequest(str(tiny_model)), Cache.default())
    found = replace(info, config={**info.config, "quantization_config": settings})
    monkeypatch.setattr(PrequantizedOptions, "_info", lambda self: found)
    assert PrequantizedOptions(Checkpoint(info.digest, "x")).row_independent() is independent


@pytest.mark.parametrize(("threshold", "moved"), [(6.0, True), (0.0, False)])
def test_what_is_declared_is_what_is_computed(tiny_model, context, threshold, moved):
    """LLM.int8 computes a row otherwise beside another one, unless its outliers are turned off."""
    from llmquant.quantizers.bitsandbytes.options import Bnb8bitOptions
    from llmquant.quantizers.bitsandbytes.quantizer import Bnb8bit

    options = Bnb8bitOptions(threshold, "float32")
    module = load_as(Bnb8bit, options, tiny_model, context()).module
    rows = torch.tensor([list(range(3, 19)), list(range(400, 416))])
    with torch.no_grad():
        alone, beside = module(rows[:1]).logits[0], module(rows).logits[0]
    assert (float((alone - beside).abs().max()) > 1e-2) is moved is not options.row_independent()


@pytest.mark.parametrize("late", [False, True])
def test_an_embedder_whose_rows_are_coupled_encodes_one_item_at_a_time(tmp_path, late):
    """Its vectors are in a cache that other batches read."""
    subject = build_subject(tmp_path, late=late, batch_tokens=30)
    subject.encode([f"word {number}" for number in range(6)])
    assert max(map(len, subject.opened.batches)) > 1
    coupled = replace(build_subject(tmp_path / "other", late=late, batch_tokens=30), row_independent=False)
    coupled.encode([f"word {number}" for number in range(6)])
    assert [len(batch) for batch in coupled.opened.batches] == [1] * 6


def test_the_declaration_travels_with_a_job():
    """A worker gets it with the spec; one that was written before has none, and rows are independent."""
    spec = registry().choose("quantizer", Call("bnb_8bit")).plugin.spec
    written = json.loads(json.dumps(vars(spec)))
    assert checked_spec(PluginSpec(**written)) == spec
    del written["row_independent"]
    assert PluginSpec(**written).row_independent


CODES = [f"code={code}, dtype={dtype}" for code in ("int8", "float8_e4m3fn") for dtype in ("float32", "bfloat16")]


@pytest.fixture
def coupled():
    """Return a function that registers the quantizer that couples rows."""
    before = list(registry().plugins)
    yield lambda **changes: lq.register(replace(coupling.SPEC, **changes))
    registry().plugins = before


@pytest.mark.parametrize("options", CODES)
def test_a_quantizer_that_wrongly_declares_independent_rows_is_found(tiny_model, coupled, options):
    """One scale for the inputs of a whole batch is found, whatever the code and the type."""
    coupled()
    with pytest.raises(PluginError, match=r"declares row_independent, but rows change each other: .* by \d.* standard"):
        lq.load(str(tiny_model), f"coupling({options})", device="cpu")


@pytest.mark.parametrize("options", CODES)
def test_a_scale_per_token_is_accepted(tiny_model, coupled, options):
    """The rows of both batches have the same shape, so that not even rounding differs."""
    coupled()
    assert lq.load(str(tiny_model), f"coupling(over=token, {options})", device="cpu").row_independent


def test_a_quantizer_that_declares_coupled_rows_is_accepted(tiny_model, coupled):
    """It keeps its promise, and evaluators of the loaded model know."""
    coupled(row_independent=False)
    assert not lq.load(str(tiny_model), "coupling", device="cpu").row_independent


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda module: setattr(module.config, "max_position_embeddings", 8), "fewer than 16 tokens"),
        (lambda module: module.add_module("experts", torch.nn.Identity()), "another expert"),
    ],
)
def test_the_check_is_skipped_where_it_cannot_be_made(tiny_model, context, change, reason):
    """Positions are too few, or equal inputs give unequal numbers in honest models too; the log has the reason."""
    subject = load_subject(tiny_model, context().cache)
    change(subject.module)
    assert reason in check_row_independence(subject, "any")


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Score a task with `coupling`, and with a quantizer that declares what it does; return the runs by quantizer."""
    folder, known = tmp_path_factory.mktemp("runs"), list(registry().plugins)
    choices = {"text": ["one", "two"], "label": ["A", "B"]}
    rows = [{"id": n, "question": "How many?", "choices": choices, "answerKey": "A"} for n in range(2)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lq.register(coupling.SPEC)
    lq.register(replace(coupling.SPEC, name="declared", row_independent=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LLMQUANT_CACHE", str(folder / "cache"))
        found = lq.compare(
            str(tiny_model),
            ["coupling", "coupling(over=token)", "declared"],
            [f"lm_eval(arc_easy, data={folder / 'rows.jsonl'}, engine=tree)"],
            executor=Here(),
            store=folder / "store",
            progress=False,
        )
    registry().plugins = known
    return {run.experiment.variant.quantizer.label: run for run in found.runs.values()}


def test_a_run_fails_if_a_quantizer_wrongly_declares_independent_rows(runs):
    """Its scores would depend on the batches; the message names the quantizer and the way out."""
    failure = runs["coupling"].failure.message
    assert "coupling declares row_independent, but rows change each other" in failure
    assert "row_independent=False" in failure


def test_a_model_in_this_process_is_not_loaded_with_a_wrong_declaration(tiny_model):
    """As in a run, the scores of `llmquant.evaluate` would depend on the batches."""
    known = list(registry().plugins)
    lq.register(coupling.SPEC)
    try:
        assert lq.load(str(tiny_model), "coupling(over=token)").row_independent
        with pytest.raises(PluginError, match="coupling declares row_independent, but rows change each other"):
            lq.load(str(tiny_model), "coupling")
    finally:
        registry().plugins = known


def test_a_scale_per_token_shares_prefixes_in_a_run(runs):
    """It was checked and passed."""
    assert runs["coupling(over=token)"].details["arc_easy"]["engine"] == "tree"


def test_a_run_with_coupled_rows_keeps_lm_evals_forward_passes(runs):
    """The worker tells the evaluator what the quantizer declares."""
    assert runs["declared"].details["arc_easy"]["engine_reason"] == "documents in a batch affect each other"
