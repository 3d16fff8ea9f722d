"""Quantized checkpoints: made once by a separate process, kept in the cache, and checked at every use.

The process is separate because a quantization leaves memory, threads and settings behind that would disturb later
measurements, and because the worker must survive its death. ``python -m llmquant.loading.quantized REQUEST EVENTS``.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from packaging.requirements import Requirement

from llmquant.errors import LlmquantError, PluginError, RunError, describe
from llmquant.machine.packages import STACK, installed_versions
from llmquant.models.info import ModelInfo
from llmquant.plugins.context import Context
from llmquant.plugins.registry import Chosen, registry
from llmquant.plugins.spec import PluginSpec
from llmquant.storage.cache import MANIFEST, Cache
from llmquant.storage.journal import end_with_parent, log_tail
from llmquant.study.call import Json
from llmquant.study.experiment import Digest, Documents, ModelUse, PluginUse

_log = logging.getLogger(__name__)


def quantized_checkpoint(
    source: Path, info: ModelInfo, chosen: Chosen, ctx: Context, *, threads: int | None = None
) -> Path:
    """Return the folder to load: `source` itself unless the quantizer writes checkpoints.

    Args:
        source: the folder that `materialize` returned.
        threads: CPU threads to quantize with; ``None`` leaves torch's default.

    Raises:
        RunError: if the quantization fails; its cause is a `MemoryError` if memory ran out.
        StoreError: if the checkpoint in the cache has changed since it was made.
    """
    if not chosen.plugin.spec.checkpoint:
        prepare = getattr(registry().construct(chosen), "prepare", None)
        path: Any = (
            source if prepare is None else prepare(source, ctx.files / "checkpoint", ctx)
        )  # Any: a third party's
        if not isinstance(path, Path) or not path.is_dir():
            raise PluginError(
                f"{chosen.plugin.full_name}: prepare returned {path!r}",
                hint="Return the folder to load, such as `model`.",
            )
        return path
    from llmquant.loading.strict import check_source

    names = {Requirement(text).name for text in chosen.plugin.spec.requires}
    engine = installed_versions(sorted(names.difference(STACK)))
    key: Json = {
        "model": info.use().identity(),
        "quantizer": chosen.use.identity(),
        "engine": {**engine},
    }

    def make(out: Path) -> None:
        started = time.perf_counter()
        check_source(source, info.source, trust_remote_code=info.trust_remote_code)
        _log.info("quantizing %s as %s", info.source, chosen.use.label)
        _run_child(source, out, info.use(), chosen, ctx, threads)
        _write_recipe(out, info, chosen, ctx, engine, time.perf_counter() - started)

    return ctx.cache.get("checkpoints", key, make, name=f"{info.use().name} as {chosen.use.label}")


def read_recipe(folder: Path) -> dict[str, Any] | None:  # Any: a JSON object
    """Return how llmquant made the checkpoint in `folder`, without digests of files; ``None`` for other checkpoints."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    recipe: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))  # Any: see above
    if "quantizer" not in recipe:  # another entry of the cache, such as a converted .gguf file
        return None
    return {key: value for key, value in recipe.items() if key != "files"}


