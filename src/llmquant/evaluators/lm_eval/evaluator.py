"""The lm_eval evaluator: lm-eval's tasks, scored by lm-eval, on a loaded model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lm_eval.api.task
import lm_eval.evaluator
from lm_eval.tasks import TaskManager

from llmquant.catalogs.lm_eval import installed_tasks
from llmquant.catalogs.lm_eval_groups import groups_of
from llmquant.catalogs.lm_eval_yaml import read_task, write_yaml
from llmquant.engine.decode import ROUNDED
from llmquant.engine.lm import TreeLM
from llmquant.errors import RunError, first_line
from llmquant.evaluators.hub_data import no_progress_bars, not_fetched
from llmquant.evaluators.lm_eval.answers import HINT, mistake
from llmquant.evaluators.lm_eval.chat import check_template, settings_of
from llmquant.evaluators.lm_eval.compat import provide_squad_metrics
from llmquant.evaluators.lm_eval.documents import LocalRows
from llmquant.evaluators.lm_eval.generation import LENGTHS
from llmquant.evaluators.lm_eval.model import CHAT_DATE, FittingLM
from llmquant.evaluators.lm_eval.options import LmEvalOptions
from llmquant.evaluators.lm_eval.results import results
from llmquant.evaluators.lm_eval.rows import rows_in_place
from llmquant.evaluators.lm_eval.scored_part import rules
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator, LoadedModel
from llmquant.study.call import Json
from llmquant.study.experiment import InputFile
from llmquant.study.run import Result

# The first batch size of `auto`. On a CPU a batch only adds padding and waits for its longest row.
_FIRST_BATCH = {"cuda": 16, "mps": 4, "cpu": 1}
# Bootstrap samples for metrics without a formula for their error (perplexity, BLEU): the error is accurate to 2%, and
# lm-eval's default of 100,000 takes minutes. Errors of means are exact.
_BOOTSTRAPS = 1000
_FEWSHOT_SEED = inspect.signature(lm_eval.evaluator.simple_evaluate).parameters["fewshot_random_seed"].default
# The variable of a chat template, not the key of a message.
_THINKING = re.compile(r"""\{%[^%]*(?<![\w.'"])(enable_)?thinking\b(?!['"])""")
# lm-eval would prefer a task's own max_gen_toks to any of these.
_NAMES = dict.fromkeys(LENGTHS, "max_gen_toks")


class LmEval(Evaluator[LmEvalOptions]):
    """Run lm-eval's tasks.

    Args:
        options: the tasks, their rows and the form of the prompts.
    """

    def fetch(self, ctx: Context) -> None:
        """Build the tasks from their rows.

        Raises:
            RunError: if a task's rows are unavailable or wrong.
        """
        provide_squad_metrics()
        for part in self.options.parts():
            with tempfile.TemporaryDirectory(prefix="llmquant-") as scratch, _quiet():
                _load_tasks(part, ctx, Path(scratch))

    def evaluate(self, subject: LoadedModel, ctx: Context) -> Iterator[Result]:
        """Yield one result per task, and one per group with its own scores.

        Raises:
            RunError: if a task's rows are unavailable, or a chat template is requested and the model has none.
        """
        provide_squad_metrics()
        if self.options.apply_chat_template:
            _check_chat(subject, self.options)
        for part in self.options.parts():
            with tempfile.TemporaryDirectory(prefix="llmquant-") as scratch, _quiet():
                found = list(_evaluate(part, subject, ctx, Path(scratch)))
            yield from found


def _check_chat(subject: LoadedModel, options: LmEvalOptions) -> None:
    if not subject.tokenizer.chat_template:
        raise RunError(f"{subject.info.source} has no chat template", hint="Omit apply_chat_template.")

    settings = settings_of(options)

    def render(chat: list[dict[str, str]], opens: bool) -> str:
        found = subject.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=opens, **settings)
        return str(found)

    check_template(subject.info.source, render, options.system_instruction, RunError)


def _evaluate(options: LmEvalOptions, subject: LoadedModel, ctx: Context, scratch: Path) -> Iterator[Result]:
    loaded = _load_tasks(options, ctx, scratch)
    everything = {**loaded["tasks"], **loaded["groups"]}
    inside = {name for group in loaded["groups"].values() for name in group.child_names}
    auto = _FIRST_BATCH[ctx.device] if subject.row_independent else 1
    first = auto if options.batch_size == "auto" else options.batch_size
    tree = options.engine == "tree" or (options.engine == "auto" and ctx.device == "cpu")
    kind: Callable[..., FittingLM] = FittingLM
    if tree:
        exact = options.engine == "auto"
        kind = functools.partial(
            TreeLM, verify=options.verify, seed=ctx.seed, exact=exact, complete=rules(loaded["tasks"])
        )
    model = kind(
        subject,
        batch_size=first,
        shrink=options.batch_size == "auto",
        max_length=options.max_length,
        progress=ctx.progress,
        enable_thinking=options.enable_thinking,
        think_end_token=options.think_end_token,
    )
    output = lm_eval.evaluator.simple_evaluate(
        model=model,
        tasks=[item for name, item in everything.items() if name not in inside],
        task_manager=TaskManager(include_defaults=False),
        num_fewshot=options.num_fewshot,
        limit=ctx.documents.limit,
        samples=_chosen(loaded["tasks"], ctx),
        bootstrap_iters=_BOOTSTRAPS,
        log_samples=True,
        system_instruction=options.system_instruction,
        apply_chat_template=options.apply_chat_template,
        fewshot_as_multiturn=options.fewshot_as_multiturn,
        gen_kwargs={_NAMES.get(key, key): value for key, value in (options.gen_kwargs or {}).items()} or None,
        random_seed=ctx.seed,
        numpy_random_seed=ctx.seed,
        torch_random_seed=ctx.seed,
        fewshot_random_seed=ctx.seed,
    )
    details: dict[str, Json] = {
        "batch_size": model.batch_size,
        "max_length": model.max_length,
        "seed": ctx.seed,
        "fewshot_seed": f"{ctx.seed} (lm-eval's default: {_FEWSHOT_SEED})",
        "bootstraps": _BOOTSTRAPS,
        "chat_template": options.apply_chat_template,
        "chat_date": str(CHAT_DATE) if options.apply_chat_template else None,
        "log_softmax": "float32",
        "eos_token_id": subject.module.generation_config.eos_token_id,
        **_engine(model),
    }
    notes = _notes(options, subject, model)
    return results(output, loaded["tasks"], model.prompts, model.written, model.margins, details, notes, options.group)


def _engine(model: FittingLM) -> dict[str, Json]:
    """Return what computed the scores, and how far it was checked."""
    if not isinstance(model, TreeLM):
        return {"engine": "stock"}
    report = model.report
    if report.reason or not report.requests:
        return {"engine": "stock", "engine_reason": report.reason or None}
    return {
        "engine": "tree",
        "tokens_read": report.read,
        "tokens_read_by_stock": report.stock,
        "tokens_distinct": report.distinct,
        "verified": report.verified,
        "verified_max_difference": report.difference,
        "run_again": report.again / report.requests,
        "run_again_below": report.epsilon,
        "kept_below": report.kept / report.requests,
        "least_margin": min(model.margins.values(), default=None),
    }


def _notes(options: LmEvalOptions, subject: LoadedModel, model: FittingLM) -> list[str]:
    """Return notes on reasoning and system messages for readers of the table."""
    notes: list[str] = []
    if isinstance(model, TreeLM) and model.report.reason not in ("", ROUNDED):
        notes.append(f"scored by lm-eval's own forward passes, without shared prefixes: {model.report.reason}")
    undecided = options.apply_chat_template and options.enable_thinking is None
    if undecided and _THINKING.search(str(subject.tokenizer.chat_template)):
        notes.append(
            "the chat template can turn reasoning on and off, but enable_thinking is not set: "
            "use enable_thinking=false, or true with think_end_token"
        )
    if model.unsaid:
        notes.append("the chat template does not support a system message: the system instruction is omitted")
    if model.reasoned:
        notes.append(f"{model.reasoned} answers contain reasoning, which is scored with them: use think_end_token")
    if model.endless:
        notes.append(f"{model.endless} answers have no {options.think_end_token}: these answers are scored unchanged")
    return notes


def _chosen(tasks: Mapping[str, Any], ctx: Context) -> dict[str, list[int]] | None:  # Any: lm-eval's Task
    """Return the places of a slice's documents by task, in the order in which lm-eval reads them."""
    if ctx.documents.slice is None:
        return None
    found = {name: sorted(ctx.documents.slice.places(len(task.eval_docs), ctx.seed)) for name, task in tasks.items()}
    if not all(found.values()):  # lm-eval would take all documents
        raise RunError(f"a task has at most {ctx.documents.slice.start} documents; the slice after them is empty")
    return found


def _check_documents(task: Any, options: LmEvalOptions) -> None:  # Any: lm-eval's Task
    """Refuse rows without a right answer and documents without the field to group by, before anything is computed."""
    if options.group is None and options.data is None:
        return
    docs = task.eval_docs
    if options.group is not None:
        groups_of(list(docs), options.group)
    if options.data is None:
        return
    places = docs.places if isinstance(docs, LocalRows) else [f"document {n}" for n in range(1, len(docs) + 1)]
    for place, doc in zip(places, docs, strict=True):
        if wrong := mistake(task, doc):
            raise RunError(f"{options.data.name}, {place}: {wrong}", hint=HINT)


def _load_tasks(options: LmEvalOptions, ctx: Context, scratch: Path) -> Mapping[str, Any]:  # Any: lm-eval's TaskDict
    """Build the task or group in `options` from only the YAMLs that it needs, and check its rows.

    A generated YAML includes each of these YAMLs in place, so that functions in the YAML's folder are found.
    """
    (task,) = options.tasks
    index = installed_tasks(ctx.cache)
    files = [ctx.local(task)] if isinstance(task, InputFile) else index.files(task)
    name = read_task(files[0])["task"] if isinstance(task, InputFile) else task
    stubs = scratch / "tasks"
    stubs.mkdir()
    for number, file in enumerate(files):
        stub: dict[str, Any] = {"include": str(file)}  # Any: YAML values
        if options.data is not None:
            stub |= rows_in_place(read_task(file), ctx.local(options.data), options.data.name)
        (stubs / f"{number:05}.yaml").write_text(write_yaml(stub), encoding="utf-8")
    manager = TaskManager(include_path=str(stubs), include_defaults=False)
    random.seed(ctx.seed)  # some tasks shuffle their choices when they are built
    try:
        loaded: Mapping[str, Any] = manager.load([name])  # Any: see above
    except Exception as error:  # a task's own code, and what fetches its rows, may raise anything
        raise _not_loaded(name, options, error) from error
    for built in loaded["tasks"].values():
        if unknown := [metric for metric, function in built.aggregation().items() if function is None]:
            raise RunError(f"task {name!r}: the aggregation of {', '.join(unknown)} is unknown to lm-eval")
        _check_documents(built, options)
    return loaded


def _not_loaded(name: str, options: LmEvalOptions, error: Exception) -> RunError:
    reason = first_line(error)
    if isinstance(error, ImportError):
        return RunError(f"task {name!r} needs a package: {reason}", hint="Install it where the model runs.")
    if options.data is not None:
        return RunError(f"task {name!r} cannot be built with {options.data.name}: {type(error).__name__}: {reason}")
    if not_fetched(error):
        return RunError(
            f"the rows of task {name!r} could not be fetched: {reason}",
            hint=f"Set HF_TOKEN if the data set is gated, or use a file of rows: lm_eval({name}, data=FILE.jsonl).",
        )
    return RunError(f"task {name!r} could not be built: {type(error).__name__}: {reason}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Turn off lm-eval's progress bars, which would fill the worker's log, and its extra processes.

    lm-eval's bootstraps would fork a process that holds a model; its report on the environment runs pip and nvidia-smi
    for a second, although provenance has that information already.
    """
    bars, report = lm_eval.api.task.tqdm, lm_eval.evaluator.add_env_info
    forks = os.environ.get("DISABLE_MULTIPROC")
    lm_eval.api.task.tqdm = functools.partial(bars, disable=True)
    lm_eval.evaluator.add_env_info = lambda results: None
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with no_progress_bars():
            yield
    finally:
        lm_eval.api.task.tqdm, lm_eval.evaluator.add_env_info = bars, report
        if forks is None:
            del os.environ["DISABLE_MULTIPROC"]
