"""The head: from the final hidden states, after the last norm, to logits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import linear

from llmquant.errors import RunError, UnsupportedError

# Settings with which a model scales its logits, and the power to which it takes them.
_SCALES = (("logit_scale", 1), ("logits_scaling", -1), ("logits_scaling", 1), ("lm_head_multiplier", 1))
_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
_CHECKED = 64  # tokens whose logits are computed in both ways
_INSTEAD = "Use perplexity, which needs the model's logits only."


@dataclass(frozen=True)
class Head:
    """How a model turns final hidden states into logits: ``cap * tanh(scale * project(states) / cap)``.

    Attributes:
        project: from ``(n, width)`` states to ``(n, vocabulary)``.
        vocabulary: number of logits per token.
        device: where `project` computes.
        cap: ``None`` for no soft cap.
    """

    project: Callable[[Tensor], Tensor]
    vocabulary: int
    device: torch.device
    scale: float = 1.0
    cap: float | None = None

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of ``(n, width)`` states in the model's own arithmetic, as float32."""
        found = self.project(states.to(self.device))
        if self.scale != 1:
            found = found * self.scale
        if self.cap is not None:
            found = torch.tanh(found / self.cap) * self.cap
        return found.float()


def final_states(module: Any, ids: Tensor, *, only_last: bool = True) -> tuple[Tensor, Tensor]:  # Any: transformers
    """Run a model and catch the input of its head; gradients must be off.

    Args:
        ids: ``(n, length)`` token ids; the last of each row is not read.
        only_last: let the head compute only the last token's logits, which saves time and memory.

    Returns:
        ``(n, length - 1, width)`` hidden states, and the model's own logits.

    Raises:
        UnsupportedError: if the model has no head, or does not call its head once with the states of all tokens.
    """
    head = module.get_output_embeddings()
    if head is None:
        raise UnsupportedError(f"fidelity: {type(module).__name__} has no output embeddings", hint=_INSTEAD)
    caught: list[Tensor] = []

    def catch(_: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:  # Any: as in torch
        caught.extend(inputs[:1])
        return (inputs[0][:, -1:], *inputs[1:]) if only_last and inputs else None

    handle = head.register_forward_pre_hook(catch)
    try:
        logits = module(input_ids=ids[:, :-1], use_cache=False).logits
    finally:
        handle.remove()
    if len(caught) != 1 or caught[0].shape[:-1] != ids[:, :-1].shape:
        raise UnsupportedError(
            f"fidelity: the head of {type(module).__name__} does not read the final states of all tokens at once",
            hint=_INSTEAD,
        )
    return caught[0], logits


def checked_head(module: Any, ids: Tensor, project: Callable[[Tensor], Tensor]) -> Head:  # Any: transformers
    """Find how a model turns the output of `project` into logits, by comparing one chunk with its own logits.

    Raises:
        RunError: if the model returns NaN.
        UnsupportedError: if neither the plain output nor a scale or soft cap that the configuration declares gives the
            model's own logits.
    """
    states, logits = final_states(module, ids[:1, : _CHECKED + 1], only_last=False)
    own = logits[0].float()
    if own.isnan().any():
        raise RunError(f"{type(module).__name__} returns NaN")
    # Twice the largest rounding error of a number, and as much again for sums in another order.
    tolerance = max(4 * torch.finfo(logits.dtype).eps, 1e-4) * float(own[own.isfinite()].abs().max())
    found = float("nan")
    for scale, cap in product(*_declared(module.config.get_text_config())):
        head = Head(project, own.shape[-1], states.device, scale, cap)
        computed = head.logits(states[0])
        if computed.shape != own.shape:
            found = float("inf")
            break
        if torch.allclose(computed, own, rtol=0, atol=tolerance):
            return head
        found = float((computed - own).abs().max())
    raise UnsupportedError(
        f"fidelity: the logits of {type(module).__name__} are not those of a linear head with a declared scale or soft "
        f"cap: they differ by {found:.3g}",
        hint=_INSTEAD,
    )


def _declared(config: Any) -> tuple[list[float], list[float | None]]:  # Any: transformers' configurations
    """Return the scales and soft caps to try, those of the configuration first."""
    scales = [float(value) ** power for name, power in _SCALES if (value := getattr(config, name, None))]
    caps = [float(value) for name in _CAPS if (value := getattr(config, name, None))]
    return [*scales, 1.0], [*caps, None]


def linear_head(module: Any) -> tuple[Tensor, Tensor | None]:  # Any: transformers
    """Return the weight and bias of a model's head.

    Raises:
        UnsupportedError: if the head is not an ordinary linear layer with floating-point weights.
    """
    head = module.get_output_embeddings()
    weight, bias = getattr(head, "weight", None), getattr(head, "bias", None)
    plain = isinstance(weight, Tensor) and type(weight.data) is Tensor and weight.is_floating_point()
    if weight is None or not plain or weight.ndim != 2:
        raise UnsupportedError(
            f"fidelity: the baseline's head is {type(head).__name__}, not a linear layer with floating-point weights",
            hint="Compare with a baseline in full precision.",
        )
    return weight.data, None if bias is None else bias.data


def project_with(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Return the linear function of a head."""
    return lambda states: linear(states, weight, bias)


def stored_name(folder: Path, module: Any) -> str | None:  # Any: transformers
    """Return the tensor of the checkpoint in `folder` that is the head's weight; ``None`` if no tensor is."""
    weight = module.get_output_embeddings().weight
    names = [name for name, found in module.named_parameters(remove_duplicate=False) if found is weight]
    for file, name in _tensors(folder):
        # Base models are stored without the prefix under which transformers holds their parameters.
        if any(known == name or known.endswith(f".{name}") for known in names):
            with safe_open(file, framework="pt") as opened:
                if torch.equal(opened.get_tensor(name).to(weight.dtype), weight.data.cpu()):
                    return name
    return None


def read_weight(folder: Path, name: str, dtype: torch.dtype) -> Tensor | None:
    """Read a tensor of a checkpoint; ``None`` if it is missing."""
    for file, found in _tensors(folder):
        if found == name:
            with safe_open(file, framework="pt") as opened:
                tensor: Tensor = opened.get_tensor(name)
            return tensor.to(dtype)
    return None


def tensor_digest(weight: Tensor) -> str:
    """Return the digest of a tensor's bytes."""
    numbers = weight.detach().cpu().contiguous().view(torch.uint8).numpy()
    return f"sha256:{hashlib.sha256(numbers).hexdigest()}"


def _tensors(folder: Path) -> Iterator[tuple[Path, str]]:
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names = list(opened.keys())
        for name in names:
            yield file, name
