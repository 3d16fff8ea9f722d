"""A complete Gemma 3 checkpoint in a few kilobytes: random weights, a tokenizer and an image processor of its own."""

from __future__ import annotations

import json
from pathlib import Path

_TEXT = """
The invoice of March lists nine sacks of barley, three of oats and a delivery to the harbour before noon.
A lighthouse keeper counted the ships that passed before dawn and wrote each name into a green ledger.
Revenue grew by twelve percent while the cost of energy fell; the table on page four shows both by quarter.
Query: what colour is the ledger? Query: how much did revenue grow? Describe this image
"""

_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>")
_IMAGE = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")

# As google/gemma-3-4b-it has it, without the checks of roles.
_CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages -%}
    {{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\n' }}
{%- endif -%}
"""


def write_gemma3(folder: Path, *, hidden_size: int = 64, late: bool = False, seed: int = 0) -> Path:
    """Write a bare ``Gemma3Model`` in float32: 2 layers of each tower, images of 56 x 56 pixels that become 4 tokens.

    Args:
        hidden_size: of the language model, a multiple of 64: the width of `bigemma3`'s vectors.
        late: add the projection to 128 numbers of `colgemma3`.
        seed: of the weights.
    """
    import torch
    from transformers import Gemma3Config, Gemma3Model

    tokenizer = _tokenizer()
    config = Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 16,
            "sliding_window_pattern": 2,
            "max_position_embeddings": 2048,
            # Large enough that texts get clearly different vectors.
            "initializer_range": 0.2,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 56,
            "patch_size": 14,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        initializer_range=0.2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Gemma3Model(config)
        # Starts at zero, which would make all images alike.
        torch.nn.init.normal_(model.multi_modal_projector.mm_input_projection_weight, std=0.2)
        if late:
            model.custom_text_proj = torch.nn.Linear(hidden_size, 128)
    model.save_pretrained(folder)
    _processor(tokenizer).save_pretrained(folder)
    return folder


def _processor(tokenizer):
    from transformers import Gemma3ImageProcessorPil, Gemma3Processor

    images = Gemma3ImageProcessorPil(
        size={"height": 56, "width": 56}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_pan_and_scan=None
    )
    return Gemma3Processor(images, tokenizer, chat_template=_CHAT_TEMPLATE, image_seq_length=4)


def _tokenizer():
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import GemmaTokenizer

    special = [*_SPECIAL, *_IMAGE]
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    bpe = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    bpe.normalizer = normalizers.Replace(" ", "▁")
    bpe.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=640, special_tokens=[*special, *byte_tokens], show_progress=False)
    bpe.train_from_iterator(_TEXT.splitlines(), trainer)
    trained = json.loads(bpe.to_str())["model"]
    tokenizer = GemmaTokenizer(
        vocab=trained["vocab"],
        merges=[tuple(merge) for merge in trained["merges"]],
        chat_template=_CHAT_TEMPLATE,
        add_bos_token=True,
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    tokenizer.add_tokens(["<start_of_turn>", "<end_of_turn>"], special_tokens=True)
    return tokenizer
