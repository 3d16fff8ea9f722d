"""The rotary scaling of a GGUF file, which transformers drops when it converts the file."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from llmquant.errors import ModelError

# Llama 3.1's and 3.2's settings; the files hold only the divisors that follow from them.
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def restore_rope(config: Any, path: Path) -> None:  # Any: transformers has no types
    """Give the configuration of a converted model the rotary scaling of its file.

    If layers are of two kinds, only those that see all tokens are scaled, as in Gemma 3.

    Raises:
        ModelError: for a scaling that is neither linear nor Llama 3's.
    """
    from gguf import GGUFReader  # an extra

    reader = GGUFReader(path)
    rope = getattr(config, "rope_parameters", None) or {}
    rope = rope.get("full_attention", rope)
    kind = reader.fields["general.architecture"].contents()

    def said(key: str) -> Any:  # Any: GGUF values
        field = reader.fields.get(f"{kind}.rope.scaling.{key}")
        return None if field is None else field.contents()

    scaling, found = said("type"), {tensor.name: tensor.data for tensor in reader.tensors if "rope_f" in tensor.name}
    if (scaling in (None, "none") and not found) or rope.get("rope_type", "default") != "default":
        return
    if scaling == "linear" and rope and not found:
        rope |= {"rope_type": "linear", "factor": float(said("factor") or 1.0)}
        return
    if scaling in (None, "none") and rope and list(found) == ["rope_freqs.weight"]:
        divisors = torch.tensor(found["rope_freqs.weight"])
        settings = {"rope_type": "llama3", "factor": float(divisors.max()), **_LLAMA3}
        expected = _divisors(config, settings)
        if expected.shape == divisors.shape and torch.allclose(expected, divisors, rtol=1e-4):
            rope |= settings
            return
    raise ModelError(
        f"{path.name} scales its rotary embedding ({scaling or ', '.join(found)}), which transformers drops when it "
        "converts the file",
        hint="Use the original checkpoint as the model.",
    )


def _divisors(config: Any, settings: dict[str, Any]) -> torch.Tensor:  # Any: as above
    """Return by what settings divide the rotary frequencies."""
    scaled = copy.deepcopy(config)
    plain, _ = ROPE_INIT_FUNCTIONS["linear"](_with(scaled, {"rope_type": "linear", "factor": 1.0}), torch.device("cpu"))
    ours, _ = ROPE_INIT_FUNCTIONS["llama3"](_with(scaled, settings), torch.device("cpu"))
    divided: torch.Tensor = plain / ours
    return divided


def _with(config: Any, settings: dict[str, Any]) -> Any:  # Any: as above
    config.rope_parameters = {**config.rope_parameters, **settings}
    return config
