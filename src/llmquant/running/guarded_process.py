"""The process settings that an experiment must not change: torch's modes, environment, hooks, functions."""

from __future__ import annotations

import contextlib
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import psutil
import torch

# Packages used by evaluators; their functions are compared.
_PACKAGES = frozenset(
    {"accelerate", "bitsandbytes", "builtins", "datasets", "json", "llmquant", "lm_eval", "math", "mteb", "numpy", "os"}
    | {"random", "sentence_transformers", "time", "tokenizers", "torch", "transformers"}
)
# torch keeps the class that was registered last under this name in a table; imports register classes.
_LAST_REGISTERED = "NO_SERIALIZED_TYPE_NAME_FOUND"
_JOIN_S = 1.0


@dataclass(frozen=True)
class Setting:
    """A setting that can be read, compared and perhaps restored.

    Attributes:
        name: name for people, as in "the evaluator changed the working folder".
        get: returns a copy of the value.
        put: restores a value; ``None`` if the setting cannot be restored.
        silent: whether the setting does not affect results and is restored without a message.
    """

    name: str
    get: Callable[[], Any]  # Any: each setting has a type of its own
    put: Callable[[Any], object] | None  # Any: as above
    silent: bool = False

    def read(self) -> Any:  # Any: as above
        """Return the value; ``None`` if it cannot be read, such as a deleted working folder."""
        try:
            return self.get()
        except Exception:  # the setting's own code, such as a tokenizer, may raise anything
            return None


def process_settings() -> list[Setting]:
    """List the settings of torch, Python and the operating system that change what later code computes or finds."""
    backends, cuda = torch.backends, torch.backends.cuda
    loggers = [name for name, known in logging.root.manager.loggerDict.items() if isinstance(known, logging.Logger)]
    found = [
        Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
        # Setting the default device to the CPU would slow down every operation.
        Setting("torch's default device", torch.get_default_device, _put_default_device),
        Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
        Setting("torch's grad mode", torch.is_grad_enabled, torch.set_grad_enabled),
        Setting("torch's inference mode", torch.is_inference_mode_enabled, None),
        Setting("torch's deterministic mode", torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode),
        Setting("torch's matmul precision", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        Setting("torch's anomaly detection", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
        Setting("torch's flushing of denormal numbers", _flushes_denormals, torch.set_flush_denormal),
        *(
            Setting(f"torch.backends.{name}.{field}", partial(getattr, holder, field), partial(setattr, holder, field))
            for name, holder, names in (
                ("cudnn", backends.cudnn, "enabled benchmark deterministic allow_tf32"),
                ("mkldnn", backends.mkldnn, "enabled"),
                (
                    "cuda.matmul",
                    cuda.matmul,
                    "allow_tf32 allow_fp16_reduced_precision_reduction allow_bf16_reduced_precision_reduction",
                ),
            )
            for field in names.split()
        ),
        *(
            Setting(
                f"torch's {kind} attention", getattr(cuda, f"{kind}_sdp_enabled"), getattr(cuda, f"enable_{kind}_sdp")
            )
            for kind in ("flash", "mem_efficient", "math", "cudnn")
        ),
        *(
            Setting(f"torch's autocast on {device}", partial(_autocast, device), partial(_put_autocast, device))
            for device in ("cpu", "cuda")
        ),
        *(
            Setting(f"torch's hooks of all modules ({name})", partial(dict, hooks), partial(_put_dict, hooks))
            for name, hooks in vars(torch.nn.modules.module).items()
            if name.startswith("_global_") and name.endswith("hooks") and isinstance(hooks, dict)
        ),
        *(
            Setting(f"the random state of {name}", get, put, silent=True)  # every experiment is seeded
            for name, get, put in (
                ("Python", random.getstate, random.setstate),
                ("numpy", lambda: _plain(np.random.get_state()), np.random.set_state),
                ("torch", lambda: torch.get_rng_state().tolist(), lambda v: torch.set_rng_state(torch.ByteTensor(v))),
            )
        ),
        Setting("numpy's handling of errors", np.geterr, lambda value: np.seterr(**value)),
        Setting("the working folder", os.getcwd, os.chdir),
        Setting("the environment", lambda: dict(os.environ), partial(_put_dict, os.environ)),
        Setting("sys.path", lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)),
        Setting("signal handlers", _signals, _put_signals),
        Setting("filters of warnings", lambda: list(warnings.filters), _put_warnings, silent=True),
        Setting("levels of logging", partial(_log_levels, loggers), _put_log_levels, silent=True),
        Setting("handlers of logging", lambda: list(logging.root.handlers), _put_log_handlers, silent=True),
        Setting("sys.stdout", lambda: sys.stdout, partial(setattr, sys, "stdout"), silent=True),
        Setting("sys.stderr", lambda: sys.stderr, partial(setattr, sys, "stderr"), silent=True),
        Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
        Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
        Setting("the locale", partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    ]
    if hasattr(os, "sched_getaffinity"):
        found.append(Setting("the CPUs it may use", partial(os.sched_getaffinity, 0), partial(os.sched_setaffinity, 0)))
    return found


Functions: TypeAlias = Mapping[tuple[int, Any], tuple[Any, Any]]
"""Holder (a module, class or table) and function, by the holder's id and the function's key."""


def functions() -> Functions:
    """List the functions of the loaded packages, including those in classes and tables."""
    found: dict[tuple[int, Any], tuple[Any, Any]] = {}  # Any: see `Functions`
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] in _PACKAGES and isinstance(module, types.ModuleType):
            classes = [
                value
                for value in list(vars(module).values())
                if issubclass(type(value), type) and vars(value).get("__module__") == name
            ]
            for holder in (module, *classes):
                for key, value in list(vars(holder).items()):
                    if callable(value) or type(value) in (classmethod, property):
                        found[id(holder), key] = (holder, value)
                    elif issubclass(type(value), dict):
                        # Iterating over transformers' lazy tables themselves would import every entry.
                        entries = list(dict.items(value))
                        found |= {
                            (id(value), inner): (value, entry)
                            for inner, entry in entries
                            if callable(entry) and inner != _LAST_REGISTERED
                        }
    return found


def put_back(before: Functions, *, keep: bool = False) -> list[str]:
    """Restore functions replaced since `functions` was called, unless `keep`, and return their names.

    A new function in a class that hides a function of a base class is removed.
    """
    classes = {id(holder) for holder, _ in before.values() if isinstance(holder, type)}
    names = []
    for place, (holder, value) in functions().items():
        key = place[1]
        replaced = place in before and before[place][1] is not value
        hides = place not in before and id(holder) in classes and any(key in vars(c) for c in holder.__mro__[1:])
        if not (replaced or hides):
            continue
        names.append(_name(holder, key))
        if keep:
            continue
        if hides:
            delattr(holder, key)
        elif isinstance(holder, dict):
            holder[key] = before[place][1]
        else:
            setattr(holder, key, before[place][1])
    return names


def _name(holder: Any, key: Any) -> str:  # Any: see `Functions`
    if isinstance(holder, dict):
        return f"{key!r} of a table"
    return (
        f"{holder.__module__}.{holder.__qualname__}.{key}" if isinstance(holder, type) else f"{holder.__name__}.{key}"
    )


def stop_new(
    threads: Iterable[threading.Thread], children: Iterable[psutil.Process], *, keep: bool = False
) -> Iterator[tuple[str, bool]]:
    """Wait for new threads and end new processes, unless `keep`.

    Yields:
        The name of a thread or process left behind, and whether it has ended now.
    """
    for thread in set(threading.enumerate()) - set(threads):
        if type(thread).__module__.startswith("tqdm."):  # one for all progress bars; it computes nothing
            continue
        thread.join(_JOIN_S)
        if thread.is_alive():
            yield f"the thread {thread.name!r}", False
    known = {child.pid for child in children}
    for child in child_processes():
        if child.pid not in known:
            with contextlib.suppress(psutil.NoSuchProcess):
                name = child.name()
                if not keep:
                    child.kill()
                    child.wait()
                yield f"the process {name!r}", not keep


def child_processes() -> list[psutil.Process]:
    """List all descendants of this process."""
    return psutil.Process().children(recursive=True)


def _plain(state: Any) -> tuple[Any, ...]:  # Any: numpy's state, whose array cannot be compared by `==`
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in state)


