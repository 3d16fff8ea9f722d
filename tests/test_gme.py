"""GME's vectors are those of its formula, written down plainly, for texts, images and both."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edits import edit_tensors
from llmquant.embedders.gme.embedder import Gme
from llmquant.embedders.gme.options import GmeOptions
from llmquant.errors import ModelError
from llmquant.models.info import inspect_model
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("gme") / "tiny"
    tokenizer = Tokenizer(
        models.BPE(
            vocab={t: i for i, t in enumerate((*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())))}, merges=[]
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=SPECIAL[0]).save_pretrained(folder)
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        image_token_id=SPECIAL.index("<|image_pad|>"),
        video_token_id=SPECIAL.index("<|video_pad|>"),
        vision_start_token_id=SPECIAL.index("<|vision_start|>"),
        vision_end_token_id=SPECIAL.index("<|vision_end|>"),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.Qwen2VLForConditionalGeneration(config)
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    Qwen2VLImageProcessorPil().save_pretrained(folder)
    return folder


def _open(folder, context, tmp_path):
    options = GmeOptions(str(folder), instruction="Find it.")
    info = inspect_model(ModelRequest(str(folder)), Cache(tmp_path / "inspected"))
    return Gme(options).open(folder, info, {"dtype": torch.float32}, context()), options.info(info)


def _image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (420, 560, 3), dtype=np.uint8))


def _plainly(folder, text, image, instruction):
    """Follow the model's own code: embed tokens, put in the image, run the language model, take the last state."""
    model = transformers.Qwen2VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval().model
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    content = text or ""
    if image is not None:
        size = {"shortest_edge": 256 * 28 * 28, "longest_edge": 1280 * 28 * 28}
        pixels = Qwen2VLImageProcessorPil(size=size)(
            [image], return_tensors="pt"
        )  # of a size that needs no first resize
        tokens = int(pixels["image_grid_thw"].prod()) // 4
        content = "<|vision_start|>" + "<|image_pad|>" * tokens + "<|vision_end|>" + content
    turn = (
        f"<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n"
        "<|im_start|>assistant\n<|endoftext|>"
    )
    ids = tokenizer(turn, return_tensors="pt").input_ids
    with torch.no_grad():
        states = model.language_model.embed_tokens(ids)
        if image is not None:
            features = model.visual(pixels["pixel_values"], grid_thw=pixels["image_grid_thw"]).pooler_output
            states[ids == model.config.image_token_id] = features
        states = model.language_model(inputs_embeds=states).last_hidden_state[0, -1]
    return (states / states.norm()).numpy()


def test_vectors_are_those_of_the_formula(checkpoint, context, tmp_path):
    """A text, an image, and both, in one batch; queries have the instruction, documents have none."""
    opened, info = _open(checkpoint, context, tmp_path)
    items = [("a ledger", None), (None, _image()), ("how many sacks of barley?", _image())]
    for role, instruction in (("query", "Find it."), ("document", "You are a helpful assistant.")):
        vectors = opened.embed([opened.prepare(*item, role) for item in items], role)
        expected = [_plainly(checkpoint, *item, instruction) for item in items]
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert (info.width, info.fusion) == (32, "joint")


def test_a_batch_gives_what_single_items_give(checkpoint, context, tmp_path):
    """Items of one batch have the vectors they have alone."""
    opened, _ = _open(checkpoint, context, tmp_path)
    items = [
        opened.prepare(*item, "document") for item in (("a", None), (None, _image()), ("a much longer text", None))
    ]
    single = [opened.embed([item], "document")[0] for item in items]
    np.testing.assert_allclose(opened.embed(items, "document"), single, atol=1e-5)


@pytest.mark.parametrize("head", ["without", "with"])
def test_older_names_load(head, checkpoint, context, tmp_path):
    """A checkpoint with the names of the released one, with a head or without, gives the same vectors."""
    folder = tmp_path / "old"
    folder.mkdir()
    for file in checkpoint.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    opened, _ = _open(checkpoint, context, tmp_path)
    state = {name: value.contiguous() for name, value in opened.module.state_dict().items()}
    tensors = {name.replace("language_model.", "model."): value for name, value in state.items()}
    if head == "with":
        tensors["lm_head.weight"] = torch.zeros(300, 32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    again, _ = _open(folder, context, tmp_path)
    for name, value in again.module.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)


def test_a_missing_tensor_is_refused(checkpoint, context, tmp_path):
    """A checkpoint without one of its tensors is not opened with random numbers in its place."""
    folder = shutil.copytree(checkpoint, tmp_path / "copy")
    edit_tensors(folder, lambda tensors: tensors.pop(next(name for name in tensors if "q_proj.weight" in name)))
    with pytest.raises(ModelError, match="q_proj"):
        _open(folder, context, tmp_path)
