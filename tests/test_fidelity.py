"""Fidelity: what is reported is what the full logits of both models say, and what cannot be compared is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax

import llmquant as lq
from llmquant.errors import RunError, UnsupportedError
from llmquant.evaluators.fidelity.evaluator import Fidelity
from llmquant.evaluators.fidelity.measures import Scored, measurements
from llmquant.evaluators.fidelity.options import FidelityOptions
from llmquant.evaluators.perplexity.evaluator import Perplexity
from llmquant.evaluators.perplexity.options import PerplexityOptions
from llmquant.evaluators.perplexity.reading import TextWindows
from llmquant.evaluators.perplexity.windows import EncodedText, Window
from llmquant.running.checked_results import checked_results
from llmquant.stats.samples import pair_samples
from llmquant.study.experiment import InputFile
from llmquant.study.run import REFERENCE_FILE
from subjects import load_subject

TEXT = (
    "The ferryman kept two ropes, one for the flood and one for the drought, and he never mixed them up.\n"
    "On market days he carried geese; on Sundays the priest, who paid in candles and talked about the weather.\n"
    "When the bridge was built he sold the boat, and walked across once a week to see what others had to look at.\n"
) * 2
TOKENS = 10 * 32 + 1  # ten whole windows; the first token is not scored


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "ferry.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.fixture
def baseline(subject):
    return subject


@pytest.fixture
def variant(tiny_model, context):
    """Return the tiny model with noise on its weights, head included."""
    torch.set_num_threads(1)
    subject = load_subject(tiny_model, context().cache)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in subject.module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=draw) * 0.03)
    return subject


@pytest.fixture
def compared(context, text_file, tmp_path):
    """Return a function that runs the evaluator on a baseline and then on a variant, as a study does."""

    def compare(baseline, variant, **options):
        given = FidelityOptions(
            InputFile.read(text_file), **{"window": 32, "max_tokens": TOKENS, "floor": False, **options}
        )
        before, after = tmp_path / "before", tmp_path / "after"
        (first,) = checked_results(Fidelity(given).evaluate(baseline, context(files=before)), "fidelity")
        run = context(reference=before / REFERENCE_FILE, files=after)
        (second,) = checked_results(Fidelity(given).evaluate(variant, run), "fidelity")
        return first, second

    return compare


def values(result):
    return {m.metric: m.value for m in result.measurements if not m.at}


@torch.no_grad()
def full_logits(subject, window=32):
    """Return all logits of consecutive windows at once, in float64, and the right tokens."""
    ids = subject.tokenizer(TEXT, add_special_tokens=False).input_ids[:TOKENS]
    logits, right = [], []
    for start in range(0, len(ids) - 1, window):
        chunk = torch.tensor([ids[start : start + window + 1]])
        logits.append(subject.module(chunk[:, :-1]).logits[0].double())
        right.append(chunk[0, 1:])
    return torch.cat(logits), torch.cat(right)


def test_the_divergence_is_that_of_the_full_logits(baseline, variant, compared):
    """Both ways, and all else, as computed from all logits of both models at once."""
    (p, right), (q, _) = (full_logits(subject) for subject in (baseline, variant))
    p_log, q_log = log_softmax(p, -1), log_softmax(q, -1)
    kl = (p_log.exp() * (p_log - q_log)).sum(-1)
    p_right, q_right = (logs.gather(-1, right[:, None])[:, 0] for logs in (p_log, q_log))
    top = [{*map(int, row)} for row in p.topk(5).indices], [{*map(int, row)} for row in q.topk(5).indices]
    found = values(compared(baseline, variant)[1])
    change = (q_right.exp() - p_right.exp()).numpy()
    expected = {
        "kl_divergence": kl.mean(),
        "kl_reverse": (q_log.exp() * (q_log - p_log)).sum(-1).mean(),
        "kl_median": np.median(kl),
        "kl_p99": np.percentile(kl, 99),
        "kl_p999": np.percentile(kl, 99.9),
        "kl_max": kl.max(),
        "top1_agreement": (p.argmax(-1) == q.argmax(-1)).double().mean(),
        "top5_agreement": np.mean([len(a & b) / 5 for a, b in zip(*top, strict=True)]),
        "dp_mean": change.mean(),
        "dp_rms": np.sqrt((change**2).mean()),
        "dp_p1": np.percentile(change, 1),
        "dp_p5": np.percentile(change, 5),
        "dp_median": np.median(change),
        "dp_p95": np.percentile(change, 95),
        "dp_p99": np.percentile(change, 99),
        "ln_ppl_ratio": (p_right - q_right).mean(),
    }
    assert found == {name: pytest.approx(float(value), abs=1e-6) for name, value in expected.items()}
    assert found["kl_divergence"] > 0.01  # the noise did something


def test_the_perplexities_are_those_of_the_perplexity_evaluator(baseline, variant, compared, context, text_file):
    """The same tokens in the same windows."""
    given = PerplexityOptions(InputFile.read(text_file), window=32, stride=8, max_tokens=TOKENS)
    nats = [
        next(m.value for m in next(Perplexity(given).evaluate(subject, context())).measurements if m.unit == "nats")
        for subject in (baseline, variant)
    ]
    found = values(compared(baseline, variant, stride=8)[1])
    assert found["ln_ppl_ratio"] == pytest.approx(nats[1] - nats[0], abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_baseline_does_not_differ_from_itself(baseline, compared, dtype):
    """Exactly zero in every dtype, because both sides compute the same logits in the same steps."""
    baseline.module.to(dtype)
    found = values(compared(baseline, baseline)[1])
    assert found.pop("top1_agreement") == found.pop("top5_agreement") == 1
    assert set(found.values()) == {0}


def test_every_mean_is_the_sum_of_its_windows(baseline, variant, compared):
    """So that a study gives each of them an interval over windows."""
    before, after = compared(baseline, variant, floor=True)
    at_baseline = {m.metric: m for m in before.measurements if not m.at}
    means = {m.metric: m for m in after.measurements if m.metric in after.samples[0].scores and not m.at}
    assert len(means) == 8
    for metric, measurement in means.items():
        pairs = pair_samples(
            measurement, at_baseline[metric], {after.task: after.samples}, {before.task: before.samples}
        )
        assert not pairs.reason
        assert len(pairs.variant) == measurement.n
        expected = measurement.value - at_baseline[metric].value
        assert pairs.difference().value == pytest.approx(expected, abs=1e-9)


def test_neither_direction_of_a_divergence_is_a_verdict(baseline, variant, compared):
    """A small divergence is never better or no worse; the notes say why."""
    _, result = compared(baseline, variant)
    assert {m.metric for m in result.measurements if m.higher_is_better is not None} == {"ln_ppl_ratio"}
    assert "does not rank variants (arXiv 2606.19558)" in result.details["notes"][0]


@pytest.mark.parametrize("what", ["position", "confidence"])
def test_bins_add_up_to_the_whole(baseline, variant, compared, what):
    """Every token is in one bin by its context and in one by the baseline's confidence."""
    _, result = compared(baseline, variant, window=200, max_tokens=401)
    (whole,) = [m.value for m in result.measurements if m.metric == "kl_divergence" and not m.at]
    bins = {m.at[what]: m.value for m in result.measurements if what in m.at}
    tokens = result.details["tokens_by"][what]
    assert bins.keys() == tokens.keys()
    assert len(bins) > 1
    assert sum(tokens.values()) == result.details["tokens"]
    total = sum(value * tokens[label] for label, value in bins.items())
    assert total / result.details["tokens"] == pytest.approx(whole, rel=1e-9)


