"""Check from a checkpoint's files that it can be scored as a causal language model, before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import ModelError, UnsupportedError
from llmquant.models.folder import read_json
from llmquant.models.headers import stored_bytes
from llmquant.models.loadable import check_type
from llmquant.study.counting import counted

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

# Families that transformers also runs as causal models, which is right only with `is_decoder`.
_DECODERS_IF_TOLD = re.compile(
    r"(big_bird|bigbird_pegasus|camembert|data2vec-text|electra|ernie|marian|mvp|pegasus|prophetnet|reformer|roc_bert"
    r"|roformer|xmod|(m|pl)?bart|(mega|megatron-|rem)?bert(-generation)?|blenderbot(-small)?"
    r"|(xlm-)?roberta(-xl|-prelayernorm)?)"
)
_OTHER_TASKS = re.compile(
    r"For(MaskedLM|PreTraining|SequenceClassification|TokenClassification|QuestionAnswering|MultipleChoice"
    r"|NextSentencePrediction)$|EncoderModel$"
)
# A checkpoint whose configuration differs in one of these settings computes another function.
FUNCTION_SETTINGS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "hidden_act",
    "rms_norm_eps",
    "layer_norm_eps",
    "rope_theta",
    "max_position_embeddings",
    "sliding_window",
)
_INSTEAD = 'Use a decoder such as Llama or GPT-2. As an embedder, the model is "sentence_transformers(FOLDER)".'
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
_LAYER = re.compile(r"(.*?)\.(\d+)\.")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def check_causal(info: ModelInfo) -> None:
    """Refuse checkpoints that are not causal language models, or whose files contradict each other.

    Raises:
        UnsupportedError: for masked and encoder-decoder models, models whose tokens see later tokens, and model types
            without a causal language model in transformers.
        ModelError: as `check_type`; also if layers are missing or left over, token ids have no row in the
            embedding, or a tied head is stored separately.
    """
    _refuse_other_tasks(info)
    check_type(info, causal=True)
    if info.quantized_as or info.kind == "gguf":
        return
    _check_layers(info)
    check_tokens(info)
    _check_head(info)


def _refuse_other_tasks(info: ModelInfo) -> None:
    config, text = info.config, info.text_config
    kind = config.get("model_type")
    decodes = bool(config.get("is_decoder")) and not config.get("is_encoder_decoder")
    other = [name for name in config.get("architectures") or () if _OTHER_TASKS.search(str(name))]
    if config.get("is_encoder_decoder"):
        what = "is an encoder-decoder model (is_encoder_decoder)"
    elif not decodes and _DECODERS_IF_TOLD.fullmatch(str(kind)):
        what = f"is of type {kind!r} without is_decoder: each of its tokens sees the later ones"
    elif other:
        what = f"was made for another task than causal language modelling ({other[0]})"
    elif text.get("is_causal") is False or text.get("use_bidirectional_attention") in (True, "all"):
        what = "attends in both directions: each of its tokens sees the later ones"
    else:
        return
    raise UnsupportedError(f"{info.source} {what}, and its scores as a causal model would mean nothing", hint=_INSTEAD)


def _check_layers(info: ModelInfo) -> None:
    """Compare the layers of the file with those of the configuration, if there is a single stack of layers."""
    stacks: dict[str, set[int]] = {}
    for tensor in info.tensors:
        if (match := _LAYER.match(tensor.name)) and "mtp" not in match[1]:
            stacks.setdefault(match[1], set()).add(int(match[2]))
    # The number of layers has different names in different families; some families have several numbers.
    said = {value for key, value in info.config.items() if "layer" in key and type(value) is int and value > 0}
    said |= {len(value) for key, value in info.config.items() if key == "layer_types" and isinstance(value, list)}
    further = info.config.get("num_nextn_predict_layers")
    said |= {value + further for value in said} if isinstance(further, int) else set()
    if len(stacks) != 1 or not said or info.text_config is not info.config:
        return
    ((name, found),) = stacks.items()
    if len(found) not in said:
        raise ModelError(
            f"{info.source} holds {counted(len(found), 'layer')} ({name}), and its configuration says {min(said)}",
            hint="Its config.json belongs to another model, or some of its weights are missing.",
        )


def check_tokens(info: ModelInfo) -> None:
    """Find an embedding of another width, and token ids without a row in it: the configuration's, and the tokenizer's.

    Raises:
        ModelError: naming the first of them.
    """
    shapes = [t.shape for t in info.tensors if _EMBEDDING.search(t.name) and len(t.shape) == 2]
    if not shapes:
        return
    rows, width = [shape[0] for shape in shapes], shapes[0][1]
    hidden = info.text_config.get("hidden_size")
    if type(hidden) is int and width not in info.text_config.values():  # some families have a width of its own for it
        raise ModelError(
            f"the embedding of {info.source} has rows of {width} numbers, and its hidden_size is {hidden}",
            hint="Its config.json belongs to another model.",
        )
    for name in _TOKENS:
        said = info.text_config.get(name)
        outside = [i for i in (said if isinstance(said, list) else [said]) if type(i) is int and i >= max(rows)]
        if outside:
            raise ModelError(
                f"the {name} of {info.source} is {outside[0]}, and its embedding has {max(rows)} rows",
                hint=f"Correct {name} in its config.json: the tokenizer's, or null.",
            )
    path = info.location / "tokenizer.json" if info.location else None
    if path is not None and path.is_file():
        refuse_outside({word: i for word, i in _words(path) if i >= max(rows)}, max(rows), info.source)


def _words(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the words of a tokenizer, except special tokens, with their ids."""
    data = read_json(path)
    vocabulary = (data.get("model") or {}).get("vocab") or {}
    special = {token["id"] for token in data.get("added_tokens") or () if token.get("special")}
    pairs = vocabulary.items() if isinstance(vocabulary, Mapping) else ((v[0], i) for i, v in enumerate(vocabulary))
    yield from ((word, i) for word, i in pairs if i not in special)
    yield from ((t["content"], t["id"]) for t in data.get("added_tokens") or () if not t.get("special"))


