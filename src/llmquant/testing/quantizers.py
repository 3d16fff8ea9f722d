"""Checks of quantizers, on a tiny causal language model on the CPU."""

from __future__ import annotations

import importlib.util
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmquant.errors import PluginError, RequestError
from llmquant.planning.lookup import inspect_subject
from llmquant.plugins.evaluator import LoadedModel
from llmquant.plugins.registry import registry
from llmquant.storage.cache import Cache
from llmquant.study.experiment import ModelRequest
from llmquant.study.run import finite_json
from llmquant.testing.loaded import load_model, load_vectors
from llmquant.testing.models import tiny_causal_lm, tiny_embedder
from llmquant.testing.traces import load_recorded, refuse_changes
from llmquant.testing.trial import NotApplicable, Trial, contents

_ODD_WIDTH = 40  # not a multiple of 16, 32, 64 or 128


def loads_as_applied(trial: Trial) -> None:
    """The model loads, and `applied` reports what its modules hold: dtypes, layers, bits and what was requested.

    To fix: read the report from the loaded modules; `llmquant.loading.memory.stored_elements(module)` counts elements.
    """
    _accepts(trial)
    subject = _subject(trial)
    finite_json(asdict(subject.applied))


def original_is_unchanged(trial: Trial) -> None:
    """Preparing and loading do not change the checkpoint that they read.

    To fix: write only to ``out`` or ``ctx.files``.
    """
    _accepts(trial)
    _subject(trial)
    before = contents(Path(trial.model))
    _load(trial, Cache(trial.folder / "unchanged"))
    changed = sorted(name for name, data in contents(Path(trial.model)).items() if before.get(name) != data)
    if changed or contents(Path(trial.model)) != before:
        raise PluginError(f"it changed {', '.join(changed) or 'files'} of the original checkpoint")


def text_is_generated(trial: Trial) -> None:
    """The quantized model computes finite logits, and continues a sentence with more than one token.

    To fix: compare the layers' outputs with those of the unquantized model.
    """
    from llmquant.loading.causal_lm import sanity_check

    _accepts(trial)
    sanity_check(_subject(trial))


def size_is_predicted(trial: Trial) -> None:
    """`weight_bytes` predicts the bytes of the loaded weights within 1%, scales and other state included.

    To fix: count what `llmquant.loading.memory.weight_bytes(module)` counts, or return ``None`` for no prediction.
    """
    from llmquant.loading.memory import weight_bytes

    _accepts(trial)
    predicted = trial.chosen.ask("weight_bytes", trial.info, "cpu")
    if predicted is None:
        raise NotApplicable("the plugin predicts no size")
    if isinstance(predicted, bool) or not isinstance(predicted, int):
        raise PluginError(f"weight_bytes returned {predicted!r}", hint="Return a whole number of bytes, or None.")
    held = weight_bytes(_subject(trial).module).total
    if abs(predicted - held) > 0.01 * held:
        raise PluginError(f"weight_bytes predicts {predicted} bytes, and the loaded weights hold {held}")


def loading_repeats(trial: Trial) -> None:
    """Preparing and loading again gives the same logits: all randomness comes from the seed.

    To fix: use ``ctx.seed`` for every random choice.
    """
    import torch

    _accepts(trial)
    first, second = (_logits(each) for each in (_subject(trial), _load(trial, Cache(trial.folder / "again"))))
    if not torch.equal(first, second):
        raise PluginError(f"the logits moved by {(first - second).abs().max().item():.2g} when it was loaded again")


def rows_are_independent(trial: Trial) -> None:
    """A text's logits do not depend on the other texts in its batch, unless the spec says ``row_independent=False``.

    To fix: scale activations token by token, or declare ``row_independent=False``.
    """
    from llmquant.loading.row_independence import check_row_independence

    _accepts(trial)
    if not trial.chosen.row_independent:
        raise NotApplicable("the plugin declares row_independent=False")
    check_row_independence(_subject(trial), trial.call)


def shared_prefixes_can_be_read_once(trial: Trial) -> None:
    """The engine, which reads what prompts share once, gives the same log-likelihoods as whole prompts.

    To fix: as for `rows_are_independent`; results of a token may depend on earlier tokens of its text only.
    """
    from llmquant.testing.prefixes import largest_difference

    _accepts(trial)
    if not trial.chosen.row_independent:
        raise NotApplicable("the plugin declares row_independent=False")
    moved, limit = largest_difference(_subject(trial))
    if not moved <= limit:
        raise PluginError(f"log-likelihoods moved by {moved:.2g} nats, at most {limit:g} are rounding")


def other_widths_are_refused_early(trial: Trial) -> None:
    """A model with 40 features per row either loads, or is refused by `check` before anything is loaded.

    To fix: raise an `UnsupportedError` in ``check(model, device)`` for shapes that the method cannot quantize.
    """
    _accepts(trial)
    folder = tiny_causal_lm(trial.folder / "odd", width=_ODD_WIDTH)
    info = inspect_subject(ModelRequest(str(folder)), registry(), trial.cache)
    try:
        trial.chosen.ask("check", info, "cpu")
    except RequestError:
        return
    try:
        load_model(trial, trial.chosen, info, trial.cache)
    except Exception as error:
        raise PluginError(f"check accepts a model with rows of {_ODD_WIDTH}, and it does not load: {error}") from error


def embedders_are_quantized(trial: Trial) -> None:
    """A quantizer that accepts embedders loads one, and its vectors are finite.

    To fix: do not expect a causal LM's head; or leave ``embedder`` out of ``accepts``.
    """
    if "embedder" not in trial.spec.accepts:
        raise NotApplicable("the plugin does not accept embedders")
    if importlib.util.find_spec("sentence_transformers") is None:
        raise NotApplicable('it needs sentence-transformers: pip install "llmquant[embed]"')
    folder = tiny_embedder(trial.folder / "embedder", width=128)  # the usual group sizes divide it
    load_vectors(trial, trial.chosen, inspect_subject(ModelRequest(str(folder)), registry(), trial.cache))


def nothing_is_left_behind(trial: Trial) -> None:
    """Loading changes no setting of the process: dtype, threads, modes, environment, folder, functions, threads.

    To fix: restore every setting, for example with ``try`` and ``finally``.
    """
    _accepts(trial)
    refuse_changes(trial)


def _accepts(trial: Trial) -> None:
    if "causal_lm" not in trial.spec.accepts:
        raise NotApplicable("the plugin does not accept causal language models")


def _subject(trial: Trial) -> LoadedModel:
    """Return the quantized model, loaded once."""

    def make() -> LoadedModel:
        info = trial.info
        subject: LoadedModel = load_recorded(trial, lambda: load_model(trial, trial.chosen, info, trial.cache), info)
        return subject

    return trial.once("subject", make)


def _load(trial: Trial, cache: Cache) -> LoadedModel:
    return load_model(trial, trial.chosen, trial.info, cache)


def _logits(subject: LoadedModel) -> Any:  # Any: a tensor
    import torch

    inputs = subject.tokenizer("The quick brown fox counts the sacks of barley.", return_tensors="pt")
    with torch.inference_mode():
        return subject.module(inputs.input_ids).logits.float()


CHECKS = (
    loads_as_applied,
    original_is_unchanged,
    text_is_generated,
    size_is_predicted,
    loading_repeats,
    rows_are_independent,
    shared_prefixes_can_be_read_once,
    other_widths_are_refused_early,
    embedders_are_quantized,
    nothing_is_left_behind,
)
