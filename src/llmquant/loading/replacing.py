"""A quantizer of one function, which replaces a linear layer: it is applied, counted and read back here."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from typing import TYPE_CHECKING

import torch

from llmquant.errors import PluginError, UnsupportedError
from llmquant.loading.memory import elements_by_kind, own_tensors, stored_elements
from llmquant.plugins.quantizer import AppliedQuantization, Options, Quantizer

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.plugins.context import Context, LoadKwargs

# The attribute of a new layer with the number of weights that it stands for.
_WEIGHTS = "llmquant_weights"


class ReplacesLinear(Quantizer[Options]):
    """Replaces every linear layer except the head, after the model was loaded in bfloat16.

    A subclass defines `replace`. `applied` counts what the replaced layers store; a method whose codes use fewer bits
    than that returns ``dataclasses.replace(super().applied(module), bits=..., code=...)``.
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

    @torch.no_grad()  # type: ignore[untyped-decorator]  # torch is not followed
    def after_load(self, module: torch.nn.Module, *, to_save: bool) -> None:
        """Replace the layers; a layer that is used in several places is replaced once.

        Raises:
            PluginError: if `replace` returns no module.
            UnsupportedError: if a checkpoint is wanted, and transformers could not load the new layers from it.
        """
        head = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
        new: dict[torch.nn.Module, torch.nn.Module] = {}
        for name, layer in list(module.named_modules(remove_duplicate=False)):
            if not isinstance(layer, torch.nn.Linear):
                continue
            if layer in new:
                module.set_submodule(name, new[layer])
                continue
            before = layer.weight.clone()
            new[layer] = layer if layer is head else self.replace(layer)
            if not isinstance(new[layer], torch.nn.Module):
                found = type(new[layer]).__name__
                raise PluginError(f"{type(self).__name__}.replace returned {found}", hint="Return a torch.nn.Module.")
            if new[layer] is layer and torch.equal(layer.weight, before):
                continue
            if to_save and type(new[layer]) is not torch.nn.Linear:
                raise UnsupportedError(
                    f"{type(self).__name__} puts {type(new[layer]).__name__} in place of {name}, which transformers "
                    "cannot load from a checkpoint",
                    hint="To save it, define `prepare` and set checkpoint=True in the spec.",
                )
            setattr(new[layer], _WEIGHTS, before.numel())
            module.set_submodule(name, new[layer])

    def replaced(self, module: torch.nn.Module) -> dict[torch.nn.Module, int]:
        """Return the layers of `module` that `replace` changed, each with the number of weights that it stands for."""
        return {layer: getattr(layer, _WEIGHTS) for layer in module.modules() if hasattr(layer, _WEIGHTS)}

    def applied(self, module: torch.nn.Module) -> AppliedQuantization:
        """Count what the layers that `replace` has changed store, without their biases."""
        dtypes, stored, size = Counter(stored_elements(module)), Counter[str](), 0
        replaced = self.replaced(module)
        inside = {child for layer in replaced for child in layer.modules()}
        linear = ((name, child) for name, child in module.named_modules() if isinstance(child, torch.nn.Linear))
        for layer in replaced:
            dtypes += elements_by_kind(layer)["buffers"]
            for tensor in (tensor for child in layer.modules() for tensor in own_tensors(child)):
                if tensor is not getattr(layer, "bias", None):
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