def refuse_outside(outside: Mapping[str, int], rows: int, source: str) -> None:
    """Refuse a tokenizer with ids without a row in the embedding.

    Args:
        outside: the ids without a row, by token.

    Raises:
        ModelError: if `outside` holds any id.
    """
    if outside:
        names = ", ".join(f"{token!r} ({i})" for token, i in sorted(outside.items(), key=lambda item: item[1])[:3])
        raise ModelError(
            f"the tokenizer of {source} has {counted(len(outside), 'token')} without a row in its embedding of {rows}, "
            f"first {names}",
            hint="It belongs to another model, or the embedding was not resized when tokens were added.",
        )


def _check_head(info: ModelInfo) -> None:
    """Compare the configuration with the files: is the head tied to the embedding, or a separate tensor?"""
    embedding = next((t for t in info.tensors if _EMBEDDING.search(t.name)), None)
    head = next((t for t in info.tensors if t.name.endswith("lm_head.weight")), None)
    said = info.text_config.get("tie_word_embeddings", info.config.get("tie_word_embeddings"))
    lacks = said is False and not any("head" in tensor.name for tensor in info.tensors)
    if lacks and embedding is not None and embedding.name.endswith("embed_tokens.weight"):
        raise ModelError(
            f"{info.source} has no lm_head.weight, and its configuration does not tie it to the embedding",
            hint='If they are tied, write "tie_word_embeddings": true in its config.json; else weights are missing.',
        )
    if not info.tied or embedding is None or head is None:
        return
    equal = (embedding.dtype, embedding.shape) == (head.dtype, head.shape)
    if equal and info.location is not None and info.weight_files[0].endswith(".safetensors"):
        files = [info.location / name for name in info.weight_files]
        one, other = (chain(*(stored_bytes(file, t.name) for file in files)) for t in (embedding, head))
        equal = all(a == b for a, b in zip(one, other, strict=True))
    if not equal:
        raise untied_head(info.source, head.name)


def untied_head(source: str, name: str) -> ModelError:
    """Report that a tensor should be the embedding, but is another tensor."""
    return ModelError(
        f"{source} ties {name!r} to its embedding (tie_word_embeddings), and its file has another tensor of that name: "
        "engines differ in which of the two they use",
        hint='If the tensor belongs to the model, write "tie_word_embeddings": false in its config.json; else delete '
        "the tensor.",
    )
