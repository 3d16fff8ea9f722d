"""Replace linear layers by one function, and a quantizer that does this: applied, counted and read back here."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from llmquant.errors import PluginError, UnsupportedError
from llmquant.loading.memory import STATE_ATTRIBUTE, elements_by_kind, own_tensors, stored_elements
from llmquant.plugins.quantizer import AppliedQuantization, Options, Quantizer

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

# The attribute of a new layer with the number of weights that it stands for.
_WEIGHTS = "llmquant_weights"


@torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
def replace_linear(
    module: torch.nn.Module, replace: Callable[[torch.nn.Linear], torch.nn.Module]
) -> Mapping[str, torch.nn.Module]:
    """Replace every linear layer of `module` except a language model's head; a shared layer is replaced once.

    The layers may be empty, on the meta device: then `replace` returns a layer for tensors that are loaded later.

    Args:
        replace: returns a new module, or the same layer with other weights; the same layer with the same weights stays
            unquantized.

    Returns:
        The quantized layers by name.

    Raises:
        PluginError: if `replace` returns no module, or the new layer declares a tensor that it does not have.
    """
    head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    new: dict[torch.nn.Module, torch.nn.Module] = {}
    quantized: dict[str, torch.nn.Module] = {}
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if not isinstance(layer, torch.nn.Linear) or layer is head:
            continue
        if layer not in new:
            before = layer.weight.clone()
            new[layer] = replace(layer)
            _check_layer(new[layer], name)
            if new[layer] is layer and torch.equal(layer.weight, before):
                continue
            setattr(new[layer], _WEIGHTS, before.numel())
        if hasattr(new[layer], _WEIGHTS):
            module.set_submodule(name, new[layer])
            quantized[name] = new[layer]
    return quantized


def _check_layer(layer: object, name: str) -> None:
    if not isinstance(layer, torch.nn.Module):
        raise PluginError(f"replace returned {type(layer).__name__} for {name}", hint="Return a torch.nn.Module.")
    missing = [tensor for tensor in getattr(layer, STATE_ATTRIBUTE, ()) if not hasattr(layer, tensor)]
    if missing:
        raise PluginError(
            f"{type(layer).__name__}.{STATE_ATTRIBUTE} names {missing[0]!r}, which the layer does not have",
            hint="Name the attributes that hold its scales, for example ('scale',).",
        )


class ReplacesLinear(Quantizer[Options]):
    """Replaces every linear layer except the head, after the model was loaded in bfloat16.

    A subclass defines `replace`. A new layer's class names its tensors of scales in a tuple ``quantization_state``, and
    its other tensors count as weights. `applied` counts what the replaced layers store; a method whose codes use fewer
    bits than that returns ``dataclasses.replace(super().applied(module), bits=..., code=...)``.
    """

    @abstractmethod
    def replace(self, layer: torch.nn.Linear) -> torch.nn.Module:
        """Return the quantized layer: a new module, or `layer` itself with other weights, which is a simulation."""

    def load_kwargs(self, model: ModelInfo, ctx: Context) -> LoadKwargs:
        """Return the type in which the model is loaded.

        Raises:
            UnsupportedError: if the checkpoint is quantized already.
        """
        if model.quantized_as:
            raise UnsupportedError(
                f"{model.source} is quantized already ({model.quantized_as})",
                hint="Give the checkpoint that it was made from.",
            )
        return {"dtype": torch.bfloat16}

    def after_load(self, module: torch.nn.Module, *, to_save: bool) -> None:
        """Replace the layers with `replace_linear`.

        Raises:
            PluginError: if `replace` returns no module.
            UnsupportedError: if a checkpoint is wanted, and transformers could not load the new layers from it.
        """
        for name, layer in replace_linear(module, self.replace).items():
            if to_save and type(layer) is not torch.nn.Linear:
                raise UnsupportedError(
                    f"{type(self).__name__} puts {type(layer).__name__} in place of {name}, which transformers "
                    "cannot load from a checkpoint",
                    hint="To save it, define `prepare` and set checkpoint=True in the spec: "
                    "`llmquant new-plugin NAME --kind quantizer --writes-checkpoint` writes such a package.",
                )

    def replaced(self, module: torch.nn.Module) -> dict[torch.nn.Module, int]:
        """Return the layers of `module` that `replace` changed, each with the number of weights that it stands for."""
        return {layer: getattr(layer, _WEIGHTS) for layer in module.modules() if hasattr(layer, _WEIGHTS)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Count what the layers that `replace` has changed store, without biases and declared quantization state."""
        dtypes, stored, size = Counter(stored_elements(module)), Counter[str](), 0
        replaced = self.replaced(module)
        inside = {child for layer in replaced for child in layer.modules()}
        linear = ((name, child) for name, child in module.named_modules() if isinstance(child, torch.nn.Linear))
        for layer in replaced:
            dtypes += elements_by_kind(layer)["buffers"]
            for child in layer.modules():
                beside = {id(getattr(child, name, None)) for name in ("bias", *getattr(child, STATE_ATTRIBUTE, ()))}
                for tensor in own_tensors(child):
                    if id(tensor) not in beside:
                        stored[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
                        size += tensor.numel() * tensor.element_size()
        code = max(stored, key=lambda dtype: stored[dtype], default="none")
        simulated = all(type(layer) is torch.nn.Linear for layer in replaced)
        computes = next((str(p.dtype) for p in module.parameters() if p.is_floating_point()), "torch.bfloat16")
        return AppliedQuantization(
            method=type(self).__name__.lower(),
            code=code,
            bits=8 * size / (sum(replaced.values()) or 1) or 16.0,
            compute_dtype=computes.removeprefix("torch."),
            dtypes=dict(dtypes),
            layers_quantized=len(replaced),
            layers_left=tuple(name for name, child in linear if child not in inside),
            note=f"simulated: the quantized weights are stored as {code}" if simulated else "",
        )