def _flushes_denormals() -> bool:
    return bool((torch.tensor(5e-324, dtype=torch.float64) * 1).item() == 0)


def _put_default_device(device: torch.device) -> None:
    torch.set_default_device(None if device.type == "cpu" else device)


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _put_autocast(device: str, value: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(device, value[0])
    torch.set_autocast_dtype(device, value[1])


def _put_dict(held: MutableMapping[Any, Any], value: Mapping[Any, Any]) -> None:  # Any: hooks, or texts
    for key in held.keys() - value.keys():
        del held[key]
    held.update(value)


def _signals() -> dict[signal.Signals, Any]:  # Any: a function, or an enumeration of the module
    return {number: signal.getsignal(number) for number in signal.Signals}


def _put_signals(handlers: Mapping[signal.Signals, Any]) -> None:  # Any: as above
    for number, handler in handlers.items():
        if signal.getsignal(number) is not handler and handler is not None:
            signal.signal(number, handler)


def _put_warnings(filters: list[Any]) -> None:  # Any: tuples of the module
    warnings.filters[:] = filters  # type: ignore[index]  # the stubs take it for a sequence that does not change
    warnings._filters_mutated()  # type: ignore[attr-defined]  # otherwise earlier decisions stay cached


def _log_levels(loggers: Iterable[str]) -> tuple[int, dict[str, int]]:
    return logging.root.manager.disable, {name: logging.getLogger(name).level for name in ("", *loggers)}


def _put_log_levels(levels: tuple[int, Mapping[str, int]]) -> None:
    logging.disable(levels[0])
    for name, level in levels[1].items():
        logging.getLogger(name).setLevel(level)


def _put_log_handlers(handlers: list[logging.Handler]) -> None:
    logging.root.handlers[:] = handlers
