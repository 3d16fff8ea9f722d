"""A model's small files, checked before its weights are downloaded, quantized or loaded."""

from __future__ import annotations

import transformers
from huggingface_hub.errors import StrictDataclassError

from llmquant.errors import ModelError
from llmquant.loading.causal_lm import load_tokenizer, materialize
from llmquant.models.folder import read_json
from llmquant.models.info import ModelInfo
from llmquant.storage.cache import Cache


def check_small_files(info: ModelInfo, cache: Cache) -> None:
    """Refuse a causal LM without a usable tokenizer, or of an architecture that transformers does not know.

    Raises:
        ModelError: naming what is missing or damaged.
    """
    if info.kind == "gguf":  # one file
        return
    home = materialize(info, cache, weights=False)
    try:
        transformers.AutoConfig.from_pretrained(home, trust_remote_code=info.trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        raise ModelError(f"transformers {transformers.__version__} cannot load {info.source}: {error}") from error
    load_tokenizer(home, info)
    if (home / "generation_config.json").is_file():
        read_json(home / "generation_config.json")
