"""Keys and values of several texts at once, each text in a slot of its own and of its own length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from llmquant.engine.support import cache_name

_STEP = 16  # tokens for which memory is touched at a time
_FULL, _SLIDING = "full_attention", "sliding_attention"


class Slots:
    """Reads tokens into slots.

    Token `p` of a slot's text is at place `p`: a text needs no padding, and what a slot had before is hidden until it
    is overwritten.

    Args:
        module: a model that `support.why_not` accepts.
        count: number of slots.
        tokens: maximum tokens per slot.
    """

    def __init__(self, module: Any, count: int, tokens: int) -> None:  # Any: transformers has no types
        self.count = count
        self.tokens = tokens
        self.past = self.length = 0  # tokens in the longest slot, before and after the current forward pass
        self.places: tuple[torch.Tensor, slice, torch.Tensor]
        self.picked: slice | torch.Tensor
        self._module = module
        self._cache_name = cache_name(module)
        self._config = module.config.get_text_config(decoder=True)
        self._cache = Cache(layer_class_to_replicate=lambda: _Layer(self))

    def read(self, slots: Sequence[int], starts: Sequence[int], tokens: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read the tokens that follow the first `starts` tokens of slots.

        Returns:
            The logits after each slot's last token, ``(slots, vocabulary)``, in the model's dtype.
        """
        width, device = max(map(len, tokens)), self._module.device
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in tokens], device=device)
        positions = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        numbers = torch.tensor(slots, device=device)
        ends = torch.tensor([[len(row) - 1] for row in tokens], device=device)
        self.past, self.length = max(starts), max(starts) + width
        self.places = (numbers[:, None], slice(None), positions)
        consecutive = list(slots) == list(range(slots[0], slots[0] + len(slots)))
        self.picked = slice(slots[0], slots[0] + len(slots)) if consecutive else numbers
        with torch.no_grad():
            logits: torch.Tensor = self._module(
                input_ids=ids,
                # Padding has no position of its own, because there may be none after a prompt's last.
                position_ids=positions.minimum(positions[:, :1] + ends),
                attention_mask=self._masks(positions) if self.past else None,
                use_cache=True,
                logits_to_keep=ends,
                **{self._cache_name: self._cache},
            ).logits
        return logits[:, -1]

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` tokens of a slot into another slot."""
        for layer in self._cache.layers if source != target else ():
            for states in (layer.keys, layer.values):
                states[target, :, :length] = states[source, :, :length]

    def _masks(self, positions: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
        """Build the mask for each kind of layer: one mask if all layers are of one kind."""
        distance = positions[:, None, :, None] - torch.arange(self.length, device=positions.device)
        kinds = getattr(self._config, "layer_types", None)
        window = getattr(self._config, "sliding_window", None)
        masks = {}
        for kind in set(kinds or [_SLIDING if window else _FULL]):
            seen = (distance >= 0) & (distance < window) if kind == _SLIDING else distance >= 0
            mask = torch.zeros(seen.shape, dtype=self._module.dtype, device=positions.device)
            masks[kind] = mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
        return masks if len(masks) > 1 else next(iter(masks.values()))


class _Layer(CacheLayerMixin):  # type: ignore[misc]  # transformers has no types
    """The keys and values of one layer, ``(slots, heads, tokens, width)``."""

    is_sliding = False

    def __init__(self, slots: Slots) -> None:
        super().__init__()
        self._slots = slots

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make slots; a CPU touches their memory when it is needed, since growing by copies would double it."""
        self.keys, self.values = (
            states.new_empty(self._slots.count, states.shape[1], self._slots.tokens, states.shape[3])
            for states in (key_states, value_states)
        )
        self._touched = 0
        self.is_initialized = True

    def update(
        self,
        key_states: torch.Tensor,
        value_states: torch.Tensor,
        *args: Any,  # Any: settings of other kinds of layers
        **settings: Any,  # Any: as above
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the new tokens at their places; return all tokens of the slots that are read."""
        slots = self._slots
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if slots.length > self._touched:
            for states in (self.keys, self.values):
                # A hidden place has weight 0, and 0 times what is left in fresh memory may be NaN.
                states[:, :, self._touched : slots.length + _STEP] = 0
            self._touched = slots.length + _STEP
        for states, new in ((self.keys, key_states), (self.values, value_states)):
            states[slots.places] = new.transpose(1, 2)
        return self.keys[slots.picked, :, : slots.length], self.values[slots.picked, :, : slots.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the number of tokens that are seen, and the first of them."""
        return self._slots.length, 0

    def get_seq_length(self) -> int:
        """Return the number of tokens before the current forward pass."""
        return self._slots.past

    def get_max_length(self) -> int:
        """Return that there is no maximum."""
        return -1
