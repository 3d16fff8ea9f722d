"""``fidelity(compat=llama.cpp)`` against a plain re-computation of that program's formulas, number by number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from llmquant.errors import OptionError, RunError
from llmquant.evaluators.fidelity.divergence import divergence, working_space
from llmquant.evaluators.fidelity.evaluator import Fidelity
from llmquant.evaluators.fidelity.llama_cpp import LLAMA_CPP_METRICS, llama_cpp_divergence
from llmquant.evaluators.fidelity.options import FidelityOptions
from llmquant.plugins.options import build
from llmquant.study.call import Call
from llmquant.study.experiment import InputFile
from llmquant.study.run import REFERENCE_FILE
from subjects import load_subject

TEXT = "A lock keeper wrote down every barge, its captain and its coal; the river wrote down nothing at all. " * 12
WINDOW = 33

f32 = np.float32


def encoded(logits):
    """Keep a token's log-probabilities as llama.cpp does: 16-bit codes, their scale and their lowest value."""
    highest = logits.max()
    lowest = max(logits.min(), f32(highest - f32(16)))
    log_sum_exp = f32(math.log(sum(float(np.exp(f32(logit - highest))) for logit in logits)))
    scale = f32(f32(highest - lowest) / f32(65535))
    inverse = f32(1) / scale if scale else f32(0)
    codes = [int(np.rint(f32(inverse * f32(logit - lowest)))) if logit > lowest else 0 for logit in logits]
    return codes, scale, f32(f32(lowest - highest) - log_sum_exp)


def compared(base, logits, token):
    """Return divergence, same top, change of probability and of nats of one token."""
    codes, scale, least = encoded(base)
    highest = logits.max()
    log_sum_exp = f32(math.log(sum(float(np.exp(f32(logit - highest))) for logit in logits)))
    nll = f32(highest + log_sum_exp - logits[token])
    nll_base = -f32(scale * f32(codes[token]) + least)
    total = 0.0
    for code, logit in zip(codes, logits, strict=True):
        p_log_base = f32(scale * f32(code) + least)
        if p_log_base > -16:
            total += float(f32(np.exp(p_log_base)) * f32(p_log_base - logit + f32(highest + log_sum_exp)))
    same = int(np.argmax(logits)) == int(np.argmax(codes))
    return total, same, float(np.exp(-nll) - np.exp(-nll_base)), float(nll - nll_base)


def test_a_token_is_compared_as_in_llama_cpp():
    """Also where much lies 16 below the highest logit, and where all are equal."""
    draw = np.random.default_rng(0)
    base = draw.uniform(-18, -15, (12, 1000)).astype(f32)
    base[:, 0] = 0
    variant = (base + draw.normal(0, 3, base.shape)).astype(f32)
    base[-1] = variant[-1] = 1
    right = draw.integers(0, 1000, 12)
    given = [*map(torch.from_numpy, (base, variant, right)), working_space(*base.shape, torch.device("cpu"))]
    found = llama_cpp_divergence(*given)
    rows = [compared(*row) for row in zip(base, variant, right, strict=True)]
    for name, expected in zip(LLAMA_CPP_METRICS, zip(*rows, strict=True), strict=True):
        assert found[name].numpy() == pytest.approx(np.array(expected, dtype=float), abs=1e-6, rel=1e-5)
    plain = divergence(*given)["kl_divergence"]
    assert (plain - found["kl_divergence"]).abs().max() > 1e-4  # the codes matter here


