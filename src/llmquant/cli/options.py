"""The command line's options, and how their text becomes a study and an executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from llmquant.cli.command import number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from llmquant.study.experiment import VectorGrid
    from llmquant.study.study import Study


def _completed(known: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """Complete the last of several values with commas between them, for a shell."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in sorted(known()) if name.startswith(last)]

    return complete


def _presets() -> list[str]:
    from llmquant.plugins.registry import registry

    return registry().names("quantizer")


def _evaluators() -> list[str]:
    from llmquant.plugins.registry import registry

    return registry().names("evaluator")


def _lm_eval_tasks() -> Iterable[str]:
    from llmquant.catalogs.lm_eval import installed_tasks
    from llmquant.storage.cache import Cache

    return installed_tasks(Cache.default()).entries


def complete_study(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the id of a study in the store that the command line names, for a shell."""
    from llmquant.errors import LlmquantError
    from llmquant.storage.store import Store

    named = ctx.args[0] if ctx.args else ctx.params.get("store")  # before an option without its value, or parsed
    try:
        studies = Store.existing(named or "results").studies()
    except LlmquantError:  # no store yet
        return []
    return [study for study in studies if study.startswith(incomplete)]


Models = Annotated[
    list[str],
    typer.Argument(
        metavar="MODEL", help="Hub id (org/name@revision), folder, .gguf file, or embedder (bigemma3(dim=768))."
    ),
]
Quantizers = Annotated[
    list[str] | None,
    typer.Option(
        "--quantizer",
        "-q",
        metavar="PRESETS",
        autocompletion=_completed(_presets),
        help='Preset or call, for example bnb_4bit_nf4 or "gptq(bits=3)"; several: a,b or -q a -q b (default: '
        "bf16_baseline, bnb_8bit, bnb_4bit_nf4, bnb_4bit_fp4, gptq_4bit_g128, awq_4bit_g128, without what cannot run "
        "here; embedders: bf16_baseline, bnb_8bit, bnb_4bit_nf4).",
    ),
]
Evaluators = Annotated[
    list[str] | None,
    typer.Option(
        "--evaluator",
        "-e",
        metavar="EVALUATORS",
        autocompletion=_completed(_evaluators),
        help='Evaluator, for example memory or "lm_eval(coqa)"; several: a,b or -e a -e b (default: lm_eval(coqa), '
        "perplexity, memory, latency; embedders: mteb(ViDoRe(v1)), mteb(ViDoRe(v2)), or mteb(NanoBEIR) for text).",
    ),
]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        "-t",
        metavar="TASKS",
        autocompletion=_completed(_lm_eval_tasks),
        help='lm-eval task, for example coqa: "-t coqa" is short for -e "lm_eval(coqa)"; several: a,b or -t a -t b.',
    ),
]
All = Annotated[bool, typer.Option("--all", help="Add every preset that is installed and supports the models.")]
Limit = Annotated[
    str,
    typer.Option(
        metavar="N",
        help='Maximum documents per task (for retrieval: queries per task), for example 50; "all" for no limit.',
    ),
]
UntilSure = Annotated[
    bool,
    typer.Option(
        "--until-sure",
        help="Score documents in random order, and stop as soon as each verdict is sure; --limit is the maximum.",
    ),
]
Dims = Annotated[
    str | None,
    typer.Option(
        metavar="WIDTHS",
        help="Vector widths of embedders, in dimensions, for example 2560,1536,768 (default: the model's).",
    ),
]
Codecs = Annotated[
    str | None,
    typer.Option(
        metavar="FORMATS",
        help="Storage formats of embedders' document vectors: float32 (default), float16, int8, int4, binary, "
        "for example float32,int8.",
    ),
]
Pools = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORS",
        help="Token-pooling factors for late-interaction models (vectors averaged into one), for example 1,2,3 "
        "(1 = off).",
    ),
]
Rescores = Annotated[
    str | None,
    typer.Option(
        metavar="FACTORS",
        help="Rescore the top k x N candidates with float32 vectors; values of N, for example 0,4 (0 = off).",
    ),
]
Seed = Annotated[
    int,
    number("seed", int, "N", "Seed of every random choice, a whole number."),
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="PRESET",
        help="Quantizer to compare the others with, for example fp16_baseline (default: the first *_baseline).",
    ),
]
MarginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--margin",
        metavar="LOSS",
        help="Largest acceptable loss: points of scores in percent, for example 1 (default: 2); of perplexity in "
        'percent, for example "perplexity=1%" (default: 2%); of any other score for example "bleu=0.5".',
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        metavar="SIZE", help="Recommend a variant whose peak memory while running is at most this, such as 8GiB."
    ),
]
MaxLatency = Annotated[
    float | None,
    number(
        "max latency",
        float,
        "MS",
        "Recommend a variant that takes at most this many milliseconds per token (for embedders: per query), "
        "for example 40.",
    ),
]
MaxLoss = Annotated[
    list[str] | None,
    typer.Option(
        metavar="LOSS", help="Recommend a variant that loses at most this; written as --margin (default: the margin)."
    ),
]
FailOn = Annotated[
    str | None,
    typer.Option(
        metavar="worse|undecided",
        help='Exit code for CI: "worse" exits with 3 if a variant is worse; "undecided" also exits with 4 if one is '
        "undecided or without signal.",
    ),
]
Junit = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Write the verdicts as JUnit XML to this file, for example junit.xml."),
]
On = Annotated[
    str,
    typer.Option(
        "--on",
        metavar="EXECUTOR",
        help='Executor: local, ray, modal, or a call such as "local(device=cpu, threads=2)".',
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        metavar="GPUS", help="GPU types on Modal in order of preference, for example L40S,A100-80GB (default: A100)."
    ),
]
Budget = Annotated[
    float | None,
    number("budget", float, "DOLLARS", "Maximum cost in dollars, for example 20."),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Confirm the maximum cost without asking.")]
Detach = Annotated[
    bool, typer.Option("--detach", help="Submit the study and exit; `llmquant attach` waits for the results.")
]
StoreDir = Annotated[
    str, typer.Option("--store", metavar="FOLDER", help="Folder of the results; stored runs are reused.")
]
Fresh = Annotated[bool, typer.Option("--fresh", help="Repeat stored experiments and read local weights again.")]
Timeout = Annotated[
    float | None,
    number("timeout", float, "SECONDS", "Maximum time per experiment in seconds, for example 600."),
]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Run Python code from the model's checkpoint.")]
Pickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read .bin checkpoints; reading such a checkpoint can run code.")
]
Explain = Annotated[
    bool, typer.Option("--explain", help="Print all footnotes and list items, not only the first of each table.")
]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print only the result, without progress and notes.")]
Verbose = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Log each step, and show the logs of the workers and of other libraries."),
]


def study_of(
    models: list[str],
    quantizers: list[str] | None,
    evaluators: list[str] | None,
    tasks: list[str] | None,
    vectors: VectorGrid,
    limit: str,
    seed: int,
    baseline: str | None,
    margin: list[str] | None,
    trust_remote_code: bool,
    allow_pickle: bool,
    *,
    until_sure: bool = False,
) -> Study:
    """Build a study from the command line; ``-t coqa`` is short for ``-e "lm_eval(coqa)"``."""
    from llmquant.study.call import Call
    from llmquant.study.experiment import ModelRequest
    from llmquant.study.study import Study

    return Study.of(
        [ModelRequest(model, trust_remote_code, allow_pickle) for model in models],
        _listed("-q", quantizers),
        [*_listed("-e", evaluators), *(Call("llmquant/lm_eval", (name,)) for name in _listed("-t", tasks))],
        vectors=vectors,
        baseline=baseline,
        margin=margin,
        limit=_limit(limit),
        until_sure=until_sure,
        seed=seed,
    )


def _listed(option: str, texts: Sequence[str] | None) -> list[str]:
    """Split each text at the commas outside brackets."""
    from llmquant.errors import OptionError
    from llmquant.study.call import split

    parts: list[str] = []
    for text in texts or ():
        try:
            found = split(text, whole=text)
        except OptionError:
            if "(" not in text:
                raise
            found = [text]  # reported when the call is parsed, with the request's other mistakes
        if not found:
            raise OptionError(f"the value of {option} is empty", hint="Leave the option out. Is a variable empty?")
        parts += found
    return parts


def vectors_of(**axes: str | None) -> VectorGrid:
    """Read the axes of a vector grid: values separated by commas."""
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
    """Add ``--gpu``, ``--budget`` and ``--yes`` to an executor's call.

    Raises:
        OptionError: if the executor is this machine, which has none of them.
    """
    from llmquant.errors import OptionError
    from llmquant.study.call import Call

    call = Call.parse(on)
    asked = {"gpu": gpu and gpu.split(","), "budget": budget, "yes": yes or None}
    added = {name: value for name, value in asked.items() if value is not None}
    if added and call.name.removeprefix("llmquant/") == "local":
        raise OptionError(
            f"--{next(iter(added))} is for executors that run elsewhere, and the study runs on this machine",
            hint="Add --on modal, or leave it out. Here CUDA_VISIBLE_DEVICES chooses the GPUs.",
        )
    return str(Call(call.name, call.args, {**call.options, **added}))
