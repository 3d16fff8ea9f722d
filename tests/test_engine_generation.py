"""Generation by the engine: each answer has lm-eval's tokens, whatever is answered beside and before it."""

from __future__ import annotations

import functools
import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import lm_eval.tasks
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from lm_eval.models.utils import postprocess_generated_text
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config

from llmquant.engine import lm as engine_lm
from llmquant.engine import ragged
from llmquant.engine.ragged import Prompt, decode
from llmquant.engine.slots import Slots
from llmquant.engine.support import MODEL_TYPES
from llmquant.evaluators.lm_eval.compat import provide_squad_metrics
from llmquant.evaluators.lm_eval.evaluator import LmEval
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.evaluators.lm_eval.scored_part import first_line
from llmquant.plugins.options import build
from llmquant.storage.cache import Cache
from llmquant.study.call import Call
from subjects import load_subject
from test_engine import _tiny

VOCABULARY = 61
SIZES = {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "initializer_range": 0.3}
NARROW = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
HEADS = {"num_key_value_heads": 2, "head_dim": 8}
CONFIGURATIONS = {
    "llama": LlamaConfig(**SIZES, **NARROW, **HEADS),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_positions=60, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3),
    "sliding": MistralConfig(**SIZES, **NARROW, **HEADS, sliding_window=6),
    "both": Qwen3Config(
        **SIZES,
        **NARROW,
        **HEADS,
        use_sliding_window=True,
        sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
}


@functools.cache
def tiny(kind):
    torch.set_num_threads(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(CONFIGURATIONS[kind], dtype=torch.float32).eval()


@st.composite
def branching_prompts(draw):
    """Prompts that continue the beginning of another one or start anew, some of them equal, each with its own end."""
    tokens = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=14)
    texts = [draw(tokens)]
    for _ in range(draw(st.integers(0, 8))):
        before = draw(st.sampled_from(texts))
        texts.append((before[: draw(st.integers(0, len(before)))] + draw(tokens))[:40])
    return [
        Prompt(text, draw(st.integers(1, 12)), functools.partial(ends_with, draw(st.integers(2, 9)))) for text in texts
    ]


def ends_with(divisor, answer):
    return answer[-1] % divisor == 0


