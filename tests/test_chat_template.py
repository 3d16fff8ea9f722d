"""A chat template is tried on a question when the study is planned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import llmquant as lq
from llmquant.evaluators.lm_eval.chat import check_files
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.models.info import ModelInfo
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}"
    "{% endfor %}"
)
THINKS = TURNS.replace("\n{{ m.c", "\n{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.c") + OPENS
SYSTEM_FIRST = "{{ raise_exception('no system') if messages[0].role != 'system' }}" + TURNS + OPENS


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> ModelInfo:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    return inspect_subject(ModelRequest(str(folder)), registry(), Cache(tmp_path / "cache"))


def check(model: ModelInfo, template: str | None, options: LmEvalOptions | None = None) -> None:
    assert model.location is not None
    file = model.location / "chat_template.jinja"
    file.unlink(missing_ok=True)
    if template is not None:
        file.write_text(template)
    check_files(model, options or LmEvalOptions(("coqa",)))


@pytest.mark.parametrize("template", [TURNS + OPENS, MISTRAL, THINKS])
def test_a_template_that_opens_the_answer_is_taken(model: ModelInfo, template: str):
    """Also one whose question ends where the answer begins, and one that writes an empty thought before answers."""
    check(model, template)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "has no chat template"),
        ("", "has no chat template"),
        ("{% for m in messages %}{{ m.content }", "fails on a question: unexpected '}'"),
        (SYSTEM_FIRST, "fails on a question: no system"),
        ("{{ one.two }}", "fails on a question: 'one' is undefined"),
        ("{% for m in messages %}{{ m.content[0].text }}{% endfor %}", "leaves the question out: it writes ''"),
        (TURNS, r"does not open the answer: it writes '<\|im_start\|>assistant' before an answer"),
    ],
)
def test_a_template_that_asks_nothing_is_refused(model: ModelInfo, template: str | None, said: str):
    """The reason is the template's own, or names what is missing."""
    with pytest.raises(lq.errors.UnsupportedError, match=said):
        check(model, template)


def test_a_system_message_is_tried_as_well(model: ModelInfo):
    """As in lm-eval, a template that refuses it is used without it."""
    options = LmEvalOptions(("coqa",), apply_chat_template=True, system_instruction="Be brief.")
    check(model, SYSTEM_FIRST, options)
    check(model, MISTRAL, options)


def test_a_template_may_be_among_the_tokenizers_settings(model: ModelInfo):
    """As one text, or as a list of which the default is used."""
    assert model.location is not None
    path = model.location / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    for template in (TURNS + OPENS, [{"name": "default", "template": TURNS + OPENS}]):
        path.write_text(json.dumps({**settings, "chat_template": template}))
        check(model, None)
    path.write_text(json.dumps({**settings, "chat_template": TURNS}))
    with pytest.raises(lq.errors.UnsupportedError, match="does not open"):
        check(model, None)
