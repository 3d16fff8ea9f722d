"""What the model reads and answers under lm-eval: token ids, cut prompts, reasoning, the float32 log-softmax."""

from __future__ import annotations

import functools
import json
from dataclasses import replace

import pytest
import torch

from llmquant.errors import OptionError, RequestErrors, RunError, UnsupportedError
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.plugins.options import build
from llmquant.results.report.summary import summary
from llmquant.results.rows import rows
from llmquant.study.call import Call
from made_up import BASELINE, NO_FILES, MadeUpStudy, completed, experiment, scored

pytestmark = pytest.mark.usefixtures("task_index")

QUESTIONS = [{"q": "How many sacks were sold? " * (1 + 9 * long), "a": str(long)} for long in (0, 0, 1)]
GENERATION = """
task: asked
dataset_path: json
test_split: test
output_type: generate_until
doc_to_text: "Question: {{q}}Answer:"
doc_to_target: "{{a}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 16}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOICE = """
task: chosen
dataset_path: json
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{q}}Answer:"
doc_to_choice: ["yes", "no"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: rolled
dataset_path: json
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{q}}"
metric_list: [{metric: bits_per_byte}]
"""


@pytest.fixture
def write(tmp_path):
    """Return a function that writes the call of a task with its rows."""

    def run(task, **given):
        (tmp_path / "task.yaml").write_text(task)
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
        return Call("lm_eval", (str(tmp_path / "task.yaml"),), {"data": str(tmp_path / "rows.jsonl"), **given})

    return run


@pytest.fixture
def evaluate(subject, context, write):
    """Return a function that evaluates a task on the tiny model, or on another subject."""
    from llmquant.evaluators.lm_eval.evaluator import LmEval

    def run(task, other=None, **given):
        (result,) = LmEval(build(LmEvalOptions, write(task, **given))).evaluate(other or subject, context())
        return result

    return run


@pytest.fixture
def says(subject, monkeypatch):
    """Return a function that lets the model say a text, whatever lm-eval asks, and then its last token for ever."""

    def run(text):
        ids = subject.tokenizer(text, add_special_tokens=False).input_ids
        start = []
        generate, forward = subject.module.generate, subject.module.forward

        def remember(**given):
            start.append(given["input_ids"].shape[1])
            return generate(**given)

        @functools.wraps(forward)
        def say(input_ids=None, **given):
            output = forward(input_ids=input_ids, **given)
            place = given["past_key_values"].get_seq_length() - start[-1]
            output.logits[:, -1] = -1e4
            output.logits[:, -1, ids[min(place, len(ids) - 1)]] = 0.0
            return output

        monkeypatch.setattr(subject.module, "generate", remember)
        monkeypatch.setattr(subject.module, "forward", say)

    return run


@pytest.mark.parametrize(("task", "cut_to"), [(GENERATION, 48), (CHOICE, 64)], ids=["generation", "choice"])
def test_prompts_that_are_cut_are_counted(evaluate, task, cut_to):
    """lm-eval drops their first tokens, the BOS with them: the table says how many and what is left."""
    result = evaluate(task, max_length=64)
    assert result.details["prompts_cut"] == 1
    assert result.details["notes"] == [f"1 of 3 prompts were cut to {cut_to} tokens: the beginning is missing"]


@pytest.mark.parametrize("task", [GENERATION, CHOICE, ROLLING], ids=["generation", "choice", "rolling"])
def test_prompts_that_fit_are_not_said_to_be_cut(evaluate, task):
    """Texts that are scored in windows lose nothing."""
    result = evaluate(task, **({"max_length": 16} if task == ROLLING else {}))
    assert (result.details["prompts_cut"], result.details["notes"]) == (0, [])


def test_an_answer_longer_than_the_context_is_refused(evaluate):
    """The message names the option that fixes it."""
    with pytest.raises(RunError, match=r"answers of 16 tokens, but prompt and answer have 16\n.*max_gen_toks"):
        evaluate(GENERATION, max_length=16)


def test_documents_pair_by_the_tokens_that_were_read(evaluate, subject):
    """The same text with and without a BOS is not the same prompt."""
    from tokenizers.processors import TemplateProcessing

    plain = evaluate(CHOICE)
    other = replace(subject, tokenizer=type(subject.tokenizer).from_pretrained(subject.path))
    other.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    lead = evaluate(CHOICE, other)
    assert [sample.document for sample in plain.samples] == [sample.document for sample in lead.samples]
    assert not {sample.prompt for sample in plain.samples} & {sample.prompt for sample in lead.samples}
    assert [sample.prompt for sample in plain.samples] == [sample.prompt for sample in evaluate(CHOICE).samples]


def test_log_likelihoods_are_taken_in_float32(subject, evaluate):
    """In bfloat16 they would be multiples of a quarter where they are large, and choices would tie."""
    import torch
    from lm_eval.api.instance import Instance

    from llmquant.evaluators.lm_eval.model import FittingLM

    subject.module.to(torch.bfloat16)
    model = FittingLM(subject, batch_size=1, shrink=False, max_length=None, progress=lambda done, total: None)
    text, answer = "Question: How many?", " nine sacks"
    ((found, _),) = model.loglikelihood([Instance("loglikelihood", {}, (text, answer), 0)])
    ids = subject.tokenizer(text + answer, return_tensors="pt").input_ids
    count = ids.shape[1] - len(subject.tokenizer(text).input_ids)
    with torch.no_grad():
        logits = subject.module(ids[:, :-1]).logits.float()
    exact = logits.log_softmax(-1)[0, -count:].gather(1, ids[0, -count:, None]).sum()
    assert found == pytest.approx(float(exact), abs=1e-4)
    assert evaluate(CHOICE).details["log_softmax"] == "float32"


def test_only_what_follows_the_reasoning_is_the_answer(evaluate, says):
    """Stop sequences inside it, and the line break before the answer, end nothing."""
    says("x\ny</think>\n42\nnext")
    result = evaluate(GENERATION, engine="stock", think_end_token="</think>", gen_kwargs={"max_gen_toks": 64})
    assert [sample.answer for sample in result.samples] == ["42"] * 3
    assert result.details["notes"] == []


def test_a_special_token_may_end_the_reasoning(evaluate, says):
    """It is not in the decoded text, and found all the same."""
    says("x\ny<|endoftext|>42\nnext")
    result = evaluate(GENERATION, engine="stock", think_end_token="<|endoftext|>", gen_kwargs={"max_gen_toks": 64})
    assert [sample.answer for sample in result.samples] == ["42"] * 3


def test_reasoning_without_an_end_is_counted(evaluate, says):
    """Such answers are scored as they are, and the table says how many."""
    says("thinking and thinking")
    result = evaluate(GENERATION, engine="stock", think_end_token="</think>")
    assert result.details["notes"] == ["3 answers have no </think>: these answers are scored unchanged"]


def test_reasoning_that_is_scored_is_counted(evaluate, says):
    """Whether its template can turn it off or not."""
    says("<think>x</think> 42")
    notes = evaluate(GENERATION, engine="stock", gen_kwargs={"max_gen_toks": 64}).details["notes"]
    assert notes == ["3 answers contain reasoning, which is scored with them: use think_end_token"]


@pytest.mark.parametrize("name", ["max_gen_toks", "max_new_tokens", "max_tokens"])
def test_the_length_of_answers_is_what_was_asked_for(evaluate, says, name):
    """Under every name that lm-eval knows it by, also where the task gives one."""
    says("sacks of barley on Monday")
    (short, *_) = evaluate(GENERATION, engine="stock", gen_kwargs={name: 1}).samples
    (long, *_) = evaluate(GENERATION, engine="stock", gen_kwargs={name: 3}).samples
    assert len(short.answer) < len(long.answer)


def test_an_empty_prompt_is_refused(evaluate):
    """Where no token stands in front of a text, there is nothing to continue."""
    with pytest.raises(RunError, match="a prompt is empty"):
        evaluate(GENERATION.replace("Question: {{q}}Answer:", ""))


@pytest.mark.parametrize("template", ["{{ messages[0]['content'] + 1 }}", {"rag": "{{ messages[0]['content'] }}"}])
def test_a_chat_template_that_fails_is_refused(evaluate, subject, template):
    """Also where there are several and none is the default."""
    subject.tokenizer.chat_template = template
    with pytest.raises(RunError, match=r"the chat template of .* fails on a question: "):
        evaluate(GENERATION, apply_chat_template=True)


@pytest.mark.parametrize(
    "start", ["", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"]
)
def test_an_instruction_that_the_template_leaves_out_is_said(evaluate, subject, start):
    """lm-eval leaves it out where the template refuses it."""
    subject.tokenizer.chat_template = start + "{{ messages[-1]['content'] }}"
    notes = evaluate(GENERATION, apply_chat_template=True, system_instruction="Be brief.").details["notes"]
    assert notes == ["the chat template does not support a system message: the system instruction is omitted"]


@pytest.fixture
def seen(monkeypatch):
    """Return the prompts that the model was asked, as they come."""
    from llmquant.evaluators.lm_eval import model as lm_eval_model

    found = []
    note = lm_eval_model.FittingLM.note_prompts
    monkeypatch.setattr(
        lm_eval_model.FittingLM,
        "note_prompts",
        lambda self, requests: [found.extend(r.args[0] for r in requests), note(self, requests)][1],
    )
    return found


THINKING = "{% if NAME is not defined or NAME %}think {% endif %}{{ messages[-1]['content'] }}"


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
@pytest.mark.parametrize(("chosen", "begins"), [(None, "think Q"), (True, "think Q"), (False, "Q")])
def test_reasoning_is_turned_on_and_off(evaluate, subject, seen, name, chosen, begins):
    """The chat template gets what was chosen; where it could choose and nobody did, the table says so."""
    subject.tokenizer.chat_template = THINKING.replace("NAME", name)
    given = {} if chosen is None else {"enable_thinking": chosen, "think_end_token": "</think>"}
    result = evaluate(GENERATION, apply_chat_template=True, **given)
    assert len(seen) == 3
    assert all(prompt.startswith(begins) for prompt in seen)
    assert any("enable_thinking is not set" in note for note in result.details["notes"]) == (chosen is None)


def test_a_template_that_knows_no_choice_is_not_mentioned(evaluate, subject):
    """Reasoning that stands in earlier messages is no switch."""
    subject.tokenizer.chat_template = (
        "{% for message in messages %}{% if message.thinking or 'thinking' in message %}x{% endif %}"
        "{{ message['content'] }}{% endfor %} no thinking"
    )
    assert evaluate(GENERATION, apply_chat_template=True).details["notes"] == []


def test_a_chat_template_writes_the_same_date_every_day(evaluate, subject, seen):
    """Else runs of two days would have no prompt in common."""
    subject.tokenizer.chat_template = "{{ strftime_now('%d %b %Y') }} {{ messages[-1]['content'] }}"
    evaluate(GENERATION, apply_chat_template=True)
    assert len(seen) == 3
    assert all(prompt.startswith("26 Jul 2024 Question") for prompt in seen)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"enable_thinking": False}, "apply_chat_template is false"),
        ({"enable_thinking": True, "apply_chat_template": True}, "needs think_end_token"),
    ],
)
def test_options_of_reasoning_that_miss_another_are_refused(write, given, words):
    """Before anything is loaded."""
    with pytest.raises((OptionError, RequestErrors), match=words):
        build(LmEvalOptions, write(GENERATION, **given))


def test_reasoning_before_given_answers_is_refused(write):
    """Nothing is generated there."""
    given = {"enable_thinking": True, "apply_chat_template": True, "think_end_token": "</think>"}
    with pytest.raises(UnsupportedError, match="scores given answers"):
        build(LmEvalOptions, write(CHOICE, **given)).check(NO_FILES, "cpu")


def test_the_table_says_what_the_evaluator_noted():
    """Once for all variants that it is true of."""
    study = MadeUpStudy()
    for label in (BASELINE, "nf4"):
        mean, samples = scored("coqa", "f1", [1.0, 0.0])
        run = completed(experiment(label, "lm_eval(coqa)"), mean)
        said = {"coqa": {"notes": ["1 of 2 prompts were cut to 64 tokens: the beginning is missing"]}}
        study.add(replace(run, details=said), {"coqa": samples})
    found = rows(study.record, study.runs, study.read)
    (table,) = [table for table in summary(found, study.record) if table.title == "Model and variants"]
    said = [note for note in table.footnotes if "prompts were cut" in note]
    assert said == [f"{BASELINE}, nf4: coqa: 1 of 2 prompts were cut to 64 tokens: the beginning is missing."]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_generated_tokens_are_those_up_to_the_stop(evaluate, subject, batch_size):
    """Each count is what generating alone gives, though in a batch an answer continues until all have ended."""
    import torch

    def alone(question):
        ids = torch.tensor([subject.tokenizer(f"Question: {question['q']}Answer:", add_special_tokens=False).input_ids])
        written = subject.module.generate(ids, max_new_tokens=16, do_sample=False)[0, ids.shape[1] :]
        return [subject.tokenizer.decode(token) for token in written]

    short, again, long = map(alone, QUESTIONS)
    assert short == again
    stop = next(text for text in short[3:] if text not in "".join(long))
    samples = evaluate(GENERATION.replace("\\n", stop), batch_size=batch_size).samples
    expected = short.index(stop) + 1
    assert [(each.generated, each.cut) for each in samples] == [(expected, False), (expected, False), (16, True)]


@pytest.mark.parametrize(("end", "extra"), [("\n", 1), ("<|im_end|>", 0)], ids=["stop", "end"])
def test_an_answer_that_ends_is_not_cut(evaluate, subject, says, end, extra):
    """Its tokens are the tokenizer's own, with the stop string and without the end token."""
    says(f" sold twelve{end}")
    sample = evaluate(GENERATION, engine="stock").samples[0]
    count = len(subject.tokenizer(" sold twelve", add_special_tokens=False).input_ids) + extra
    assert (sample.generated, sample.cut, sample.looping) == (count, False, False)