def plain(module, prompt):
    """Answer one prompt by transformers' own generation, cut at its end."""
    ids = torch.tensor([prompt.tokens])
    settings = {"max_new_tokens": prompt.limit, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    answer = module.generate(ids, attention_mask=torch.ones_like(ids), **settings)[0, len(prompt.tokens) :].tolist()
    return next((answer[:end] for end in range(1, len(answer)) if prompt.ended(answer[:end])), answer)


def differ(module, prompts, slots):
    """Return the prompts whose answer is another one than alone, except where two logits are almost equal."""
    answers = dict(decode(module, prompts, slots))
    assert sorted(answers) == list(range(len(prompts)))
    return [
        prompt
        for number, prompt in enumerate(prompts)
        if answers[number].tokens != plain(module, prompt) and min(answers[number].margins) > 1e-3
    ]


@pytest.mark.parametrize("kind", CONFIGURATIONS)
@given(branching_prompts(), st.integers(1, 5))
@settings(max_examples=25)
def test_answers_are_those_of_each_prompt_alone(kind, prompts, slots):
    """Whatever is shared, refilled and moved, with full and with sliding attention, and at a model's last position."""
    assert not differ(tiny(kind), prompts, slots)


@pytest.mark.parametrize("kind", MODEL_TYPES.split())
def test_every_supported_type_of_model_generates_as_transformers_does(kind):
    """Each token is the likeliest after all before it, by one plain forward pass, which is faster than generation."""
    module, prompts = _tiny(kind), many()
    answers = dict(decode(module, prompts, 4))
    for number, prompt in enumerate(prompts):
        tokens = answers[number].tokens
        with torch.no_grad():
            logits = module(torch.tensor([[*prompt.tokens, *tokens[:-1]]]), use_cache=False).logits[0]
        assert len(tokens) == prompt.limit
        assert tokens == logits[-len(tokens) :].argmax(-1).tolist() or min(answers[number].margins) < 1e-3


def many():
    """Twelve prompts with a common beginning, with answers of different lengths."""
    draw = torch.Generator().manual_seed(5)
    ends = torch.randint(3, VOCABULARY, (12, 9), generator=draw).tolist()
    return [Prompt([*range(20, 32), *end[: 3 + n % 6]], 3 + 2 * (n % 5), lambda _: False) for n, end in enumerate(ends)]


def wrong_copy(slots, source, target, length):
    """Leave another prompt's keys and values in a slot."""


def wrong_length(slots, source, target, length, copy=Slots.copy):
    copy(slots, source, target, length - 1)


def wrong_read(slots, numbers, starts, tokens, read=Slots.read):
    return read(slots, numbers, [max(0, start - 1) for start in starts], tokens)


def swapped_read(slots, numbers, starts, tokens, read=Slots.read):
    return read(slots, numbers, starts, tokens).flip(0)


def one_sees_its_neighbour(slots, positions, masks=Slots._masks):
    return torch.zeros_like(masks(slots, positions))


@pytest.mark.parametrize(
    ("name", "mistake"),
    [
        ("copy", wrong_copy),
        ("copy", wrong_length),
        ("read", wrong_read),
        ("read", swapped_read),
        ("_masks", one_sees_its_neighbour),
    ],
)
def test_a_mistake_in_the_bookkeeping_changes_answers(monkeypatch, name, mistake):
    """The comparison sees another prompt's keys, a lost key, a wrong position, swapped rows and a void mask."""
    assert not differ(tiny("llama"), many(), 3)
    monkeypatch.setattr(Slots, name, mistake)
    assert differ(tiny("llama"), many(), 3)


def test_shared_prefixes_are_read_once():
    """The longest prefix shared with any prompt before is copied; of equal prompts only the last token is read."""
    same = [Prompt([*range(3, 43), number], 2, lambda _: False) for number in (50, 51, 52, 52)]
    answers = dict(decode(tiny("llama"), same, 2))
    assert sorted(answer.read for answer in answers.values()) == [1, 1, 1, 41]


def test_short_prompts_are_read_together(monkeypatch):
    """Prompts of similar length that share little need one forward pass."""
    counts = []
    read = Slots.read
    monkeypatch.setattr(Slots, "read", lambda slots, rows, *rest: counts.append(len(rows)) or read(slots, rows, *rest))
    prompts = [Prompt([number, *range(20, 30)], 1, lambda _: False) for number in range(3, 11)]
    dict(decode(tiny("llama"), prompts, 8))
    assert counts == [8]
    assert ragged._TOGETHER >= 8 * 11


LINES = st.lists(
    st.sampled_from(["\n", " ", "white", "The", " cat", ".", "Q", ":", "\t", "\nQ:", "a", "\n\n"]), max_size=9
)


@given(LINES, LINES, st.sampled_from([["\nQ:"], ["\n\n", "<|im_end|>"], ["cat\n"], [".", " \nQ"]]))
@settings(max_examples=300)
def test_nothing_that_follows_a_complete_first_line_changes_it(beginning, rest, stop):
    """Neither more text nor a stop string in it."""
    beginning, rest = "".join(beginning), "".join(rest)
    assume(first_line(beginning, stop))

    def scored(text):
        return postprocess_generated_text(text, stop, None).strip().split("\n")[0]

    assert scored(beginning) == scored(beginning + rest)


DOCUMENT = {
    "story": "Ann has a white cat.",
    "questions": {"input_text": ["Who has a cat?", "What color is it?"]},
    "answers": {"input_text": ["Ann", "white"]},
    "additional_answers": {
        "0": {"input_text": ["Ann has", "The white one"]},
        "1": {"input_text": ["ann", "a white cat"]},
    },
}


@pytest.mark.parametrize(
    ("file", "function", "document"),
    [
        ("coqa", "process_results", DOCUMENT),
        ("catalan_bench", "process_results_coqcat", {**DOCUMENT, "questions": DOCUMENT["questions"]["input_text"]}),
    ],
)
@given(LINES, LINES)
@settings(max_examples=200)
def test_scores_of_a_complete_part_and_of_the_whole_answer_are_equal(file, function, document, beginning, rest):
    """By lm-eval's own function, for every rule."""
    beginning, rest = "".join(beginning), "".join(rest)
    assume(first_line(beginning, ["\nQ:"]))
    score = scorer(file, function)
    assert score(document, [beginning]) == score(document, [beginning + rest])


@functools.cache
def scorer(folder, function):
    provide_squad_metrics()
    file = Path(lm_eval.tasks.__file__).parent / folder / "utils.py"
    spec = importlib.util.spec_from_file_location(f"scores_of_{folder}", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, function)


TASK = """
task: asked
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: "{{q}}"
doc_to_target: "nine"
generation_kwargs: {until: [STOP], max_gen_toks: 12}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
TEXT = "Question: How many sacks were sold on Monday, and how many on Tuesday? Answer:"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Return a cache for all tests, because listing lm-eval's tasks takes seconds."""
    return Cache(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def subject(tiny_model, cache):
    return load_subject(tiny_model, cache)


@pytest.fixture
def evaluate(subject, context, cache, tmp_path, monkeypatch):
    """Return a function that evaluates a task with an engine on prompts that share beginnings."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(cache.root))
    rows = [{"q": TEXT[: 12 + 3 * number]} for number in range(20)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(engine, stop=" of", **given):
        (tmp_path / "task.yaml").write_text(TASK.replace("STOP", json.dumps(stop)))
        options = {"data": str(tmp_path / "rows.jsonl"), "engine": engine, **given}
        (result,) = LmEval(build(LmEvalOptions, Call("lm_eval", (str(tmp_path / "task.yaml"),), options))).evaluate(
            subject, replace(context(), cache=cache)
        )
        return result

    return run


def without_margins(result):
    return [replace(sample, decision_margin=None) for sample in result.samples]


@pytest.mark.parametrize("given", [{}, {"max_length": 20}, {"batch_size": 3}, {"verify": 0}], ids=str)
def test_samples_are_those_of_lm_eval(evaluate, given):
    """Answers, scores, numbers of tokens and cut prompts are equal, for any number of slots."""
    expected, found = (evaluate(engine, **given) for engine in ("stock", "tree"))
    assert without_margins(found) == expected.samples
    assert found.measurements == expected.measurements
    assert len({sample.generated for sample in found.samples}) > 1
    assert found.details["engine"] == "tree"
    assert found.details["tokens_read"] < found.details["tokens_read_by_stock"]
    assert found.details["verified"] == given.get("verify", 4)
    assert found.details["least_margin"] == min(sample.decision_margin for sample in found.samples)


def test_answers_with_a_close_decision_are_run_again(evaluate, monkeypatch):
    """By lm-eval's own generation; the share is reported, and what was generated is counted once."""
    monkeypatch.setattr(engine_lm, "_SAFETY", 1e9)
    expected, found = evaluate("stock"), evaluate("tree")
    assert found.details["run_again"] == 1
    assert without_margins(found) == expected.samples


def test_a_lost_key_is_found_by_random_checks(evaluate, monkeypatch):
    """All answers are then lm-eval's own, with a note."""
    monkeypatch.setattr(Slots, "copy", wrong_length)
    expected, found = evaluate("stock"), evaluate("tree", verify=20)
    assert without_margins(found) == expected.samples
    assert found.details["engine"] == "stock"
    assert "differed" in found.details["notes"][0]


@pytest.mark.parametrize(
    ("given", "model", "reason"),
    [
        ({"gen_kwargs": {"do_sample": True, "temperature": 0.7}}, {}, "answers are sampled"),
        ({"gen_kwargs": {"num_beams": 2}}, {}, "generation has num_beams"),
        ({}, {"repetition_penalty": 1.5}, "generation has repetition_penalty"),
        ({"think_end_token": "</think>"}, {}, "answers contain reasoning"),
    ],
)
def test_other_than_greedy_generation_is_left_to_lm_eval(evaluate, subject, given, model, reason):
    """And the table says so."""
    subject.module.generation_config.update(**model)
    expected, found = evaluate("stock", **given), evaluate("tree", **given)
    assert without_margins(found) == expected.samples
    assert found.details["engine_reason"] == reason
    assert any(note.endswith(reason) for note in found.details["notes"])


@pytest.mark.parametrize("independent", [True, False])
def test_answers_of_coqa_end_with_their_first_line(subject, context, cache, tmp_path, monkeypatch, independent):
    """With equal scores, marked on the sample; also by lm-eval's own forward passes, for models that need them."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(cache.root))
    file = tmp_path / "coqa.jsonl"
    stories = [{**DOCUMENT, "story": TEXT[: 10 + 5 * number]} for number in range(6)]
    file.write_text("".join(json.dumps(story) + "\n" for story in stories))
    # A line break is what the model writes most readily.
    with torch.no_grad():
        subject.module.model.embed_tokens.weight[subject.tokenizer("\n").input_ids] *= 1.5
    subject = replace(subject, row_independent=independent)
    samples = {}
    for engine in ("stock", "tree"):
        call = Call("lm_eval", ("coqa",), {"data": str(file), "engine": engine, "gen_kwargs": {"max_gen_toks": 40}})
        (result,) = LmEval(build(LmEvalOptions, call)).evaluate(subject, replace(context(), cache=cache))
        samples[engine] = result.samples
    assert [sample.scores for sample in samples["tree"]] == [sample.scores for sample in samples["stock"]]
    early = [(whole, found) for whole, found in zip(samples["stock"], samples["tree"], strict=True) if found.early]
    assert early
    for whole, found in early:
        assert (whole.early, found.early, found.cut) == (False, True, False)
        assert found.generated < whole.generated
        assert whole.answer.startswith(found.answer)
