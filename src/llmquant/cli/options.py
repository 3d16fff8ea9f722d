"""What the command line's options are called, and what becomes of their text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from llmquant.study.experiment import VectorGrid
    from llmquant.study.study import Study

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
On = Annotated[str, typer.Option("--on", help='Where: local, ray, modal, "local(device=cpu, threads=2)".')]
Gpu = Annotated[str | None, typer.Option(help="On Modal: A100, A100-80GB, L40S, H100, or several with commas.")]
Budget = Annotated[float | None, typer.Option(help="Dollars that it may cost at most.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Agree to what it may cost.")]
Detach = Annotated[bool, typer.Option("--detach", help="Submit it and end; `llmquant attach` waits for it.")]
StoreDir = Annotated[str, typer.Option("--store", help="Folder of the results; what it holds is reused.")]
Fresh = Annotated[bool, typer.Option("--fresh", help="Repeat what is stored; read local weights again.")]
Timeout = Annotated[float | None, typer.Option(help="Longest time for one experiment, in seconds.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code that the checkpoint carries.")]
Pickle = Annotated[bool, typer.Option("--allow-pickle", help="Read .bin checkpoints, which can run code.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress and no notes; only the result.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what is being done, and show the workers' logs.")]


def study_of(
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
    """Make a study of what was given; ``-t coqa`` is ``-e "lm_eval(coqa)"``."""
    from llmquant.study.call import Call
    from llmquant.study.experiment import ModelRequest
    from llmquant.study.study import Study

    return Study.of(
        [ModelRequest(model, trust_remote_code, allow_pickle) for model in models],
        quantizers or [],
        [*(evaluators or []), *(Call("llmquant/lm_eval", (name,)) for name in tasks or [])],
        vectors=vectors,
        baseline=baseline,
        limit=_limit(limit),
        seed=seed,
    )


def vectors_of(**axes: str | None) -> VectorGrid:
    """Read the axes of a grid: values between commas."""
    from llmquant.study.experiment import VectorGrid

    given: dict[str, list[int | str]] = {}
    for axis, text in axes.items():
        values = [part.strip() for part in (text or "").split(",") if part.strip()]
        if values:
            given[axis] = [int(value) if value.isdigit() else value for value in values]
    return VectorGrid.from_json(given)


def _limit(text: str) -> int | None:
    from llmquant.errors import OptionError

    if text == "all":
        return None
    try:
        return int(text)
    except ValueError as error:
        raise OptionError(f"limit is {text!r}", hint='Give a whole number from 1, or "all".') from error


def executor_of(on: str, gpu: str | None, budget: float | None, *, yes: bool) -> str:
    """Add to an executor's call what has an option of its own."""
    from llmquant.study.call import Call

    call = Call.parse(on)
    added = {"gpu": gpu and gpu.split(","), "budget": budget, "yes": yes or None}
    return str(Call(call.name, call.args, {**call.options, **{k: v for k, v in added.items() if v is not None}}))
