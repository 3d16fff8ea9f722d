"""Tiny random CLIP, SigLIP and SigLIP 2 checkpoints with tokenizers and image processors; they need no network."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers

_TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_TEXT, "patch_size": 8}


def write_clip(folder: Path, kind: str) -> Path:
    """Write a checkpoint of the kind ``clip``, ``siglip`` or ``siglip2`` in float32; equal bytes every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, processor = _build(kind)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(length):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {
        token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    }
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=length
    )


def _build(kind):
    text = {**_TEXT, "vocab_size": 300, "max_position_embeddings": 32, "eos_token_id": 1, "pad_token_id": 0}
    if kind == "clip":
        config = transformers.CLIPConfig(
            text_config=text, vision_config={**_VISION, "image_size": 32}, projection_dim=24
        )
        image = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
        return transformers.CLIPModel(config), transformers.CLIPProcessor(image, _tokenizer(32))
    if kind == "siglip":
        config = transformers.SiglipConfig(text_config=text, vision_config={**_VISION, "image_size": 32})
        image = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
        return transformers.SiglipModel(config), transformers.SiglipProcessor(image, _tokenizer(32))
    config = transformers.Siglip2Config(text_config=text, vision_config={**_VISION, "patch_size": 16})
    image = transformers.Siglip2ImageProcessorPil()  # its processor supports only the sizes 16 and 256
    return transformers.Siglip2Model(config), transformers.Siglip2Processor(image, _tokenizer(32))
