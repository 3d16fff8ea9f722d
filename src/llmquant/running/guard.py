"""Detects what a third-party evaluator changed for later experiments: weights, model, process.

::

    before = Snapshot.take(subject)
    ...  # evaluate
    for change in before.undo(): ...
"""

from __future__ import annotations

import copy
import hashlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch
import transformers

from llmquant.loading.memory import held_bytes, kept_bytes, own_tensors, weight_bytes
from llmquant.loading.strict import warm_imports
from llmquant.running.guarded_process import (
    Functions,
    Setting,
    child_processes,
    functions,
    process_settings,
    put_back,
    stop_new,
)

if TYPE_CHECKING:
    from llmquant.models.info import ModelInfo
    from llmquant.storage.cache import Cache

# Sums over a prime number of columns, so that swapped rows of a usual width are noticed.
_COLUMNS = 4093
_SHOWN = 3
_KEPT_MEMORY = 224 * 2**20  # bytes; imports of evaluators took up to 180 MiB
_MEMORY = "the memory of the process, which grew by"
_LONG = 100_000
_PROBE = "The 3 quick brown foxes, naïve at 12:30 o'clock, jumped over 4,096 dogs."
_SCALARS = (bool, int, float, str, type(None))
# Rotary embeddings of these types change their frequencies after a longer text.
_FREQUENCIES_CHANGE = frozenset({"dynamic", "longrope"})

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Change:
    """A change left by an evaluator.

    Attributes:
        what: name of the changed thing, as in "the evaluator changed ...".
        now: ``restored``: the change was undone; ``renew``: later experiments need a new process; ``damaged``: later
            experiments need a new process, and the evaluator's own results are wrong.
    """

    what: str
    now: Literal["restored", "renew", "damaged"]


@dataclass(frozen=True)
class Snapshot:
    """The state of a model and a process before an experiment.

    With 135M weights in bfloat16, `take` and `undo` take 0.2 to 0.4 s each on one core in a worker, most of it
    to list and compare functions; the weights take 0.05 s.
    """

    module: torch.nn.Module | None
    layers: Mapping[str, torch.nn.Module]
    weights: Mapping[str, tuple[object, frozenset[str]]]
    loose: Sequence[tuple[str, torch.Tensor, str]]
    settings: Sequence[tuple[Setting, Any]]  # Any: each setting has a type of its own
    functions: Functions
    threads: Sequence[threading.Thread]
    children: Sequence[psutil.Process]
    memory: int

    @classmethod
    def take(cls, subject: Any) -> Snapshot:  # Any: a LoadedModel or LoadedEmbedder
        """Read the state that `undo` compares with."""
        module = getattr(subject, "module", None)
        layers = {} if module is None else dict(module.named_modules())
        settings = [*process_settings(), *_model_settings(layers), *_tokenizer_settings(subject, layers)]
        return cls(
            module,
            layers,
            _weights(layers),
            [(name, tensor, _digest(tensor)) for name, tensor in _loose(layers)],
            [(setting, setting.read()) for setting in settings],
            functions(),
            threading.enumerate(),
            child_processes(),
            kept_bytes(),
        )

    def undo(self, *, loading: bool = False) -> list[Change]:
        """Restore what can be restored, end processes left behind, and list the changes.

        Args:
            loading: whether a model was loaded meanwhile: new functions, threads and processes may be part of the model
                and are only listed, and memory is not compared.
        """
        found = []
        for setting, value in self.settings:
            if not _equal(setting.read(), value):
                restored = _put(setting, value)
                if not (restored and setting.silent):
                    found.append(Change(setting.name, "restored" if restored else "damaged"))
        # An import may replace functions permanently; only a new process has the original ones. Some settings replace
        # functions too, and have been restored by now.
        found += [Change(what, "renew") for what in _shortened(put_back(self.functions, keep=loading), "the function")]
        for what, gone in stop_new(self.threads, self.children, keep=loading):
            found.append(Change(f"{what}, left running", "restored" if gone else "renew"))
        found += [Change(what, "damaged") for what in _shortened(self._damaged(), "the weights of")]
        if not loading and (grown := kept_bytes() - self.memory) > _KEPT_MEMORY:
            found.append(Change(f"{_MEMORY} {grown / 2**20:.0f} MiB", "renew"))
        return found

    def _damaged(self) -> list[str]:
        layers = {} if self.module is None else dict(self.module.named_modules())
        if list(layers) != list(self.layers) or any(layers[name] is not layer for name, layer in self.layers.items()):
            return ["layers that were added, removed or replaced"]
        after = _weights(layers)
        # A layer that its own backend repacked in the first forward pass has another marker.
        changed = {
            name: None
            for name, (marker, digests) in self.weights.items()
            if after[name][0] == marker and after[name][1] != digests
        }
        still = {id(tensor) for _, tensor in _loose(layers)}  # a forward pass may replace an attribute
        changed |= {name: None for name, t, digest in self.loose if id(t) in still and _digest(t) != digest}
        return [name or "the model" for name in changed]