@pytest.mark.parametrize("lead", [0, 1], ids=["no-bos", "bos"])
def test_a_study_gives_the_numbers_of_llama_cpp(tiny_model, context, tmp_path, lead):
    """Its chunks, their second halves, its percentiles and its standard errors over single tokens."""
    torch.set_num_threads(1)
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    options = FidelityOptions(InputFile.read(path), window=WINDOW, compat="llama.cpp", floor=False)
    subject = load_subject(tiny_model, context().cache)
    if lead:
        with_bos(subject)
    base = chunks(subject, lead)
    before = tmp_path / "before"
    list(Fidelity(options).evaluate(subject, context(files=before)))
    with torch.no_grad():
        for parameter in subject.module.parameters():
            parameter.mul_(1.1)
    (result,) = Fidelity(options).evaluate(subject, context(reference=before / REFERENCE_FILE))
    found = {m.metric: m for m in result.measurements if not m.at}
    rows = [compared(one, other, token) for (one, token), (other, _) in zip(base, chunks(subject, lead), strict=True)]
    kl, same, change, nats = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    count = len(kl)
    assert result.details["tokens"] == count
    for metric, values in (("kl_divergence", kl), ("dp_mean", change), ("ln_ppl_ratio", nats)):
        assert found[metric].value == pytest.approx(values.mean(), abs=1e-6)
        spread = (values**2).mean() - values.mean() ** 2
        assert found[metric].stderr == pytest.approx(math.sqrt(spread / (count - 1)), rel=1e-3)
    assert found["top1_agreement"].value == same.mean()
    share = same.mean()
    assert found["top1_agreement"].stderr == pytest.approx(math.sqrt(share * (1 - share) / (count - 1)))
    squares = change**2
    rms = math.sqrt(squares.mean())
    error = math.sqrt(((squares**2).mean() - squares.mean() ** 2) / (count - 1))
    assert found["dp_rms"].value == pytest.approx(rms, abs=1e-6)
    assert found["dp_rms"].stderr == pytest.approx(0.5 / rms * error, rel=1e-3)
    assert found["kl_max"].value == pytest.approx(kl.max(), abs=1e-5)
    for metric, values, fraction in (
        ("kl_median", kl, 0.5),
        ("kl_p99", kl, 0.99),
        ("kl_p999", kl, 0.999),
        ("dp_p1", change, 0.01),
        ("dp_p95", change, 0.95),
    ):
        ordered, place = np.sort(values), fraction * (count - 1)
        low = int(place)
        between = (1 - (place - low)) * ordered[low] + (place - low) * ordered[min(low + 1, count - 1)]
        assert found[metric].value == pytest.approx(between, abs=1e-5)
    assert not {"kl_reverse", "top5_agreement"} & found.keys()


@torch.no_grad()
def chunks(subject, lead):
    """Yield what llama.cpp scores: logits at positions from the middle of each chunk, and the next token."""
    bos = subject.tokenizer.bos_token_id
    tokens = [bos] * lead + subject.tokenizer(TEXT, add_special_tokens=False).input_ids
    found = []
    for start in range(0, len(tokens) // WINDOW * WINDOW, WINDOW):
        chunk = tokens[start : start + WINDOW]
        logits = subject.module(torch.tensor([[bos] * lead + chunk[lead:]])).logits[0].numpy()
        found += [(logits[place], chunk[place + 1]) for place in range(WINDOW // 2, WINDOW - 1)]
    return found


def with_bos(subject):
    from tokenizers.processors import TemplateProcessing

    bos = subject.tokenizer.bos_token
    subject.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, subject.tokenizer.bos_token_id)]
    )


def test_one_chunk_is_too_little(tiny_model, context, tmp_path):
    """llama.cpp wants two."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT[:300], encoding="utf-8")
    options = FidelityOptions(InputFile.read(path), window=128, compat="llama.cpp")
    with pytest.raises(RunError, match="too few for fidelity with window=128"):
        list(Fidelity(options).evaluate(load_subject(tiny_model, context().cache), context()))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("fidelity(window=32, stride=16, compat=llama.cpp)", "whole windows, found stride=16"),
        ("fidelity(window=3, compat=llama.cpp)", "window must be at least 4"),
        ("fidelity(window=512, max_tokens=600, compat=llama.cpp)", "needs two windows of 512 tokens"),
        ("fidelity(window=1)", "^fidelity: window must be at least 2"),
        ("fidelity(compat=exllama)", "compat"),
    ],
)
def test_what_cannot_be_meant_is_refused(call, words):
    """Before anything is loaded."""
    with pytest.raises(OptionError, match=words):
        build(FidelityOptions, Call.parse(call)).check(None, "cpu")