def _write_recipe(
    out: Path, info: ModelInfo, chosen: Chosen, ctx: Context, engine: dict[str, str], seconds: float
) -> None:
    calibration = out / "calibration.json"
    recipe = {
        "schema_version": 1,
        "model": info.use().to_json(),
        "quantizer": chosen.use.to_json(),
        "calibration": json.loads(calibration.read_text(encoding="utf-8")) if calibration.exists() else None,
        "engine": engine,
        "packages": installed_versions(("llmquant", *STACK)),
        "device": ctx.device,
        "seconds": round(seconds, 3),
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    (out / MANIFEST).write_text(json.dumps(recipe, indent=2) + "\n", encoding="utf-8")


def _run_child(source: Path, out: Path, model: ModelUse, chosen: Chosen, ctx: Context, threads: int | None) -> None:
    """Run the quantizer's ``prepare`` in a separate process, which ends when this process ends."""
    request = {
        "source": str(source),
        "out": str(out),
        "quantizer": chosen.use.to_json(),
        "device": ctx.device,
        "threads": threads,
        "cache": str(ctx.cache.root),
        "inputs": {digest: str(path) for digest, path in ctx.inputs.items()},
        "plugins": [vars(p.spec) for p in registry().plugins if p.package == "registered"],
    }
    with tempfile.TemporaryDirectory(prefix="llmquant-") as folder:
        record, log = Path(folder) / "request.json", Path(folder) / "log.txt"
        record.write_text(json.dumps(request), encoding="utf-8")
        read, write = os.pipe()
        with os.fdopen(read, encoding="utf-8") as events, log.open("wb") as output:
            command = [sys.executable, "-m", "llmquant.loading.quantized", str(record), str(write)]
            environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path)}
            # GPTQModel writes logs into its working directory. Leaving the block, also by Ctrl-C, closes the child's
            # standard input, which ends the child.
            with subprocess.Popen(
                command,
                cwd=folder,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                pass_fds=(write,),
            ) as child:
                os.close(write)
                failure = _follow(events, ctx.progress)
                child.wait()
        if failure is None and child.returncode == 0:
            return
        tail = log_tail(log.read_text(encoding="utf-8", errors="replace"))
        _log.error("the log of the quantization ends:\n%s", tail)
    if failure is not None:
        raise RunError(failure["message"], hint=failure["hint"]) from (
            MemoryError() if failure["out_of_memory"] else None
        )
    code = child.returncode
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    raise RunError(
        f"the process that quantized {model.name} as {chosen.use.label} {how}",
        hint="Unless somebody sent signal 9, memory ran out."
        if code == -signal.SIGKILL
        else f"Its last line: {(tail.splitlines() or ['none'])[-1]}",
    )


def _follow(events: TextIO, progress: Callable[[int, int], None]) -> dict[str, Any] | None:  # Any: a JSON object
    """Pass progress on until the child closes its end; return the failure that the child reported, if any."""
    failure: dict[str, Any] | None = None  # Any: see above
    for line in events:
        event = json.loads(line)
        if "message" in event:
            failure = event
        else:
            progress(event["done"], event["total"])
    return failure


def _quantize(request: dict[str, Any], report: Callable[[dict[str, Json]], None]) -> None:  # Any: a JSON object
    """Run the quantization that `_run_child` requested."""
    import torch
    from accelerate.utils import set_seed

    if request["threads"] is not None:
        torch.set_num_threads(request["threads"])
    for spec in request["plugins"]:
        registry().register(PluginSpec(**spec))
    chosen = registry().restore("quantizer", PluginUse(**request["quantizer"]))
    out = Path(request["out"])
    ctx = Context(
        device=request["device"],
        seed=0,
        documents=Documents(),
        cache=Cache(Path(request["cache"])),
        inputs={Digest(digest): Path(path) for digest, path in request["inputs"].items()},
        reference=None,
        files=out,
        progress=lambda done, total: report({"done": done, "total": total}),
    )
    set_seed(ctx.seed)
    prepared = registry().construct(chosen).prepare(Path(request["source"]), out, ctx)
    if prepared != out or not (out / "config.json").is_file():
        raise PluginError(
            f"{chosen.plugin.full_name} declares checkpoint=True, and its prepare returned {prepared}",
            hint="Write a checkpoint with its config.json to `out`, and return `out`.",
        )


def main() -> None:
    """Run the request named on the command line; report progress through the pipe named there."""
    from llmquant.loading.memory import is_out_of_memory

    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with os.fdopen(int(sys.argv[2]), "w", encoding="utf-8", buffering=1) as events:

        def report(event: dict[str, Json]) -> None:
            events.write(json.dumps(event) + "\n")

        try:
            _quantize(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), report)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # quantizers and their engines may raise anything, and call sys.exit
            _log.exception("the quantization failed")
            message = (isinstance(error, LlmquantError) and error.message) or describe(error)
            hint = error.hint if isinstance(error, LlmquantError) else ""
            report({"message": message, "hint": hint, "out_of_memory": is_out_of_memory(error)})


if __name__ == "__main__":
    main()
