"""The tokenizer in a .gguf file: byte-level BPE with a pre-tokenizer that llama.cpp has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import gguf
from tokenizers import Tokenizer

from llmquant.errors import UnsupportedError

# The text that llama.cpp's converter encodes to recognize a pre-tokenizer (get_vocab_base_pre in conversion/base.py).
_PROBE = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天～ "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? I've been 'told he's there, 'RE you sure? "
    "'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)
PRE_TOKENIZERS = {
    "0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5": "llama-bpe",
    "049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754": "deepseek-llm",
    "347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821": "deepseek-coder",
    "9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e": "falcon3",
    "35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34": "starcoder",
    "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454": "gpt-2",
    "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea": "qwen2",
    "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c": "qwen2",
    "c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d": "smaug-bpe",
    "7fc505bd3104ca1083b150b17d088b59534ede9bde81f0dd2090967d7fe52cee": "viking",
    "63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e": "tekken",
    "855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249": "smollm",
    "ad851be1dba641f2e3711822f816db2c265f788b37c63b4e1aeacb9ee92de8eb": "gigachat",
    "d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1": "megrez",
    "b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5": "deepseek-r1-qwen",
    "1994ffd01900cfb37395608534236ecd63f2bd5995d6cb1004dda1af50240f15": "trillion",
    "d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec": "seed-coder",
    "b0a6b1c0bd5998ebd9df08611efde34a4ff03faed45ae09c43e6b31ebd4b94cf": "a.x-4.0",
    "f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4": "midm-2.0",
    "a1e163ecab2e718a4c829d1148b6e86824ec36163bb71941c3dca9cd5ac25756": "mellum",
    "1431a23e583c97432bc230bff598d103ddb5a1f89960c8f1d1051aaa944d0b35": "minerva-7b",
}
"""llama.cpp's names of pre-tokenizers, by the SHA-256 of the token ids of a fixed text (same place in llama.cpp)."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as llama.cpp needs it.

    Attributes:
        pre: llama.cpp's name of the pre-tokenizer.
        tokens: one text per row of the embeddings; bytes of normal tokens are written as GPT-2 does.
        types: one `gguf.TokenType` per token.
        merges: pairs of tokens in the order of their rank, each with a space between.
        special: ids of special tokens, by ``bos``, ``eos``, ``unk`` and ``pad``.
        adds: whether the tokenizer adds ``bos`` before, and ``eos`` after a text.
        chat_template: one Jinja template, or several with names; ``None`` for none.
    """

    pre: str
    tokens: Sequence[str]
    types: Sequence[gguf.TokenType]
    merges: Sequence[str]
    special: Mapping[str, int]
    adds: Mapping[str, bool]
    chat_template: str | Sequence[Mapping[str, str]] | None

    def add_to(self, writer: gguf.GGUFWriter) -> None:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for kind, index in self.special.items():
            getattr(writer, f"add_{kind}_token_id")(index)
        writer.add_add_bos_token(self.adds["bos"])
        writer.add_add_eos_token(self.adds["eos"])
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def check_tokenizer(backend: Tokenizer, rows: int | None) -> str:
    """Return llama.cpp's name of a tokenizer's pre-tokenizer.

    Args:
        rows: number of rows of the embeddings; ``None`` if it is unknown.

    Raises:
        UnsupportedError: if llama.cpp would not encode texts as this tokenizer does.
    """
    state = json.loads(backend.to_str())
    model = state["model"]
    if model["type"] != "BPE" or model.get("byte_fallback") or '"ByteLevel"' not in json.dumps(state):
        found = model["type"] + " with byte fallback" * bool(model.get("byte_fallback"))
        raise UnsupportedError(f"its tokenizer is not a byte-level BPE (found {found})")
    digest = hash_of(backend.encode(_PROBE).ids)
    if digest not in PRE_TOKENIZERS:
        raise UnsupportedError(f"its pre-tokenizer is none of those known from llama.cpp (hash {digest})")
    last = max(backend.get_vocab().values())
    if rows is not None and last >= rows:
        raise UnsupportedError(f"its tokenizer has the token id {last}, and the embeddings have {rows} rows")
    for index, token in backend.get_added_tokens_decoder().items():
        if token.lstrip or token.rstrip or token.single_word:
            raise UnsupportedError(f"its token {token.content!r} ({index}) takes spaces or whole words only")
    return PRE_TOKENIZERS[digest]


def read_vocabulary(tokenizer: Any, rows: int) -> Vocabulary:  # Any: transformers has no types
    """Read a tokenizer of transformers.

    Args:
        rows: number of rows of the embeddings; rows without a token get unused ones.

    Raises:
        UnsupportedError: if llama.cpp would not encode texts as this tokenizer does.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UnsupportedError(f"its tokenizer is not a byte-level BPE (found {type(tokenizer).__name__})")
    pre = check_tokenizer(backend, rows)
    normal = {index: token for token, index in backend.get_vocab().items()}
    added = backend.get_added_tokens_decoder()
    tokens, types = [], []
    for index in range(rows):
        token, kind = normal.get(index, f"[PAD{index}]"), gguf.TokenType.NORMAL
        if index in added:
            kind = gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED
        elif index not in normal:
            kind = gguf.TokenType.UNUSED
        tokens.append(token)
        types.append(kind)
    kinds = ("bos", "eos", "unk", "pad")
    special = {kind: index for kind in kinds if (index := getattr(tokenizer, f"{kind}_token_id")) is not None}
    template, merges = tokenizer.chat_template, json.loads(backend.to_str())["model"]["merges"]
    return Vocabulary(
        pre,
        tokens,
        types,
        [pair if isinstance(pair, str) else " ".join(pair) for pair in merges],
        special,
        _adds(tokenizer, special),
        [{"name": n, "template": text} for n, text in template.items()] if isinstance(template, dict) else template,
    )


def hash_of(ids: Sequence[int]) -> str:
    """Return the hash of token ids as llama.cpp's converter computes it."""
    return sha256(str(ids).encode()).hexdigest()


def _adds(tokenizer: Any, special: Mapping[str, int]) -> Mapping[str, bool]:  # Any: transformers has no types
    bare, whole = tokenizer.encode("a", add_special_tokens=False), tokenizer.encode("a")
    bos = whole[:1] == [special.get("bos")] != bare[:1]
    eos = whole[-1:] == [special.get("eos")] != bare[-1:]
    if whole != whole[:1] * bos + bare + whole[-1:] * eos:
        raise UnsupportedError(f"its tokenizer encodes 'a' as {whole}: with other tokens than bos and eos around it")
    return {"bos": bos, "eos": eos}
