"""The engine: shared prefixes are read once, and every score is the one that lm-eval's own model gives."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModelForCausalLM

from llmquant.engine import forward as engine_forward
from llmquant.engine import lm as engine_lm
from llmquant.engine import trie
from llmquant.engine.forward import TreeReader
from llmquant.engine.lm import TreeLM
from llmquant.engine.support import MODEL_TYPES, why_not
from llmquant.engine.trie import Row, Text, plan
from llmquant.evaluators.lm_eval.evaluator import LmEval
from llmquant.evaluators.lm_eval.model import FittingLM
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.plugins.options import build
from llmquant.study.call import Call

VOCABULARY = 61


@st.composite
def branching_texts(draw):
    """Texts that continue a beginning of an earlier text, again and again: tries of any depth."""
    tokens = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=12)
    texts = [draw(tokens)]
    for _ in range(draw(st.integers(0, 9))):
        before = draw(st.sampled_from(texts))
        texts.append(before[: draw(st.integers(0, len(before)))] + draw(tokens))
    scored = [draw(st.integers(1, len(text))) for text in texts]
    return [Text(text, [3, *text[1:], 4][-count:]) for text, count in zip(texts, scored, strict=True)]


def seen_by(row: Row, slot: int) -> list[int]:
    return [row.tokens[k] for k in range(slot + 1) if slot < row.ends[k]]


@given(branching_texts(), st.integers(1, 40))
@settings(max_examples=300)
def test_each_target_is_predicted_once_from_exactly_its_own_text(texts, budget):
    """Whatever is kept, packed, cut or repeated: a token sees the tokens before it in its text, at their positions."""
    kept, found = [], set()
    for forward in plan(texts, budget).forwards:
        assert len(forward.rows) * max(len(row.tokens) for row in forward.rows) <= budget
        kept = kept[: forward.past]
        assert len(kept) == forward.past
        for row in forward.rows:
            for slot, targets in row.targets:
                for text, place, token in targets:
                    assert (text, place) not in found
                    found.add((text, place))
                    end = len(texts[text].tokens) - len(texts[text].targets) + place
                    assert [*kept, *seen_by(row, slot)] == list(texts[text].tokens[: end + 1])
                    assert row.positions[slot] == end
                    assert token == texts[text].targets[place]
        if forward.keep:
            kept += forward.rows[0].tokens
    assert found == {(number, place) for number, text in enumerate(texts) for place in range(len(text.targets))}


def test_tokens_are_counted_as_lm_eval_reads_them():
    """Continuations of one token share a text; longer ones repeat their context."""
    one = [Text([5, 6, 7], [8]), Text([5, 6, 7], [9])]
    assert (plan(one, 99).stock, plan(one, 99).distinct) == (3, 3)
    two = [Text([5, 6, 7, 8], [8, 1]), Text([5, 6, 7, 9], [9, 1])]
    assert (plan(two, 99).stock, plan(two, 99).distinct) == (8, 5)


def test_a_prefix_shared_by_all_is_read_once():
    """However many forward passes the texts need."""
    texts = [Text([*range(3, 53), number, number + 1], [9]) for number in range(60, 80)]
    read = [row.tokens for forward in plan(texts, 20).forwards for row in forward.rows]
    assert sum(map(len, read)) == plan(texts, 20).distinct == 50 + 40


@pytest.fixture(scope="module")
def tiny():
    """Return a function that builds a model of a type, 2 layers deep, with windows of 8 tokens where it has them."""
    made = {}

    def build_model(kind):
        if kind not in made:
            made[kind] = _tiny(kind)
        return made[kind]

    return build_model


def _tiny(kind):
    torch.set_num_threads(1)
    sizes = {
        **dict.fromkeys(("hidden_size", "n_embd", "word_embed_proj_dim"), 32),
        **dict.fromkeys(("intermediate_size", "ffn_dim"), 48),
        **dict.fromkeys(("num_hidden_layers", "n_layer"), 2),
        **dict.fromkeys(("num_attention_heads", "n_head"), 4),
        **dict.fromkeys(("max_position_embeddings", "n_positions"), 256),
        **dict.fromkeys(("num_local_experts", "num_experts"), 4),
        **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 16),
        **{
            "vocab_size": VOCABULARY,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "rotary_dim": 4,
            "num_experts_per_tok": 2,
        },
        **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sliding_window": 8},
    }
    plain = AutoConfig.for_model(kind).to_dict()
    known = {name: value for name, value in sizes.items() if plain.get(name) is not None or name.endswith("_id")}
    known |= {name: value for name, value in (("head_dim", 8), ("num_key_value_heads", 2)) if name in plain}
    rope = {"rope_parameters": plain["rope_parameters"]} if plain.get("rope_parameters") else {}
    kinds = ["sliding_attention", "full_attention"]
    layers = {"layer_types": kinds} if "sliding_attention" in (plain.get("layer_types") or ()) else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **known, **rope, **layers)).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:  # large enough that attention matters
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def assert_like_plain(model, texts, budget):
    found = {}
    reader = TreeReader(model)
    for forward in plan(texts, budget).forwards:
        found |= {each.target[:2]: each for each in reader.read(forward)}
    for number, text in enumerate(texts):
        with torch.no_grad():
            logits = model(torch.tensor([text.tokens])).logits[0, -len(text.targets) :].float()
        for place, token in enumerate(text.targets):
            each, expected = found[number, place], float(logits[place].log_softmax(-1)[token])
            assert each.logprob == pytest.approx(expected, rel=1e-4, abs=1e-4)
            others = float(logits[place].masked_fill(torch.arange(VOCABULARY) == token, -torch.inf).max())
            assert each.lead == pytest.approx(float(logits[place, token]) - others, abs=1e-3)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mistral", "gemma3_text"])
@given(texts=branching_texts(), budget=st.integers(4, 60))
@settings(max_examples=12)
def test_a_tree_of_any_depth_is_scored_like_its_texts_alone(tiny, kind, texts, budget):
    """With rotary or learned positions, one sliding window, and layers of two kinds."""
    assert_like_plain(tiny(kind), texts, budget)


TEXTS = [
    Text([*range(3, 33), *middle, *end], [*end, 7])
    for middle in ([40], [41, 42, 43], [41, 42, 44, 45, 46])
    for end in ([50], [50, 51, 52], [53, 54])
]


@pytest.mark.parametrize("kind", MODEL_TYPES.split())
def test_every_supported_type_is_scored_like_its_texts_alone(tiny, kind):
    """A prefix of thirty tokens, in parts, then packed branches."""
    assert not why_not(tiny(kind), row_independent=True)
    assert_like_plain(tiny(kind), TEXTS, 24)


REQUESTS = [
    ((f"context {number}", f"choice {choice}"), [*range(3, 60), *middle], [*end])
    for number, middle in enumerate(([100], [101, 102], [101, 103, 104]))
    for choice, end in enumerate(([200, 201, 202], [203], [204, 205, 201], [200, 206]))
]


def scores(subject, kind=TreeLM, requests=REQUESTS, **named):
    sizes = {"batch_size": 1, "shrink": True, "max_length": None, "progress": lambda done, total: None}
    model = kind(subject, **sizes, **named)
    model._documents = [texts[0] for texts, _, _ in requests]
    return model, model._loglikelihood_tokens(requests)


def assert_equal_scores(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected], rel=1e-4)


def one_level(nodes):
    """List a row in which a branch sees nothing but the first run and itself."""
    row = ROW(nodes)
    row.ends = [end if slot < 30 else slot + 1 for slot, end in enumerate(row.ends)]
    return row


def leaking(nodes):
    """List a row as if it were one text: every token sees the siblings before it."""
    row = ROW(nodes)
    row.ends = [len(row.tokens)] * len(row.tokens)
    return row


def shifted(nodes):
    """List a row with the positions of a packed sequence."""
    row = ROW(nodes)
    row.positions = list(range(row.positions[0], row.positions[0] + len(row.positions)))
    return row


ROW = trie._row


@pytest.mark.parametrize("fault", [one_level, leaking, shifted])
def test_a_wrong_mask_or_position_is_noticed_and_lm_eval_scores_instead(subject, monkeypatch, fault):
    """Random requests are scored both ways."""
    monkeypatch.setattr(trie, "_row", fault)
    model, found = scores(subject, verify=len(REQUESTS), seed=0)
    assert "differed from lm-eval's by" in model.report.reason
    assert_equal_scores(found, scores(subject, FittingLM)[1])


def test_a_lost_key_is_noticed_and_lm_eval_scores_instead(subject, monkeypatch):
    """The keys and values of one kept token are zero."""
    monkeypatch.setattr(engine_lm, "_BUDGET", {"cpu": 16})
    monkeypatch.setattr(engine_forward, "DynamicCache", _forgetful)
    model, found = scores(subject, verify=len(REQUESTS), seed=0)
    assert "differed from lm-eval's by" in model.report.reason
    assert_equal_scores(found, scores(subject, FittingLM)[1])


def _forgetful(kept=()):
    from transformers import DynamicCache

    for keys, values in kept:
        keys[:, :, 3], values[:, :, 3] = 0, 0
    return DynamicCache(kept) if kept else DynamicCache()


def test_little_free_memory_makes_forward_passes_smaller(subject, monkeypatch):
    """The logits of a forward pass take at most a quarter of it."""
    logits = subject.module.config.vocab_size * 8
    monkeypatch.setattr(engine_lm, "free_bytes", lambda device: 4 * 100 * logits)
    model, found = scores(subject, verify=0, seed=0)
    assert model._budget == 100
    assert_equal_scores(found, scores(subject, FittingLM)[1])


@pytest.mark.parametrize("budget", [16, 512])
def test_scores_are_those_of_lm_eval_without_faults(subject, monkeypatch, budget):
    """The same requests that show the faults above; and what was read is counted."""
    monkeypatch.setattr(engine_lm, "_BUDGET", {"cpu": budget})
    model, found = scores(subject, verify=4, seed=0)
    assert_equal_scores(found, scores(subject, FittingLM)[1])
    report = model.report
    assert (report.reason, report.requests, report.verified) == ("", 12, 4)
    assert report.distinct <= report.read < report.stock / 5
    assert 0 <= report.difference < 1e-4
    assert report.epsilon == pytest.approx(1e-4, rel=3)


def test_close_decisions_are_left_to_lm_eval(subject, monkeypatch):
    """Below epsilon rounding may choose: with a large epsilon everything is run again, with none nothing."""
    expected = scores(subject, FittingLM)[1]
    for epsilon, again in ((1e9, 12), (0.0, 0)):
        monkeypatch.setattr(engine_lm, "_ROUNDING", {torch.float32: (epsilon, 1e-3)})
        model, found = scores(subject, verify=0, seed=0)
        assert model.report.again == again
        assert (found == expected) is bool(again)


def test_equal_choices_are_a_close_decision(subject):
    """Their order decides, so that both are run again; the others are not."""
    twice = [*REQUESTS[:4], *(((texts[0], texts[1]), *ids) for texts, *ids in REQUESTS[:1])]
    model, _ = scores(subject, requests=twice, verify=0, seed=0)
    best = max(range(5), key=lambda index: scores(subject, FittingLM, twice)[1][index][0])
    assert model.report.again == (2 if best in {0, 4} else 0)


def test_a_forward_pass_that_does_not_fit_is_made_smaller(subject, monkeypatch):
    """Texts that were scored already are not read again."""
    read, sizes = TreeReader.read, []

    def small_memory(self, forward):
        size = sum(len(row.tokens) for row in forward.rows)
        if size > 40:
            raise torch.OutOfMemoryError("no memory")
        sizes.append(size)
        yield from read(self, forward)

    monkeypatch.setattr(TreeReader, "read", small_memory)
    model, found = scores(subject, verify=0, seed=0)
    assert_equal_scores(found, scores(subject, FittingLM)[1])
    assert model._budget == 32


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_type": "mamba"}, "type mamba"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"attention_chunk_size": 8}, "in chunks"),
        ({"use_bidirectional_attention": True}, "bidirectional"),
        ({"_attn_implementation": "flash_attention_2"}, "flash_attention_2"),
    ],
)
def test_models_without_support_are_named_with_the_reason(tiny, monkeypatch, changes, reason):
    """By their configuration, before anything is read."""
    model = tiny("llama")
    for name, value in changes.items():
        monkeypatch.setattr(type(model.config), name, value, raising=False)
        monkeypatch.delitem(model.config.__dict__, name, raising=False)
    assert reason in why_not(model, row_independent=True)


def test_coupled_rows_keep_lm_evals_forward_passes(subject, context, choices):
    """Their scores depend on the batch; a note says so, and the details say what computed the scores."""
    found = evaluate(choices, replace(subject, row_independent=False), context())
    assert found.details["engine"] == "stock"
    assert "documents in a batch affect each other" in found.details["engine_reason"]
    assert any("documents in a batch affect each other" in note for note in found.details["notes"])
    assert not evaluate(choices, subject, context()).details["notes"]


STORIES = [
    ("Mina kept a blue kite in the shed.", "What color was the kite?", "blue"),
    ("The ferry left at nine with forty goats.", "When did the ferry leave?", "at nine"),
    ("Ada baked two loaves and gave one away.", "How many loaves?", "two"),
    ("A bell hung over the mill.", "Where did the bell hang?", "over the mill"),
    ("Old Per had three dogs.", "How many dogs?", "three"),
]


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Write rows and tasks of each kind."""
    monkeypatch.setenv("LLMQUANT_CACHE", str(tmp_path / "cache"))

    def write(name, text):
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    def task(kind, metric, target):
        rows = [dict(zip(("story", "question", "answer"), story, strict=True)) for story in STORIES]
        data = write("own.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        text = f"task: own_{kind}\noutput_type: {kind}\ndataset_path: json\ntest_split: test\n"
        text += "dataset_kwargs: {data_files: {test: own.jsonl}}\n" + target
        text += f"metric_list: [{{metric: {metric}}}]\n"
        return f"lm_eval({write(kind + '.yaml', text)}, data={data})"

    choice = [
        {
            "id": str(number),
            "question": question,
            "choices": {"text": ["salt", "the moon", answer, "a wooden box"], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[number % 4],
        }
        for number, (_, question, answer) in enumerate(STORIES)
    ]
    data = write("choice.jsonl", "".join(json.dumps(row) + "\n" for row in choice))
    words = 'doc_to_text: "{{story}} {{question}}"\ndoc_to_target: "{{answer}}"\n'
    return {
        "choices": f"lm_eval(arc_easy, data={data}, num_fewshot=2)",
        "loglikelihood": task("loglikelihood", "acc", words),
        "rolling": task("loglikelihood_rolling", "word_perplexity", 'doc_to_text: ""\ndoc_to_target: "{{story}}"\n'),
    }


@pytest.fixture
def choices(files):
    return files["choices"]


def evaluate(text, subject, ctx):
    (found,) = LmEval(build(LmEvalOptions, Call.parse(text))).evaluate(subject, ctx)
    return found


@pytest.mark.parametrize("kind", ["choices", "loglikelihood", "rolling"])
def test_every_kind_of_task_gets_the_scores_of_lm_eval(subject, context, files, kind):
    """Each document's scores, and the same prompts."""
    call = files[kind].removesuffix(")")
    tree, stock = (evaluate(f"{call}, engine={name})", subject, context()) for name in ("tree", "stock"))
    assert (tree.details["engine"], stock.details["engine"]) == ("tree", "stock")
    for one, other in zip(tree.samples, stock.samples, strict=True):
        assert (one.document, one.prompt) == (other.document, other.prompt)
        assert one.scores == pytest.approx(other.scores, rel=1e-4)
    margins = [sample.decision_margin for sample in tree.samples]
    assert tree.details["least_margin"] == (None if kind == "rolling" else min(margins))
    assert {sample.decision_margin for sample in stock.samples} == {None}
    for one, other in zip(tree.measurements, stock.measurements, strict=True):
        assert math.isclose(one.value, other.value, rel_tol=1e-4)
