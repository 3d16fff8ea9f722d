"""The fidelity evaluator: compares a variant's predictions with the baseline's, token by token, on the same text.

The baseline leaves its final hidden states, which are much smaller than its logits. A variant's run makes the
baseline's logits of them again, some rows at a time, with the baseline's head; the variant's logits go through the
variant's own head.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmquant.errors import RunError
from llmquant.evaluators.fidelity.divergence import METRICS, Compare, divergence, working_space
from llmquant.evaluators.fidelity.head import Head, checked_head, final_states, linear_head, project_with, stored_name
from llmquant.evaluators.fidelity.llama_cpp import LLAMA_CPP_METRICS, llama_cpp_divergence, llama_cpp_windows
from llmquant.evaluators.fidelity.measures import Scored, measurements, scores_of
from llmquant.evaluators.fidelity.options import FidelityOptions
from llmquant.evaluators.fidelity.precision import computing_in
from llmquant.evaluators.fidelity.reference import Floor, HeadWeight, Reference, write_reference
from llmquant.evaluators.perplexity.reading import Cut, Floats, TextWindows, read_windows
from llmquant.evaluators.perplexity.text import read_text
from llmquant.evaluators.perplexity.windows import Window, sliding_windows
from llmquant.loading.causal_lm import materialize
from llmquant.loading.memory import give_back_freed, is_out_of_memory
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator, LoadedModel
from llmquant.study.call import Json
from llmquant.study.run import REFERENCE_FILE, Result

_LOGITS = 1 << 21  # logits per model and step: 16 MiB in float64, of which a step holds three
# The floor is measured in so many tokens and windows, or in all if there are fewer; six windows give an interval.
_FLOOR_TOKENS, _FLOOR_WINDOWS = 4096, 8
_NO_RANKING = (
    "A small KL divergence from the baseline does not mean that nothing is lost: near the baseline, KL divergence does "
    "not rank variants (arXiv 2606.19558). Decide by tasks."
)
_DEFINITIONS: Mapping[str | None, tuple[Cut, Compare, Sequence[str]]] = {
    None: (sliding_windows, divergence, METRICS),
    "llama.cpp": (llama_cpp_windows, llama_cpp_divergence, LLAMA_CPP_METRICS),
}


class Fidelity(Evaluator[FidelityOptions]):
    """Compares a variant's predictions with those of the baseline.

    Args:
        options: the text and its windows, the definitions, and whether to measure the noise floor.
    """

    def fetch(self, ctx: Context) -> None:
        """Read the text.

        Raises:
            RunError: if the text is unavailable.
        """
        read_text(self.options.text, ctx)

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterator[Result]:
        """Yield one result; the baseline's is zero divergence and its noise floor.

        Raises:
            RunError: if the text is unavailable or too short, the baseline read other tokens, or a model returns NaN.
            UnsupportedError: if a head is not an ordinary linear layer.
        """
        cut, compare, metrics = _DEFINITIONS[self.options.compat]
        text = read_windows(self.options, subject, ctx, cut)
        if ctx.reference is None:
            with torch.no_grad():
                floor = self._write(subject, text, compare, ctx)
            # Compared with itself.
            tokens = sum(w.scored for w in text.windows)
            numbers: Mapping[str, Floats] = {name: np.full(tokens, float("agreement" in name)) for name in metrics}
        else:
            reference = Reference(ctx.reference)
            reference.check(text)
            floor = reference.floor()
            with torch.no_grad():
                numbers = self._compare(subject, text, reference, compare, ctx)
        scored = Scored.of(text, numbers, is_baseline=ctx.reference is None)
        counts = {what: {label: int(n.sum()) for label, n in bins.items()} for what, bins in scored.bins().items()}
        details: dict[str, Json] = {**text.details, "tokens_by": counts, "notes": [_NO_RANKING]}
        if floor is not None:
            details |= {"floor_dtype": floor.dtype, "floor_windows": len(floor.windows)}
        found = measurements(scored, floor, ctx.seed, independent_tokens=self.options.compat is not None)
        # The divergence by position and confidence is a mean over a part of the tokens only.
        yield Result(text.name, found, text.samples(scores_of(scored, floor)), details, not_means=["kl_divergence"])

    def _write(self, subject: LoadedModel, text: TextWindows, compare: Compare, ctx: Context) -> Floor | None:
        """Write the baseline's file, and return the noise floor."""
        module = subject.module
        weight, bias = linear_head(module)
        head = checked_head(module, _first(text, module.device), project_with(weight, bias))
        found: list[Tensor] = []
        total = sum(w.scored for w in text.windows)
        for batch, ids in text.batches(self.options.batch_size, module.device):
            found.append(_scored(final_states(module, ids)[0], batch).cpu())
            ctx.progress(sum(map(len, found)), total)
        states = torch.cat(found)
        floor = self._floor(module, text, states, head, compare) if self.options.floor else None
        name = stored_name(materialize(subject.info, ctx.cache), module)
        write_reference(ctx.files / REFERENCE_FILE, text, states, HeadWeight(weight, bias, name), head, floor)
        return floor

    def _compare(
        self, subject: LoadedModel, text: TextWindows, reference: Reference, compare: Compare, ctx: Context
    ) -> dict[str, Floats]:
        """Compare the model with the baseline; return numbers per token."""
        module = subject.module
        head = checked_head(module, _first(text, module.device), module.get_output_embeddings())
        baseline = reference.head(materialize(subject.info, ctx.cache), head.device)
        if head.vocabulary != baseline.vocabulary:
            raise RunError(
                f"fidelity: the baseline has logits for {baseline.vocabulary} tokens, the variant for "
                f"{head.vocabulary}, so that their probabilities are not about the same tokens",
                hint="Use a variant whose embedding is not padded or extended.",
            )
        found: list[dict[str, Floats]] = []
        place, total = 0, sum(w.scored for w in text.windows)
        for batch, ids in text.batches(self.options.batch_size, module.device):
            states = _scored(final_states(module, ids)[0], batch)
            theirs = reference.states(place, place + len(states))
            found.append(_per_token(baseline, theirs, head, states, _right(ids, batch), compare))
            place += len(states)
            ctx.progress(place, total)
        return {name: np.concatenate([numbers[name] for numbers in found]) for name in found[0]}

    def _floor(self, module: Any, text: TextWindows, states: Tensor, head: Head, compare: Compare) -> Floor:
        """Compare the baseline with itself in another dtype and batch size, in evenly spaced windows."""
        dtype = torch.bfloat16 if states.dtype == torch.float32 else torch.float32
        sizes = [w.scored for w in text.windows]
        wanted = max(_FLOOR_WINDOWS, -(-_FLOOR_TOKENS * len(sizes) // sum(sizes)))
        chosen = sorted({number * len(sizes) // wanted for number in range(wanted)})
        parts = [states.split(sizes)[number] for number in chosen]
        other = replace(head, project=module.get_output_embeddings())
        sums: list[float] = []
        some = replace(text, windows=[text.windows[number] for number in chosen])
        for batch, ids in some.batches(2 if self.options.batch_size == 1 else 1, module.device):
            theirs = torch.cat(parts[len(sums) : len(sums) + len(batch)])
            try:
                with computing_in(module, dtype):
                    mine = _scored(final_states(module, ids)[0], batch)
                    numbers = _per_token(head, theirs, other, mine, _right(ids, batch), compare)
            except RuntimeError as error:  # torch's, where a model's own code mixes dtypes
                if is_out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
                raise RunError(
                    f"fidelity: the noise floor in {dtype} failed: {reason}", hint="Use floor=false."
                ) from error
            sums += numbers["kl_divergence"].reshape(len(batch), -1).sum(axis=1).tolist()
        return Floor(np.array(chosen), np.array(sums), str(dtype).removeprefix("torch."))


def _per_token(
    baseline: Head, theirs: Tensor, variant: Head, mine: Tensor, right: Tensor, compare: Compare
) -> dict[str, Floats]:
    """Compute both models' logits some rows at a time, and compare them.

    Raises:
        RunError: if a number is NaN.
    """
    rows = max(1, _LOGITS // baseline.vocabulary)
    space = working_space(min(rows, len(mine)), baseline.vocabulary, variant.device)
    found: dict[str, list[Tensor]] = defaultdict(list)
    for some, own, following in zip(theirs.split(rows), mine.split(rows), right.split(rows), strict=True):
        give_back_freed()
        numbers = compare(baseline.logits(some), variant.logits(own), following.to(variant.device), space)
        for name, values in numbers.items():
            found[name].append(values.cpu())
    whole = {name: torch.cat(values).double().numpy() for name, values in found.items()}
    wrong = np.isnan(whole["kl_divergence"])
    if wrong.any():
        raise RunError(f"a model returns NaN for {int(wrong.sum())} of {len(wrong)} tokens")
    return whole


def _scored(states: Tensor, batch: Sequence[Window]) -> Tensor:
    """Return the ``(tokens, width)`` states from which the scored tokens of a batch are predicted."""
    return states[:, -batch[0].scored :].flatten(0, 1)


def _right(ids: Tensor, batch: Sequence[Window]) -> Tensor:
    """Return the ``(tokens,)`` scored tokens of a batch."""
    return ids[:, -batch[0].scored :].flatten()


def _first(text: TextWindows, device: torch.device) -> Tensor:
    """Return the first window's token ids."""
    return next(text.batches(1, device))[1]
