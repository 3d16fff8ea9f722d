"""A tiny random sentence-transformers model with a tokenizer of its own; it needs no network."""

from __future__ import annotations

import string
from collections.abc import Mapping
from pathlib import Path

_WORDS = (
    "the a of and in is how many was why does invoice ledger barley river lighthouse engine mountain total due days "
    "thirty delivery weather sacks horses water clay bell fog ship name page table figure chapter"
)


def save_tiny_sentence_transformer(
    folder: Path,
    *,
    dense: int | None = None,
    prompts: Mapping[str, str] | None = None,
    similarity: str | None = None,
    max_seq_length: int = 64,
) -> Path:
    """Write a BERT of 2 layers and 32 numbers with mean pooling to `folder`; equal bytes every time.

    Args:
        dense: adds a dense module that gives so many numbers.
        prompts: by name, as the model's configuration holds them.
        similarity: that it says its vectors are compared by.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Dense, Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling
    from transformers import BertConfig, BertModel, BertTokenizerFast

    base = folder.with_name(f"{folder.name}-base")
    base.mkdir(parents=True)
    letters = [*string.ascii_lowercase, *string.digits, *".,?!:-"]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *_WORDS.split(),
        *letters,
        *(f"##{letter}" for letter in letters),
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertTokenizerFast(vocab=vocabulary, model_max_length=max_seq_length)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=max_seq_length,
        initializer_range=0.5,  # large enough that texts differ well
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(base)
        tokenizer.save_pretrained(base)
        modules = [Transformer(str(base), max_seq_length=max_seq_length), Pooling(32)]
        if dense is not None:
            modules.append(Dense(32, dense))
    model = SentenceTransformer(
        modules=modules, prompts=dict(prompts or {}), similarity_fn_name=similarity, device="cpu"
    )
    model.save_pretrained(str(folder), create_model_card=False)
    return folder
