"""Check that a chat template writes a question, and opens the answer, before anything is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from llmquant.errors import LlmquantError, UnsupportedError
from llmquant.models.folder import read_json

if TYPE_CHECKING:
    from llmquant.evaluators.lm_eval.options import LmEvalOptions
    from llmquant.models.info import ModelInfo

_QUESTION, _ANSWER = "How many ships passed?", "Seventeen."
_HINT = "Omit apply_chat_template, or use a chat model."
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")

Render = Callable[[list[dict[str, str]], bool], str]


def check_files(model: ModelInfo, options: LmEvalOptions) -> None:
    """Check a chat template in a model's small files; what cannot be read here is left to the worker.

    Raises:
        UnsupportedError: if there is no template, or as `check_template`.
    """
    offline = model.kind == "hub" and bool(model.note)  # the Hub was not asked
    if model.kind not in ("folder", "hub") or offline:
        return
    file, path = model.file("chat_template.jinja"), model.file("tokenizer_config.json")
    tokenizer = {} if path is None else read_json(path)
    template = tokenizer.get("chat_template") if file is None else file.read_text(encoding="utf-8", errors="replace")
    if isinstance(template, list):
        template = {each.get("name"): each.get("template") for each in template}.get("default")
    if not template and (file is not None or model.file("chat_template.json") is None):
        raise UnsupportedError(f"{model.source} has no chat template", hint=_HINT)
    if not isinstance(template, str):
        return
    text = template
    special = {name: token for name in _SPECIAL if (token := _token(tokenizer.get(name))) is not None}

    def render(chat: list[dict[str, str]], opens: bool) -> str:
        from transformers.utils.chat_template_utils import render_jinja_template  # without torch

        settings = settings_of(options)
        found, _ = render_jinja_template([chat], chat_template=text, add_generation_prompt=opens, **special, **settings)
        return str(found[0])

    check_template(model.source, render, options.system_instruction, UnsupportedError)


def settings_of(options: LmEvalOptions) -> dict[str, bool]:
    """Return the variables of the template; Granite's and DeepSeek's have another name for the same switch."""
    on = options.enable_thinking
    return {} if on is None else {"enable_thinking": on, "thinking": on}


def check_template(source: str, render: Render, system: str | None, failure: type[LlmquantError]) -> None:
    """Write a question with a template, and with an answer.

    Args:
        render: writes a conversation, and opens the answer if its second argument is true.
        system: the system message, which lm-eval leaves out if the template fails with it.
        failure: class of the error.

    Raises:
        failure: if the template fails, leaves the question out, or does not open the answer.
    """
    chat = [{"role": "user", "content": _QUESTION}]
    try:
        try:
            asked = render([{"role": "system", "content": system}, *chat] if system else chat, True)
        except Exception:  # a template may raise anything
            asked = render(chat, True)
    except Exception as error:  # as above
        raise failure(
            f"the chat template of {source} fails on a question: {error or type(error).__name__}", hint=_HINT
        ) from error
    if _QUESTION not in asked:
        raise failure(f"the chat template of {source} leaves the question out: it writes {asked[:80]!r}", hint=_HINT)
    try:
        bare, answered = render(chat, False), render([*chat, {"role": "assistant", "content": _ANSWER}], False)
    except Exception:  # a template may raise anything; a conversation that ends with an answer is not needed
        return
    between = answered.removeprefix(bare).partition(_ANSWER)[0].strip()
    if asked == bare and answered.startswith(bare) and between:
        raise failure(
            f"the chat template of {source} does not open the answer: it writes {between!r} before an answer, and "
            "nothing after a question",
            hint="Write {% if add_generation_prompt %} and this text at its end, or omit apply_chat_template.",
        )


def _token(value: Any) -> str | None:  # Any: a text, or an object with the token's properties
    content = value.get("content") if isinstance(value, Mapping) else value
    return content if isinstance(content, str) else None
