"""Settings that the model decides for all of its variants (tokenizer, special tokens, end of generation).

Other entries of a checkpoint's ``generation_config.json`` are not used: the evaluator decides how text is generated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from llmquant.errors import UnsupportedError
from llmquant.models.causal import FUNCTION_SETTINGS
from llmquant.models.folder import read_json
from llmquant.study.counting import counted

# These have more than one spelling in a file, and one once the configuration is loaded.
_FUNCTION = (*FUNCTION_SETTINGS, "rope_parameters", "rope_scaling", "layer_types")
# Settings of the file, not of the function, and settings without effect on a forward pass in evaluation mode.
_BOOKKEEPING = {"_name_or_path", "transformers_version", "architectures", "dtype", "quantization_config", "use_cache"}
_PROBES = (
    "The weather in the mountains changes quickly, so",
    " leading space,  two spaces,\ttab\n\nand lines \n",
    "1234567890 3.14159 2019-05-01 1,000,000",
    "Grüße aus Zürich, 你好世界, здравствуй, \u202fnaïve 🙂👩‍🔬",
    "decomposed: Zu\u0308rich, cafe\u0301; composed: Zürich, café",
    "def f(x):\n    return x**2 != 'don''t'  # HTTP/1.1 <b>&amp;</b>",
    "Question: why? Answer: because. " * 40,
)
_CHATS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}, {"role": "user", "content": "Bye"}],
)


def settle(
    module: Any, home: Path, tokenizer: Any, *, trust_remote_code: bool
) -> None:  # Any: transformers has no types
    """Let a loaded model generate as the evaluator requests, without the checkpoint's own generation settings.

    Args:
        home: the folder of the model itself, which decides the tokens that end a text; if the folder has none, the
            tokens of `tokenizer` are used.

    Raises:
        ModelError: if that folder's ``generation_config.json`` is damaged.
    """
    path = home / "generation_config.json"
    if path.is_file():
        said = read_json(path)
    else:
        config = AutoConfig.from_pretrained(home, trust_remote_code=trust_remote_code)
        said = GenerationConfig.from_model_config(config).to_dict()
    bos, eos = said.get("bos_token_id"), said.get("eos_token_id")
    module.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id if bos is None else bos,
        eos_token_id=tokenizer.eos_token_id if eos is None else eos,
        pad_token_id=tokenizer.pad_token_id,
    )
    # Training scripts leave these settings behind; they change the result and the cost of a forward pass.
    for config in (module.config, module.config.get_text_config(decoder=True)):
        config.return_dict, config.output_attentions, config.output_hidden_states = True, False, False


def config_differences(ours: Any, theirs: Any, name: str, model: str) -> list[str]:  # Any: transformers' configurations
    """List the settings of a checkpoint that differ from the settings of the model it was made from.

    Args:
        ours: the model's configuration.
        theirs: the configuration of the checkpoint `name`.

    Raises:
        UnsupportedError: if the checkpoint computes another function.
    """
    mine, other = (config.get_text_config(decoder=True).to_dict() for config in (ours, theirs))
    differ = {
        key: f"its {key} is {other[key]}, not {mine[key]}"
        for key in mine.keys() & other.keys() - _BOOKKEEPING
        if mine[key] != other[key]
    }
    wrong = [differ[key] for key in _FUNCTION if key in differ]
    if wrong:
        raise UnsupportedError(
            f"{name} does not compute what {model} computes: {'; '.join(wrong)}",
            hint="Use the model that the checkpoint was made from.",
        )
    return [differ[key] for key in sorted(differ)]


def tokenizer_differences(ours: Any, theirs: Any, name: str, model: str) -> list[str]:  # Any: transformers' tokenizers
    """List how a checkpoint's tokenizer differs from the tokenizer of the model it was made from.

    Raises:
        UnsupportedError: if token ids mean other words: the checkpoint was made from another model.
    """
    added = ours.added_tokens_decoder.keys() | theirs.added_tokens_decoder.keys()
    words, others = ({i: word for word, i in t.get_vocab().items() if i not in added} for t in (ours, theirs))
    moved = sorted(i for i in words.keys() & others.keys() if words[i] != others[i])
    if moved:
        first = moved[0]
        raise UnsupportedError(
            f"{len(moved)} token ids of {name} mean other words than in {model}, first {first}: "
            f"{others[first]!r}, not {words[first]!r}",
            hint="Use the model that the checkpoint was made from.",
        )
    found = []
    if len(words) != len(others):
        found.append(f"its tokenizer has {counted(len(others), 'word')}, not {len(words)}")
    if any(
        ours(t, add_special_tokens=False).input_ids != theirs(t, add_special_tokens=False).input_ids for t in _PROBES
    ):
        found.append("its tokenizer divides text into other tokens")
    elif any(ours(text).input_ids != theirs(text).input_ids for text in _PROBES):
        found.append("its tokenizer adds other special tokens to a text")
    for token in ("bos_token", "eos_token"):
        mine, other = getattr(ours, token), getattr(theirs, token)
        if mine != other:
            found.append(f"its tokenizer's {token} is {other!r}, not {mine!r}")
    if any(_rendered(ours, chat) != _rendered(theirs, chat) for chat in _CHATS):
        found.append("it has another chat template")
    return found


def _rendered(tokenizer: Any, chat: list[dict[str, str]]) -> str | None:  # Any: as above
    """Render a conversation with the chat template; ``None`` if the template is missing or refuses the conversation."""
    if not tokenizer.chat_template:
        return None
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
    except Exception:  # a template may raise anything
        return None
