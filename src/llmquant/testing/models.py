"""Tiny checkpoints for the tests of plugins, written in seconds without a network: equal bytes every time."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

_TEXT = """
A lighthouse keeper counted the ships that passed before dawn, and wrote each name into a ledger bound in green cloth.
When the fog was thick she rang the bell every four minutes; nobody on the mainland ever heard it, but the sailors did.
Water boils at a lower temperature on a mountain because the air presses on it with less weight than at the sea.
The farmer sold nine sacks of barley on Monday, three on Tuesday, and kept the rest for the winter and for the horses.
"Why is the river brown today?" asked the boy. "It rained upstream last night," said his aunt, "and the banks are clay."
An engine turns heat into motion; most of the heat escapes, and the little that remains pulls the train over the pass.
Question: What color is the ledger? Answer: green. Question: How many sacks were sold? Answer: twelve.
"""

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_WORDS = (
    "the a of and in is how many was why does invoice ledger barley river lighthouse engine mountain total due days "
    "thirty delivery weather sacks horses water clay bell fog ship name page table figure chapter"
)
_EMBEDDER_TOKENS = 64


def tiny_causal_lm(folder: Path, *, width: int = 64) -> Path:
    """Write a random Llama of 2 layers with its own tokenizer; it passes the sanity check of `llmquant.load`.

    Args:
        folder: where to write; it may be missing.
        width: size of the hidden states, a multiple of 8; the inner layers have twice as many features.

    Returns:
        The folder.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _causal_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=width // 4,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        # Large enough that greedy text is not one token repeated.
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def tiny_embedder(folder: Path, *, width: int = 32) -> Path:
    """Write a random BERT of 2 layers with a tokenizer; texts of at most 64 tokens.

    ``transformers.AutoModel`` loads it, and the embedder ``sentence_transformers`` opens it with mean pooling.

    Args:
        folder: where to write; it may be missing.
        width: size of the vectors, an even number; the inner layers have twice as many features.

    Returns:
        The folder.
    """
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    letters = [*string.ascii_lowercase, *string.digits, *".,?!:-"]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *_WORDS.split(), *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=width,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=2 * width,
        max_position_embeddings=_EMBEDDER_TOKENS,
        initializer_range=0.5,  # large enough that texts differ well
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    BertTokenizerFast(vocab=vocabulary, model_max_length=_EMBEDDER_TOKENS).save_pretrained(folder)
    module = "sentence_transformers.models"
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(
        json.dumps(
            [
                {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
                {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
            ]
        )
    )
    return folder


def _causal_tokenizer() -> Any:  # Any: transformers has no types
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT.splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        model_max_length=2048,
    )
    fast.chat_template = _CHAT_TEMPLATE
    return fast
