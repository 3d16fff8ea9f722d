"""An evaluator that leaves changed what is not its own, in every way a package might. Imported by worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from llmquant import Context, LoadedModel, Measurement, PluginSpec, Result


@dataclass(frozen=True)
class MeddleOptions:
    """What is changed, as a key of `MEDDLING`."""

    what: str = "nothing"


def _env(subject: LoadedModel) -> None:
    os.environ["MEDDLED"] = "1"
    os.environ.pop("TOKENIZERS_PARALLELISM", None)


def _hook(subject: LoadedModel) -> None:
    subject.module.lm_head.register_forward_hook(lambda layer, inputs, output: output * 2)


def _global_hook(subject: LoadedModel) -> None:
    import torch

    torch.nn.modules.module.register_module_forward_hook(lambda layer, inputs, output: None)


def _forward(subject: LoadedModel) -> None:
    own = subject.module.lm_head.forward
    subject.module.lm_head.forward = lambda inputs: own(inputs) * 2


def _patch(subject: LoadedModel) -> None:
    import torch

    own = torch.nn.functional.silu
    torch.nn.functional.silu = lambda *arguments, **keywords: own(*arguments, **keywords) * 2


def _patch_class(subject: LoadedModel) -> None:
    import torch

    torch.nn.Linear.__call__ = lambda self, inputs: self.forward(inputs) * 2


def _torch(name: str, *arguments: object) -> Callable[[LoadedModel], None]:
    def change(subject: LoadedModel) -> None:
        import torch

        getattr(torch, name)(*(getattr(torch, a) if isinstance(a, str) else a for a in arguments))

    return change


def _precision(subject: LoadedModel) -> None:
    import torch

    torch.set_float32_matmul_precision("medium")


def _inference(subject: LoadedModel) -> None:
    import torch

    KEPT.append(torch.inference_mode())
    KEPT[-1].__enter__()


def _child(subject: LoadedModel) -> None:
    KEPT.append(subprocess.Popen(["sleep", "600"]))


def _thread(subject: LoadedModel) -> None:
    threading.Thread(target=time.sleep, args=(600,), daemon=True, name="left behind").start()


def _weights(subject: LoadedModel) -> None:
    subject.module.model.layers[0].mlp.up_proj.weight.data.mul_(1.01)


def _exchanged_rows(subject: LoadedModel) -> None:
    weight = subject.module.model.layers[1].self_attn.q_proj.weight.data
    weight[[0, 1]] = weight[[1, 0]]


def _new_weight(subject: LoadedModel) -> None:
    import torch

    norm = subject.module.model.norm
    norm.weight = torch.nn.Parameter(norm.weight.detach() * 2)


def _new_layer(subject: LoadedModel) -> None:
    import torch

    subject.module.model.layers[0].mlp.act_fn = torch.nn.ReLU()


def _buffer(subject: LoadedModel) -> None:
    subject.module.model.rotary_emb.inv_freq.mul_(2)


def _half(subject: LoadedModel) -> None:
    subject.module.half()


def _memory(subject: LoadedModel) -> None:
    import torch

    KEPT.append(torch.ones(75_000_000))  # 300 MB


KEPT: list[object] = []
MEDDLING: dict[str, Callable[[LoadedModel], object]] = {
    "nothing": lambda subject: None,
    "dtype": _torch("set_default_dtype", "float64"),
    "threads": _torch("set_num_threads", 2),
    "grad": _torch("set_grad_enabled", False),
    "deterministic": _torch("use_deterministic_algorithms", True),
    "precision": _precision,
    "inference": _inference,
    "env": _env,
    "folder": lambda subject: os.chdir("/"),
    "path": lambda subject: sys.path.insert(0, "/meddled"),
    "signal": lambda subject: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "hook": _hook,
    "global_hook": _global_hook,
    "forward": _forward,
    "training": lambda subject: subject.module.train(),
    "epsilon": lambda subject: setattr(subject.module.model.norm, "variance_epsilon", 1.0),
    "config": lambda subject: setattr(subject.module.config, "num_hidden_layers", 7),
    "generation": lambda subject: setattr(subject.module.generation_config, "repetition_penalty", 1.5),
    "padding": lambda subject: setattr(subject.tokenizer, "padding_side", "left"),
    "template": lambda subject: setattr(subject.tokenizer, "chat_template", "{{ messages }}"),
    "special": lambda subject: setattr(subject.tokenizer, "pad_token", "<|endoftext|>"),
    "vocabulary": lambda subject: subject.tokenizer.add_tokens(["quick brown"]),
    "patch": _patch,
    "patch_class": _patch_class,
    "child": _child,
    "thread": _thread,
    "weights": _weights,
    "rows": _exchanged_rows,
    "new_weight": _new_weight,
    "new_layer": _new_layer,
    "buffer": _buffer,
    "half": _half,
    "memory": _memory,
}


class Meddle:
    """Changes something that is not its own, and says what the model's weights add up to."""

    def __init__(self, options: MeddleOptions) -> None:
        self._options = options

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterable[Result]:
        details = {"fresh": not KEPT}
        MEDDLING[self._options.what](subject)
        KEPT.append(self._options.what)
        total = float(sum(p.detach().double().sum() for p in subject.module.parameters()))
        yield Result("meddle", [Measurement("meddle", "total", total)], details=details)


MEDDLE = PluginSpec(
    kind="evaluator",
    name="meddle",
    summary="Changes what is not its own on request.",
    options="meddling:MeddleOptions",
    target="meddling:Meddle",
)