def load_guarded(load: Callable[[], Any], info: ModelInfo, cache: Cache) -> Any:  # Any: a LoadedModel or LoadedEmbedder
    """Import another package's plugin and load `info` with it; restore settings, and record what was changed."""
    from llmquant.loading import causal_lm, embedder  # noqa: F401 - their imports change settings, once

    if info.kind != "none":  # likewise
        cls = transformers.AutoModelForCausalLM if info.embedder is None else transformers.AutoModel
        folder = causal_lm.materialize(info, cache, weights=False)
        warm_imports(cls, folder, trust_remote_code=info.trust_remote_code)
    before, changed = Snapshot.take(None), list[str]()
    try:
        subject = load()
    finally:
        changed += [change.what for change in before.undo(loading=True)]
    held = held_bytes(subject.device) - subject.load.before_bytes - weight_bytes(subject.module).total
    if held > _KEPT_MEMORY:
        changed.append(f"{_MEMORY} {held / 2**20:.0f} MiB beyond the weights")
    for what in changed:
        _log.warning("loading changed %s", what)
    return replace(subject, load=replace(subject.load, changed=tuple(changed)))


def _shortened(names: Sequence[str], beginning: str) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return [f"{beginning} {', '.join(names[:_SHOWN])}{more}"]


def _weights(layers: Mapping[str, torch.nn.Module]) -> dict[str, tuple[object, frozenset[str]]]:
    """Digest each module's own tensors; shared storage is read once."""
    read: dict[tuple[torch.device, int], str] = {}
    found = {}
    for name, layer in layers.items():
        if not _keeps_frequencies(layer):
            continue
        digests = set()
        for tensor in own_tensors(layer):
            if tensor.device.type != "meta":
                key = (tensor.device, tensor.untyped_storage().data_ptr())
                if key not in read:
                    read[key] = _digest(tensor)
                digests.add(f"{tensor.dtype} {tuple(tensor.shape)} {tensor.device} {read[key]}")
        found[name] = (_marker(layer), frozenset(digests))
    return found


