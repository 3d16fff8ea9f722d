"""Load a checkpoint completely or refuse it: no weight may be missing, left over, misshapen or wrongly untied."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from llmquant.errors import ModelError, describe
from llmquant.loading.memory import is_out_of_memory
from llmquant.models.causal import untied_head
from llmquant.models.folder import read_json
from llmquant.study.counting import counted

_log = logging.getLogger(__name__)

# A language model's output layer, which produces no vectors: an embedder opened without it is complete.
HEAD = r"(.*\.)?lm_head\.(weight|bias)"
# Constants that older versions stored and that models now compute.
_CONSTANTS = (
    r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)",
    r"(.*\.)?(attn|attention)\.((masked_)?bias|causal_mask)",
    r"(.*\.)?position_ids",
)
# Layers that predict further tokens ahead; transformers lists these for most architectures.
_FURTHER_TOKENS = r"(.*\.)?mtp(_\w+)?\..*"
# Weights of a multimodal checkpoint that the class of the language model alone does not have.
_TOWERS = r"(.*\.)?(\w*(vision|visual|image|audio|multi_modal|embed_vision|embed_audio)\w*)\..*"
# Scales of quantized key-value caches and inputs; only other engines use them.
_RUNTIME_SCALES = r".*\.([kqv]|prob|input|output)_scale"


def load_causal(
    path: Path,
    source: str,
    keywords: Mapping[str, Any],  # Any: from_pretrained's
    *,
    allow_pickle: bool = False,
) -> Any:  # Any: transformers
    """Load a causal language model with `load_strict`, without the parts that do not generate text.

    Raises:
        ModelError: as in `load_strict`.
    """
    allowed = _not_of_the_text(path)
    return load_strict(
        transformers.AutoModelForCausalLM, path, source, keywords, allowed=allowed, allow_pickle=allow_pickle
    )


def check_source(path: Path, source: str, *, trust_remote_code: bool = False) -> None:
    """Load a checkpoint without its numbers, to find missing or left-over weights before a quantizer reads it.

    Raises:
        ModelError: as in `load_strict`.
    """
    load_causal(path, source, {"device_map": "meta", "trust_remote_code": trust_remote_code}, allow_pickle=True)


def load_strict(
    cls: Any,  # Any: a class of transformers, or a class with the same interface
    path: Path,
    source: str,
    keywords: Mapping[str, Any],  # Any: from_pretrained's
    *,
    allowed: Iterable[str] = (),
    allow_pickle: bool = False,
) -> Any:  # Any: a model of that class
    """Load a checkpoint by ``from_pretrained``, in evaluation mode.

    Args:
        source: the checkpoint's name in messages.
        allowed: as in `check_strict`.
        allow_pickle: whether weights in pickle files may be read too.

    Raises:
        ModelError: if the checkpoint cannot be loaded, if it holds a separate head although its configuration ties
            the head, and as in `check_strict`.
    """
    try:
        model, report = cls.from_pretrained(
            path,
            use_safetensors=None if allow_pickle else True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # the report then names all of them; `check_strict` ignores none
            **keywords,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if is_out_of_memory(error):
            raise
        version = transformers.__version__
        raise ModelError(f"transformers {version} cannot load {source} as {cls.__name__}: {error}") from error
    check_strict(report, source, allowed=allowed)
    _check_tied(model, source)
    return model.eval()


def check_strict(report: Mapping[str, Any], source: str, *, allowed: Iterable[str] = ()) -> None:  # Any: transformers'
    """Compare the weights in a checkpoint with the weights that the model loaded from it.

    A missing tensor leaves random numbers in the model. A tensor with a name unknown to the model is as bad: its layer
    holds random numbers, or the results are those of another model than the released one.

    Args:
        report: what ``from_pretrained(..., output_loading_info=True)`` returns beside the model.
        source: the checkpoint's name in messages.
        allowed: regular expressions; a tensor whose full name matches one may be left in the file.

    Raises:
        ModelError: for missing and unexpected tensors, wrong shapes, and errors that transformers only logged; each
            message has their number and names the first.
    """
    missing = sorted(report.get("missing_keys") or ())
    if missing:
        raise ModelError(
            f"{source} lacks {len(missing)} of the weights its configuration asks for, first {missing[0]!r}",
            hint="Its config.json belongs to another model, or some of its weights are missing.",
        )
    mismatched = sorted(report.get("mismatched_keys") or ())
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{source}: {len(mismatched)} weights have another shape than its configuration says, first {name!r}: "
            f"{tuple(stored)}, not {tuple(expected)}",
            hint="Its config.json belongs to another model.",
        )
    errors = list(report.get("error_msgs") or ())
    if errors:
        raise ModelError(f"{source} was not loaded completely: {errors[0]}")
    patterns = tuple(allowed)
    names = sorted(report.get("unexpected_keys") or ())
    unexpected = [name for name in names if not any(re.fullmatch(pattern, name) for pattern in patterns)]
    if unexpected:
        raise ModelError(
            f"{source} holds {counted(len(unexpected), 'weight')} that its model has no place for, first "
            f"{unexpected[0]!r}",
            hint="Its config.json belongs to another model, or the checkpoint was made for another class of model. "
            "Nothing was loaded, because these weights would be ignored.",
        )


def warm_imports(cls: Any, path: Path, *, trust_remote_code: bool = False) -> None:  # Any: a class of transformers
    """Import the modules that loading the checkpoint at `path` needs, so that the model's memory excludes theirs.

    The function builds a model without numbers. A model that cannot be built is skipped: loading it reports why.
    """
    try:
        config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        with torch.device("meta"):
            cls.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers, or the checkpoint's own code; loading the model reports it
        _log.info("the imports of %s are not counted apart: %s", path, describe(error))


def _not_of_the_text(path: Path) -> list[str]:
    """List what the checkpoint of a causal language model may hold beyond the model, according to its configuration."""
    config = read_json(path / "config.json")
    text = config.get("text_config") or config
    allowed = [*_CONSTANTS, _FURTHER_TOKENS]
    if "vision_config" in config or "audio_config" in config:
        allowed.append(_TOWERS)
    if config.get("quantization_config"):
        allowed.append(_RUNTIME_SCALES)
    # DeepSeek and GLM store them behind the model's own layers.
    for further in range(int(text.get("num_nextn_predict_layers") or 0)):
        allowed.append(rf"(.*\.)?layers\.{int(text['num_hidden_layers']) + further}\..*")
    return allowed


def _check_tied(model: Any, source: str) -> None:  # Any: transformers
    """Refuse a model that transformers left untied because the file has two different tensors."""
    if not hasattr(model, "all_tied_weights_keys"):
        return
    apart = sorted(model.get_expanded_tied_weights_keys(all_submodels=True).keys() - model.all_tied_weights_keys.keys())
    if apart:
        raise untied_head(source, apart[0])
