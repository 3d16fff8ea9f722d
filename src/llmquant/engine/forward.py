"""Runs a plan on a causal language model of transformers, and scores tokens where they are predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from transformers import DynamicCache

from llmquant.engine.support import cache_name
from llmquant.engine.trie import Forward, Target

_ROWS = 64  # logits in float32 at a time: 32 MiB for a vocabulary of 128,000
_FULL, _SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True)
class Scored:
    """A scored token.

    Attributes:
        target: the token.
        logprob: natural logarithm of its probability, computed in float32.
        lead: its logit minus the largest logit of the other tokens: positive if it is the most probable token.
    """

    target: Target
    logprob: float
    lead: float


class TreeReader:
    """Reads rows of trees; keeps the keys and values of one path.

    Args:
        module: a model that `support.why_not` accepts.
    """

    def __init__(self, module: Any) -> None:  # Any: transformers has no types
        self._module = module
        self._cache_name = cache_name(module)
        self._config = module.config.get_text_config(decoder=True)
        self._kept: list[tuple[torch.Tensor, torch.Tensor]] = []  # keys and values per layer

    def read(self, forward: Forward) -> Iterator[Scored]:
        """Run a forward pass and score its targets."""
        rows, device = forward.rows, self._module.device
        width = max(len(row.tokens) for row in rows)
        ids, positions = (_padded([getattr(row, name) for row in rows], width) for name in ("tokens", "positions"))
        # A padding token sees itself, because a row of the mask without a visible token gives NaN.
        ends = _padded([[*row.ends, *range(len(row.ends) + 1, width + 1)] for row in rows], width)
        scored = torch.zeros(len(rows), width, dtype=torch.bool)
        for number, row in enumerate(rows):
            scored[number, [slot for slot, _ in row.targets]] = True
        cache = self._cache(forward) if forward.past or forward.keep else None
        with torch.no_grad():
            logits = self._module(
                input_ids=ids.to(device),
                position_ids=positions.to(device),
                attention_mask=self._masks(positions, ends, forward.past),
                use_cache=cache is not None,
                logits_to_keep=scored.to(device) if scored.any() else 1,
                **{self._cache_name: cache},
            ).logits
            if cache is not None and forward.keep:
                self._kept = [(layer.keys, layer.values) for layer in cache.layers]
            yield from _score(logits, [targets for row in rows for _, targets in row.targets])

    def _cache(self, forward: Forward) -> DynamicCache:
        self._kept = [(keys[:, :, : forward.past], values[:, :, : forward.past]) for keys, values in self._kept]
        if not forward.past:
            return DynamicCache()
        # Without the configuration, so that sliding layers keep all tokens: the masks have the windows.
        return DynamicCache(self._kept)

    def _masks(self, positions: torch.Tensor, ends: torch.Tensor, past: int) -> torch.Tensor | dict[str, torch.Tensor]:
        """Build the mask for each kind of layer: one mask if all layers are of one kind."""
        place = torch.arange(positions.shape[1])
        visible = (place <= place[:, None]) & (place[:, None] < ends[:, None])
        visible = torch.nn.functional.pad(visible, (past, 0), value=True)
        before = torch.arange(past).expand(len(positions), past)
        distance = positions[:, :, None] - torch.cat([before, positions], 1)[:, None]
        masks = {}
        for kind in self._kinds():
            seen = visible & (distance < self._config.sliding_window) if kind == _SLIDING else visible
            mask = torch.zeros(seen.shape, dtype=self._module.dtype)
            mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
            masks[kind] = mask[:, None].to(self._module.device)
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _kinds(self) -> set[str]:
        found = getattr(self._config, "layer_types", None)
        return set(found or [_SLIDING if getattr(self._config, "sliding_window", None) else _FULL])


def free_bytes(device: torch.device) -> int:
    """Return the free memory of a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def _padded(rows: Sequence[Sequence[int]], width: int) -> torch.Tensor:
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])


def _score(logits: torch.Tensor, targets: Sequence[Sequence[Target]]) -> Iterator[Scored]:
    """Score targets by the logits that predict them; ``(1, places, vocabulary)`` or ``(places, vocabulary)``."""
    for first in range(0, len(targets), _ROWS):
        here = targets[first : first + _ROWS]
        part = logits[first : first + len(here)].float()
        flat = [(place, target) for place, found in enumerate(here) for target in found]
        places = torch.tensor([place for place, _ in flat], device=part.device)
        tokens = torch.tensor([target.token for _, target in flat], device=part.device)
        wanted = part[places, tokens]
        logprobs = wanted - part.logsumexp(-1)[places]
        best, most_probable = part.max(-1)
        part.scatter_(1, most_probable[:, None], -torch.inf)
        leads = wanted - torch.where(most_probable[places] == tokens, part.amax(-1)[places], best[places])
        found = zip(flat, logprobs.tolist(), leads.tolist(), strict=True)
        yield from (Scored(target, logprob, lead) for (_, target), logprob, lead in found)