def _loose(layers: Mapping[str, torch.nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield tensors in plain attributes, such as those of some packed layers."""
    for name, layer in layers.items():
        for value in vars(layer).values():
            if type(value) is torch.Tensor and value.device.type != "meta":
                yield name, value


def _marker(layer: torch.nn.Module) -> object:
    """Return the state of a layer that bitsandbytes or compressed-tensors repacks in its first forward pass."""
    states = [getattr(parameter, "quant_state", None) for parameter in layer.parameters(recurse=False)]
    packed = [getattr(state, "packing_format_for_cpu", False) for state in states]
    return packed, str(getattr(layer, "quantization_status", None))


def _digest(tensor: torch.Tensor) -> str:
    """Digest a storage on its own device: sums of columns of 64-bit words, and the remaining bytes."""
    storage = tensor.untyped_storage()
    data = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
    whole = data.numel() // (8 * _COLUMNS) * (8 * _COLUMNS)
    sums = data[:whole].view(torch.int64).view(-1, _COLUMNS).sum(0)
    digest = hashlib.blake2b(sums.cpu().numpy().tobytes(), digest_size=16)
    digest.update(data[whole:].cpu().numpy().tobytes())
    return f"{data.numel()} {digest.hexdigest()}"


def _model_settings(layers: Mapping[str, torch.nn.Module]) -> Iterator[Setting]:
    configurations: dict[int, tuple[str, Any]] = {}  # Any: configurations of transformers
    for name, layer in layers.items():
        where = name or "the model"
        get = partial(_fields, layer, tuple(_names(layer)))
        yield Setting(f"the hooks or settings of {where}", get, partial(_put_fields, layer))
        for field in ("config", "generation_config"):
            held = vars(layer).get(field)
            if hasattr(held, "to_dict"):
                configurations.setdefault(id(held), (f"the {field} of {where}", held))
    for name, held in configurations.values():
        yield Setting(name, partial(_all_fields, held), partial(_put_fields, held))


def _names(layer: torch.nn.Module) -> Iterator[str]:
    """Name a layer's hooks, its mode, its plain settings, and an instance's own ``forward``."""
    yield from ("training", "forward")
    # Layers of quantization backends keep internal state in plain fields.
    plain = type(layer).__module__.startswith(("torch.nn.", "transformers.")) and _keeps_frequencies(layer)
    for name, value in vars(layer).items():
        if name.endswith("_hooks") or (plain and type(value) in _SCALARS and not name.startswith("_")):
            yield name


def _keeps_frequencies(layer: torch.nn.Module) -> bool:
    kinds = str(getattr(layer, "rope_type", ""))  # a dictionary if layers have several types
    return not any(kind in kinds for kind in _FREQUENCIES_CHANGE)


def _tokenizer_settings(subject: Any, layers: Mapping[str, torch.nn.Module]) -> Iterator[Setting]:  # Any: see `take`
    tokenizers: dict[int, Any] = {}  # Any: transformers
    for holder in (subject, getattr(subject, "opened", None), *layers.values()):
        for value in list(getattr(holder, "__dict__", {}).values()):
            found = getattr(value, "tokenizer", value)  # a processor has a tokenizer
            if hasattr(found, "special_tokens_map"):
                tokenizers[id(found)] = found
    for tokenizer in tokenizers.values():
        names = [
            name
            for name, value in vars(tokenizer).items()
            if name != "deprecation_warnings" and type(value) in (*_SCALARS, list, dict) and len(repr(value)) < _LONG
        ]
        get = partial(_fields, tokenizer, tuple(names))
        yield Setting("fields of the tokenizer", get, partial(_put_fields, tokenizer))
        yield Setting("what the tokenizer makes of a text", partial(_tokenized, tokenizer), None)


def _tokenized(tokenizer: Any) -> tuple[int, list[int]]:  # Any: transformers
    return len(tokenizer), list(tokenizer(_PROBE)["input_ids"])


def _fields(holder: Any, names: Sequence[str]) -> dict[str, Any]:  # Any: a layer, a configuration or a tokenizer
    found = {name: vars(holder).get(name) for name in names}
    return {name: dict(value) if name.endswith("_hooks") else _copied(holder, value) for name, value in found.items()}


def _all_fields(configuration: Any) -> dict[str, Any]:  # Any: transformers
    return _fields(configuration, tuple(vars(configuration)))


def _copied(holder: Any, value: Any) -> Any:  # Any: as above
    # A layer has plain values and a forward method; a copy of the method could copy the whole model.
    return value if isinstance(holder, torch.nn.Module) else copy.deepcopy(value)


def _put_fields(holder: Any, fields: Mapping[str, Any]) -> None:  # Any: as above
    held = vars(holder)
    for name, value in fields.items():
        if name.endswith("_hooks"):
            held[name].clear()
            held[name].update(value)
        elif value is None and name == "forward":
            held.pop(name, None)
        elif not _equal(held.get(name), value):
            held[name] = _copied(holder, value)
    if hasattr(holder, "to_dict"):
        for name in held.keys() - fields.keys():
            del held[name]


def _put(setting: Setting, value: Any) -> bool:  # Any: see `Setting`
    """Restore a value; return whether this succeeded."""
    try:
        if setting.put is None:
            return False
        setting.put(value)
    except Exception:  # the setting's own code may raise anything
        _log.exception("%s could not be restored", setting.name)
    return _equal(setting.read(), value)


def _equal(one: Any, other: Any) -> bool:  # Any: see `Setting`
    try:
        return bool(one == other)
    except (TypeError, ValueError, RuntimeError):  # arrays have no truth value
        return repr(one) == repr(other)
