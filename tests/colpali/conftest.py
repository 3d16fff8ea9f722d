"""Let torchvision be imported beside a CPU build of torch, and build a tiny checkpoint of each architecture."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch


def _import_torchvision() -> Any:
    """Define the two operators that a CUDA build of torchvision does not bring to a CPU build of torch."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    try:
        import torchvision  # noqa: F401 - to see whether it can be
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return library
    return None


# Kept: the operators are gone when their library is.
TORCHVISION = _import_torchvision()

_QWEN = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_GEMMA = ("<pad>", "<bos>", "<eos>", "<unk>", "<image>")
_SMOL = (
    "<pad>",
    "<|im_start|>",
    "<|begin_of_text|>",
    "<end_of_utterance>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
_WIDTHS = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
_VISION = {**_WIDTHS, "num_attention_heads": 2, "image_size": 56, "patch_size": 14}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that builds the checkpoint of one architecture, random and complete, once."""
    root, built = tmp_path_factory.mktemp("colpali"), set()

    def get(name: str) -> Path:
        if name not in built:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                model, processor = _BUILDERS[name]()
            for parameter in model.parameters():
                parameter.data += 0.05 * torch.randn_like(parameter)  # biases and norms differ from their defaults too
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
            built.add(name)
        return root / name

    return get


def _tokenizer(special: tuple[str, ...], **tokens: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate((*special, *alphabet))}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def _qwen(model: str, config: str, *, patch_size: int = 14, text: dict[str, Any] | None = None, **vision: Any) -> Any:
    import colpali_engine.models
    import transformers
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
    from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

    tokenizer = _tokenizer(_QWEN, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _QWEN}
    settings = getattr(transformers, config)(
        text_config={
            **_WIDTHS,
            "num_key_value_heads": 2,
            "vocab_size": len(tokenizer),
            "rope_parameters": _MROPE,
            "tie_word_embeddings": True,
            **(text or {}),
        },
        vision_config={"depth": 2, "hidden_size": 32, "num_heads": 2, "patch_size": patch_size, **vision},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    pixels = {"min_pixels": 4 * 28 * 28, "max_pixels": 16 * 28 * 28, "patch_size": patch_size}
    video = Qwen3VLVideoProcessor() if model == "ColQwen3" else Qwen2VLVideoProcessor()
    name = f"{model}_Processor" if model == "ColQwen2_5" else f"{model}Processor"
    processor = getattr(colpali_engine.models, name)(Qwen2VLImageProcessor(**pixels), tokenizer, video)
    return getattr(colpali_engine.models, model)(settings), processor


def _colpali() -> Any:
    from colpali_engine.models import ColPali, ColPaliProcessor
    from transformers import PaliGemmaConfig, SiglipImageProcessor

    tokenizer = _tokenizer(_GEMMA, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    image = SiglipImageProcessor(size={"height": 56, "width": 56})
    image.image_seq_length = 16
    config = PaliGemmaConfig(
        text_config={"model_type": "gemma", **_WIDTHS, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 300},
        vision_config={
            "model_type": "siglip_vision_model",
            **_VISION,
            "projection_dim": 32,
            "vision_use_head": False,
        },
        image_token_index=_GEMMA.index("<image>"),
        projection_dim=32,
        hidden_size=32,
    )
    return ColPali(config), ColPaliProcessor(image, tokenizer)


def _smol(model: str, config: str, text: dict[str, Any], vision: str, scale: str) -> Any:
    import colpali_engine.models
    import transformers
    from transformers import Idefics3ImageProcessor

    tokenizer = _tokenizer(_SMOL, pad_token="<pad>", eos_token="<end_of_utterance>")
    image = Idefics3ImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 56})
    settings = getattr(transformers, config)(
        text_config={**_WIDTHS, "vocab_size": 400, "pad_token_id": 0, **text},
        vision_config={"model_type": vision, **_VISION},
        image_token_id=_SMOL.index("<image>"),
        pad_token_id=0,
        **{scale: 2},
    )
    processor = getattr(colpali_engine.models, f"{model}Processor")(image, tokenizer, image_seq_len=4)
    return getattr(colpali_engine.models, model)(settings), processor


_LLAMA = {"model_type": "llama", "num_key_value_heads": 2}
_BERT = {"model_type": "modernbert", "local_attention": 64}
_BUILDERS: dict[str, Callable[[], Any]] = {
    "colpali": _colpali,
    "colqwen2": lambda: _qwen("ColQwen2", "Qwen2VLConfig", embed_dim=32, mlp_ratio=2),
    "colqwen2.5": lambda: _qwen(
        "ColQwen2_5",
        "Qwen2_5_VLConfig",
        intermediate_size=64,
        out_hidden_size=32,
        fullatt_block_indexes=[1],
        window_size=56,
    ),
    "colqwen3": lambda: _qwen(
        "ColQwen3",
        "Qwen3VLConfig",
        patch_size=16,
        text={"head_dim": 8},
        intermediate_size=64,
        out_hidden_size=32,
        deepstack_visual_indexes=[0],
        num_position_embeddings=16,
    ),
    "colsmol": lambda: _smol("ColIdefics3", "Idefics3Config", _LLAMA, "idefics3_vision", "scale_factor"),
    "modernvbert": lambda: _smol(
        "ColModernVBert", "ModernVBertConfig", _BERT, "siglip_vision_model", "pixel_shuffle_factor"
    ),
    "bimodernvbert": lambda: _smol(
        "BiModernVBert", "ModernVBertConfig", _BERT, "siglip_vision_model", "pixel_shuffle_factor"
    ),
}