def test_an_answer_without_an_end_is_cut_and_its_loop_is_seen(evaluate, says):
    """The last token is repeated until the limit."""
    says(" sold twelve")
    sample = evaluate(GENERATION, engine="stock", gen_kwargs={"max_gen_toks": 64}).samples[0]
    assert (sample.generated, sample.cut, sample.looping) == (64, True, True)


def test_an_answer_is_not_stopped_in_its_reasoning(evaluate, subject, says):
    """Reasoning counts as generated; only a stop string after it ends the answer."""
    text = "first\nthen\n</think> twelve\n"
    says(text)
    sample = evaluate(GENERATION, engine="stock", think_end_token="</think>", gen_kwargs={"max_gen_toks": 64}).samples[
        0
    ]
    assert (sample.generated, sample.cut) == (len(subject.tokenizer(text, add_special_tokens=False).input_ids), False)


@pytest.mark.parametrize("engine", ["tree", "stock"])
@pytest.mark.parametrize("task", [GENERATION, CHOICE, ROLLING], ids=["generation", "choice", "rolling"])
def test_nan_in_a_long_prompt_is_a_failure(evaluate, subject, monkeypatch, engine, task):
    """The largest of NaN is the first, so that such answers would have scores."""
    forward = subject.module.model.forward

    def overflowing(**given):
        output = forward(**given)
        output.last_hidden_state[:, 50:] = torch.nan
        return output

    monkeypatch.setattr(subject.module.model, "forward", overflowing)
    with pytest.raises(RunError, match="returns NaN"):
        evaluate(task, engine=engine, verify=0)


def test_scored_choices_generate_nothing(evaluate):
    """Where the model only scores given answers, there is nothing to count."""
    assert {(sample.generated, sample.cut, sample.looping) for sample in evaluate(CHOICE).samples} == {(None,) * 3}


@pytest.mark.parametrize("task", [GENERATION, CHOICE], ids=["generation", "choice"])
def test_a_result_has_the_texts_of_its_prompts(evaluate, task):
    """One text per document, whatever the number of its choices."""
    result = evaluate(task)
    assert [result.prompts[sample.prompt] for sample in result.samples] == [
        f"Question: {row['q']}Answer:" for row in QUESTIONS
    ]
