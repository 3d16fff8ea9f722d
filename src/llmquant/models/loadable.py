"""Check from a checkpoint's small files that transformers can load it, without importing transformers."""

from __future__ import annotations

import importlib.util
import itertools
import re
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.version import InvalidVersion, Version

from llmquant.errors import ModelError, UnsupportedError
from llmquant.machine.packages import installed_version
from llmquant.models.folder import read_json

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo

_CAUSAL = re.compile(r"^MODEL_FOR_CAUSAL_LM_MAPPING_NAMES = OrderedDict\(\n(.*?)^\)", re.DOTALL | re.MULTILINE)
# In the names of files with a tokenizer's words, of all families.
_WORDS = re.compile(r"tok|tekken|vocab|merges|bpe|spiece|sentencepiece|dict|\.(model|spm)$")
_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
# Tokenizers of bytes or characters, which have no file of words.
_WITHOUT_WORDS = ("ByT5", "Canine", "Perceiver")
_IMAGE_SETTINGS = ("processor_config.json", "preprocessor_config.json")
_NUMBERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def check_local_files(info: ModelInfo) -> None:
    """Refuse a folder without a tokenizer, or with unreadable settings.

    The small files of a Hub model are downloaded before its weights, and are then checked.

    Raises:
        ModelError: naming what is missing or damaged.
    """
    if info.kind != "folder" or info.location is None:
        return
    _check_tokenizer(info, info.location)
    for name in ("generation_config.json", "tokenizer_config.json"):
        if (info.location / name).is_file():
            read_json(info.location / name)


def check_image_files(info: ModelInfo) -> None:
    """Refuse a folder without a tokenizer or the settings of an image processor; an adapter may bring its own.

    Raises:
        ModelError: naming what is missing or damaged.
    """
    if info.kind != "folder" or info.location is None or info.adapter is not None:
        return
    check_local_files(info)
    if not any((info.location / name).is_file() for name in _IMAGE_SETTINGS):
        raise ModelError(
            f"{info.source} has no image processor: neither {' nor '.join(_IMAGE_SETTINGS)} is there",
            hint="Copy it from the original model: AutoProcessor.from_pretrained(ORIGINAL).save_pretrained(FOLDER).",
        )


def check_type(info: ModelInfo, *, causal: bool) -> None:
    """Refuse a model type that transformers does not have, and settings that are texts where numbers belong.

    Args:
        causal: whether the model is loaded as a causal language model.

    Raises:
        ModelError: naming what is missing or wrong.
        UnsupportedError: if the model type has no causal language model in transformers.
    """
    if info.kind == "gguf":
        return
    if not info.trust_remote_code or not info.config.get("auto_map"):
        _check_type(info, causal=causal)
    if wrong := next((name for name in _NUMBERS if isinstance(info.text_config.get(name), str)), None):
        raise ModelError(
            f"{wrong} of {info.source} is {info.text_config[wrong]!r}, not a number", hint="Correct its config.json."
        )


def _check_type(info: ModelInfo, *, causal: bool) -> None:
    kind, version = info.config.get("model_type"), installed_version("transformers")
    spec = importlib.util.find_spec("transformers")  # finds the package without importing it
    if spec is None or spec.origin is None:
        return
    models = Path(spec.origin).parent / "models"
    root = models / "auto"
    if not kind:
        raise ModelError(
            f"the config.json of {info.source} has no model_type, so its architecture is unknown",
            hint='Add it, for example "model_type": "llama", or fetch the file again.',
        )
    if not any(f'"{kind}"' in file.read_text(encoding="utf-8") for file in sorted(root.glob("*.py"))):
        raise ModelError(
            f"{info.source} is of model type {kind!r}, which transformers {version} does not know",
            hint=_newer(info.config.get("transformers_version"), version)
            or "Upgrade transformers, or correct model_type in its config.json.",
        )
    if unknown := _unknown_rope(info, models):
        raise ModelError(
            f"config.json of {info.source} has the RoPE type {unknown!r}, which transformers {version} does not know",
            hint=_newer(info.config.get("transformers_version"), version) or "Correct rope_type in its config.json.",
        )
    if unknown := _unknown_activation(info, models):
        raise ModelError(
            f"config.json of {info.source} has the activation {unknown!r}, which transformers {version} does not know",
            hint=_newer(info.config.get("transformers_version"), version) or "Correct it in its config.json.",
        )
    found = _CAUSAL.search((root / "modeling_auto.py").read_text(encoding="utf-8")) if causal else None
    if found is not None and f'("{kind}", ' not in found[1]:
        raise UnsupportedError(
            f"{info.source} is of model type {kind!r}, which transformers {version} does not load as a causal "
            "language model",
            hint="Use a text model, or the text part of this one as a checkpoint of its own.",
        )


def _unknown_activation(info: ModelInfo, models: Path) -> str:
    """Return the activation function that is nowhere in transformers; ``""`` if all are known."""
    tables = [info.config, info.text_config, info.config.get("vision_config")]
    given = [
        table.get(key) for table in tables if isinstance(table, dict) for key in ("hidden_act", "hidden_activation")
    ]
    common = _text(models.parent / "activations.py")
    for name in dict.fromkeys(name for name in given if isinstance(name, str)):
        if not any(f'"{name}"' in text for text in itertools.chain([common], map(_text, models.glob("*/*.py")))):
            return name
    return ""


def _unknown_rope(info: ModelInfo, models: Path) -> str:
    """Return the type of rotary embedding that is nowhere in transformers; ``""`` if all are known."""
    config = info.text_config
    given = [each for key in ("rope_parameters", "rope_scaling") if isinstance(each := config.get(key), dict)]
    tables = [*given, *(inner for each in given for inner in each.values() if isinstance(inner, dict))]  # by layer type
    common = _text(models.parent / "modeling_rope_utils.py")
    for kind in dict.fromkeys(str(each.get("rope_type", each.get("type", "default"))) for each in tables):
        if not any(f'"{kind}"' in text for text in itertools.chain([common], map(_text, models.glob("*/*.py")))):
            return kind
    return ""


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _newer(wanted: object, installed: str | None) -> str:
    """Say which version to install, if the checkpoint was saved with a newer one."""
    try:
        newer = Version(str(wanted)) > Version(str(installed))
    except InvalidVersion:
        return ""
    return f'It was saved with transformers {wanted}. Run: pip install "transformers>={wanted}"' if newer else ""


def _check_tokenizer(info: ModelInfo, folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    if any(_WORDS.search(name) for name in names if name not in _SETTINGS):
        return
    settings = read_json(folder / _SETTINGS[0]) if _SETTINGS[0] in names else {}
    if settings.get("auto_map") or str(settings.get("tokenizer_class")).startswith(_WITHOUT_WORDS):
        return
    raise ModelError(
        f"{info.source} has no tokenizer: neither tokenizer.json nor another file of words is there",
        hint="Copy them from the original model: AutoTokenizer.from_pretrained(ORIGINAL).save_pretrained(FOLDER).",
    )