def test_errors_of_percentiles_are_those_of_independent_tokens():
    """Drawing windows gives the known error of a normal median; equal seeds give equal errors."""
    windows = [Window(50 * number, 50 * number + 1, 50 * number + 51) for number in range(60)]
    text = TextWindows("t", EncodedText(range(3001), None, ()), windows, {})
    draw = np.random.default_rng(0)
    numbers = {name: draw.normal(size=3000) for name in ("kl_divergence", "dp_mean")}
    found, again = (
        {m.metric: m.stderr for m in measurements(Scored.of(text, numbers, is_baseline=False), None, seed=1)}
        for _ in range(2)
    )
    assert found == again
    assert found["dp_median"] == pytest.approx(math.sqrt(math.pi / 2 / 3000), rel=0.25)
    assert found["kl_max"] is None


FAMILIES = {
    "a soft cap": ("gemma2", {"final_logit_softcapping": 3.0, "head_dim": 16}),
    "a factor": ("cohere", {"logit_scale": 0.3}),
    "a divisor": ("granite", {"logits_scaling": 7.0}),
    "a bias": ("phi", {}),
    "a tied head stored without its prefix": ("gpt2", {"n_positions": 256}),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_family(family, tiny_model, tmp_path, context, compared):
    """What a model does after its head is done to the baseline's logits too."""
    import transformers

    name, settings = FAMILIES[family]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **sizes, **settings))
    if family == "a bias":
        torch.nn.init.normal_(model.lm_head.bias)
    model.save_pretrained(tmp_path / "family")
    tokenizer.save_pretrained(tmp_path / "family")
    first, second = (load_subject(tmp_path / "family", context().cache) for _ in range(2))
    with torch.no_grad():
        for parameter in second.module.parameters():
            parameter.mul_(1.1)
    (p, _), (q, _) = (full_logits(subject) for subject in (first, second))
    p_log, q_log = log_softmax(p, -1), log_softmax(q, -1)
    kl = (p_log.exp() * (p_log - q_log)).sum(-1).mean()
    assert values(compared(first, second)[1])["kl_divergence"] == pytest.approx(float(kl), abs=1e-6)
    with lq_file(tmp_path / "before" / REFERENCE_FILE) as file:
        assert "weight" not in file.keys()  # noqa: SIM118 - safe_open is not a mapping


def lq_file(path):
    from safetensors import safe_open

    return safe_open(path, framework="pt")


def test_a_head_that_is_not_in_the_checkpoint_is_kept(baseline, variant, compared, tmp_path):
    """A baseline whose head was changed after loading brings its head along."""
    with torch.no_grad():
        baseline.module.lm_head.weight.mul_(1.5)
    found = values(compared(baseline, baseline)[1])
    assert found["kl_divergence"] == 0
    with lq_file(tmp_path / "before" / REFERENCE_FILE) as file:
        assert torch.equal(file.get_tensor("weight"), baseline.module.lm_head.weight)


def test_another_checkpoint_is_refused(baseline, compared, tmp_path, tiny_model, context):
    """The head is read from the variant's own model, which must be the baseline's."""
    import shutil

    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tensors = load_file(other / "model.safetensors")
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(RunError, match="is not the baseline's head"):
        compared(baseline, load_subject(other, context().cache))


class Bent(torch.nn.Linear):
    """Not a linear head."""

    def forward(self, states):
        return super().forward(states).sin()


@pytest.mark.parametrize("which", ["baseline", "variant"])
def test_a_head_that_is_not_linear_is_refused(baseline, variant, compared, which):
    """Its logits cannot be computed from hidden states, which one chunk shows."""
    bent = {"baseline": baseline, "variant": variant}[which].module.lm_head
    if which == "baseline":
        bent.__class__ = Bent
        with pytest.raises(UnsupportedError, match="are not those of a linear head"):
            compared(baseline, variant)
        return
    forward = variant.module.forward
    variant.module.forward = lambda **given: _doubled(forward(**given))
    with pytest.raises(UnsupportedError, match="are not those of a linear head"):
        compared(baseline, variant)


def _doubled(output):
    output.logits = 2 * output.logits
    return output


def test_vocabularies_of_different_sizes_are_refused(baseline, variant, compared):
    """A padded vocabulary has other probabilities."""
    size = baseline.module.config.vocab_size
    variant.module.resize_token_embeddings(size + 64)
    with pytest.raises(RunError, match=f"logits for {size} tokens, the variant for {size + 64}"):
        compared(baseline, variant)


def test_the_file_of_another_text_is_refused(baseline, compared, context, tmp_path):
    """Other tokens, however alike the texts."""
    compared(baseline, baseline)
    other = tmp_path / "other.txt"
    other.write_text(TEXT.replace("geese", "goats"), encoding="utf-8")
    given = FidelityOptions(InputFile.read(other), window=32, max_tokens=TOKENS, floor=False)
    with pytest.raises(RunError, match="the baseline's token ids differ"):
        list(Fidelity(given).evaluate(baseline, context(reference=tmp_path / "before" / REFERENCE_FILE)))


def test_other_windows_are_refused(baseline, compared, context, tmp_path, text_file):
    """The same tokens after other contexts."""
    compared(baseline, baseline)
    given = FidelityOptions(InputFile.read(text_file), window=32, stride=16, max_tokens=TOKENS, floor=False)
    with pytest.raises(RunError, match="the baseline's windows differ"):
        list(Fidelity(given).evaluate(baseline, context(reference=tmp_path / "before" / REFERENCE_FILE)))


def test_nan_is_refused(baseline, variant, compared):
    """A model that returns NaN has no divergence."""
    with torch.no_grad():
        variant.module.model.layers[1].mlp.down_proj.weight[0, 0] = math.nan
    with pytest.raises(RunError, match="LlamaForCausalLM returns NaN"):
        compared(baseline, variant)


def test_a_notebook_compares_two_loaded_models(baseline, variant, text_file):
    """Without a store."""
    call = f"fidelity({text_file}, window=32, floor=false)"
    (result,) = lq.evaluate(variant, call, baseline=baseline)
    assert values(result)["kl_divergence"] > 0
    (result,) = lq.evaluate(baseline, call, baseline=baseline)
    assert values(result)["kl_divergence"] == 0
