"""Options of the lm_eval evaluator: the tasks, their rows and the form of the prompts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from llmquant.errors import OptionError, RequestError, UnsupportedError, collecting, raise_all
from llmquant.evaluators.speed.generation_limits import positions
from llmquant.plugins.evaluator import Cost
from llmquant.study.call import Json
from llmquant.study.experiment import Documents, InputFile
from llmquant.study.job import Device

if TYPE_CHECKING:
    from llmquant.catalogs.lm_eval_yaml import Function
    from llmquant.models.info import ModelInfo

_YAML = (".yaml", ".yml")
_FILES = ("json", "csv", "parquet", "text", "arrow", "pandas", "sql")  # formats that `datasets` reads from files
# Only for estimates: documents per task without a limit, and by output type the tokens read and generated per document.
_DOCUMENTS = 1000
_TOKENS = {
    "generate_until": (600, 64),
    "multiple_choice": (500, 0),
    "loglikelihood": (100, 0),
    "loglikelihood_rolling": (2000, 0),
}


class TaskFile(InputFile):
    """A task's YAML: a file recognized by its ending, so that a bare word is always one of lm-eval's own tasks."""

    @classmethod
    def read(cls, path: Path) -> InputFile:
        """Digest the YAML at `path`.

        Raises:
            OptionError: if the name does not end in .yaml or .yml, or the file cannot be read.
        """
        if path.suffix.lower() not in _YAML:
            raise OptionError(f"{path} is not a .yaml file")
        return super().read(path)


@dataclass(frozen=True)
class LmEvalOptions:
    """Options of the lm_eval evaluator.

    Attributes:
        tasks: names of lm-eval's tasks, groups or tags, and paths of YAMLs that define a task, for example ``coqa``.
        data: JSONL file of rows that one task reads instead of its own data, for example ``rows.jsonl``.
        group: field that several documents share, such as ``story``: documents with the same value count as one source
            in intervals. ``None`` detects the field from the documents.
        num_fewshot: number of examples before each question, for example 5; ``None`` uses the task's number.
        apply_chat_template: whether to format prompts with the model's chat template.
        fewshot_as_multiturn: whether each example is a separate turn of the chat.
        enable_thinking: whether the chat template turns reasoning on, if it has that switch; ``None`` leaves the choice
            to the template. Reasoning is for tasks that generate, and needs `think_end_token`.
        think_end_token: text that ends the reasoning, such as ``</think>``: the text after its last occurrence is the
            answer, and stop sequences count from there.
        system_instruction: text before everything else, for example ``Answer briefly.``
        gen_kwargs: generation settings that override the task's own, for example ``{"max_gen_toks": 32}``.
        batch_size: requests per batch, for example 8; ``auto`` starts with 16 on a GPU and 1 on a CPU, is halved when
            memory runs out, and is 1 for a variant whose documents in a batch affect each other; a number is kept.
        max_length: maximum tokens of prompt and answer, for example 4096; ``None`` means the model's number of
            positions.
        engine: ``tree`` reads what prompts share once, ``stock`` is lm-eval's own model, and ``auto`` is ``tree`` on a
            CPU, except for answers generated in 16 bits, and ``stock`` elsewhere. Models that ``tree`` does not support
            keep ``stock``, with a note.
        verify: number of random requests per task that ``stock`` scores too, to check ``tree``; for example 16.
    """

    tasks: tuple[TaskFile | str, ...]
    data: InputFile | None = None
    group: str | None = None
    num_fewshot: int | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    enable_thinking: bool | None = None
    think_end_token: str | None = None
    system_instruction: str | None = None
    gen_kwargs: Mapping[str, Json] | None = None
    batch_size: int | Literal["auto"] = "auto"
    max_length: int | None = None
    engine: Literal["auto", "tree", "stock"] = "auto"
    verify: int = 4

    def __post_init__(self) -> None:
        """Refuse values that are out of range or contradict each other."""
        raise_all(list(_wrong_values(self)))

    def check(self, model: ModelInfo, device: Device) -> None:
        """Refuse unknown tasks and rows that a task cannot read, without heavy imports.

        Raises:
            UnknownNameError: for a task that lm-eval does not have.
            OptionError: for faults in files, and for examples that a task would ignore.
            UnsupportedError: for tasks that run code written by the model, or that use pictures or sound.
            MissingDependencyError: if lm-eval is not installed.
            RequestErrors: for several of these errors.
        """
        from llmquant.evaluators.lm_eval.chat import check_files
        from llmquant.evaluators.lm_eval.generation import wrong_settings

        errors: list[RequestError] = list(wrong_settings(self.gen_kwargs or {}))
        for task in self.tasks:
            with collecting(errors):
                self._check_task(task, model)
        if self.apply_chat_template:
            with collecting(errors):
                check_files(model, self)
        raise_all(errors)

    def parts(self) -> Sequence[LmEvalOptions]:
        """Return one evaluator per task."""
        return [replace(self, tasks=(task,)) for task in self.tasks]

    def whole(self) -> str:
        """Return why the documents cannot be scored in slices; ``""`` if they can."""
        configurations = [c for task in self.tasks for c in self._configurations(task)]
        if len(configurations) != 1:
            return f"it stands for {len(configurations)} tasks"
        (task,) = configurations
        names = [
            str(metric.get("metric"))
            for metric in task.get("metric_list", ())
            if metric.get("aggregation", "mean") != "mean"
        ]
        if "class" in task or task.get("output_type") == "loglikelihood_rolling" or names:
            return f"{' and '.join(names) or 'its score'} may be no mean over documents"
        return ""

    def metrics(self) -> Collection[str] | None:
        """Return the names of the tasks' scores; ``None`` for a task of Python code."""
        from llmquant.catalogs.lm_eval_scores import metric_names

        found = [metric_names(c) for task in self.tasks for c in self._configurations(task)]
        return None if not all(found) else {name for names in found for name in names}

    def texts(self) -> Iterator[str]:
        """Yield the local evaluation text: the texts of local rows."""
        from llmquant.evaluators.lm_eval.rows import row_texts

        if self.data is not None and self.data.path is not None:
            yield from row_texts(self.data.path, self.data.name)

    def hub_rows(self) -> Mapping[str, str]:
        """Return the tasks' data sets of the Hub, and what to write instead; nothing with local rows."""
        if self.data is not None:
            return {}
        found: dict[str, str] = {}
        for configuration in (c for task in self.tasks for c in self._configurations(task)):
            path, name, instead = configuration.get("dataset_path"), configuration.get("dataset_name") or "", ""
            if function := configuration.get("class"):
                path = _dataset_of_class(function)
            else:
                instead = f"lm_eval({configuration.get('task')}, data=FILE.jsonl)"
            local = "custom_dataset" in configuration or path in (None, "", *_FILES) or Path(str(path)).exists()
            if not local:
                found[f"{path}:{name}"] = instead
        return found

    def cost(self, model: ModelInfo, documents: Documents) -> Cost:
        """Estimate the work, within a factor of three for common tasks."""
        read = generated = 0
        rows = _DOCUMENTS if self.data is None or self.data.path is None else _count_lines(self.data.path)
        count = min(documents.limit or rows, rows)
        for configuration in (c for task in self.tasks for c in self._configurations(task)):
            tokens, answer = _TOKENS.get(str(configuration.get("output_type", "generate_until")), (600, 64))
            shots = self.num_fewshot if self.num_fewshot is not None else configuration.get("num_fewshot") or 0
            limit = (self.gen_kwargs or {}).get("max_gen_toks")
            read += count * (tokens + 100 * shots)
            generated += count * min(answer, limit if isinstance(limit, int) else answer)
        return Cost(read, generated)

    def _check_task(self, task: InputFile | str, model: ModelInfo) -> None:
        configurations = self._configurations(task)
        name = task if isinstance(task, str) else task.name
        for configuration in configurations:
            _refuse_unsupported(configuration)
            kind = configuration.get("output_type", "generate_until")
            if kind == "generate_until":
                self._check_generation(configuration, model)
            if self.enable_thinking and kind != "generate_until":
                raise UnsupportedError(
                    f"lm_eval: task {configuration.get('task')!r} scores given answers and generates nothing",
                    hint="Omit enable_thinking, or use enable_thinking=false.",
                )
            if self.num_fewshot and configuration.get("num_fewshot") == 0:
                raise OptionError(
                    f"lm_eval: task {configuration.get('task')!r} is defined for 0 examples, found "
                    f"num_fewshot={self.num_fewshot}",
                    hint="Omit num_fewshot, because lm-eval would ignore it.",
                )
        if self.data is not None:
            if len(configurations) != 1:
                raise OptionError(
                    f"lm_eval: data needs a single task, but {name!r} stands for {len(configurations)} tasks",
                    hint="Name one of these tasks.",
                )
            self._check_rows(name, configurations[0])

    def _check_generation(self, configuration: Mapping[str, Any], model: ModelInfo) -> None:  # Any: YAML values
        from llmquant.evaluators.lm_eval.generation import answer_tokens

        if model.reads_padding and self.batch_size not in ("auto", 1):
            raise UnsupportedError(
                f"lm_eval: batch_size is {self.batch_size}, but {model.source} reads the padding of shorter prompts "
                f"in a batch (type {model.text_config.get('model_type')})",
                hint="Omit batch_size: these models answer one prompt at a time.",
            )
        wanted = answer_tokens({**(configuration.get("generation_kwargs") or {}), **(self.gen_kwargs or {})})
        limit = self.max_length or positions(model)
        if limit is not None and wanted >= limit:
            raise OptionError(
                f"lm_eval: task {configuration.get('task')!r} asks for answers of {wanted} tokens, but prompt and "
                f"answer have {limit}",
                hint=f'Request fewer tokens: gen_kwargs={{"max_gen_toks": {min(64, limit // 2)}}}.',
            )

    def _check_rows(self, name: str, configuration: Mapping[str, Any]) -> None:  # Any: YAML values
        from llmquant.evaluators.lm_eval.rows import check_rows

        if "class" in configuration:
            raise OptionError(f"lm_eval: task {name!r} is Python code that loads its own data; it cannot read rows")
        if self.data is None or self.data.path is None:  # a worker need not check again
            return
        settings = {**(configuration.get("generation_kwargs") or {}), **(self.gen_kwargs or {})}
        asked = {**configuration, "generation_kwargs": settings}
        count = check_rows(self.data.path, self.data.name, name, asked, self.group)
        shots = self.num_fewshot if self.num_fewshot is not None else configuration.get("num_fewshot") or 0
        if shots >= count and "samples" not in (configuration.get("fewshot_config") or {}):
            raise OptionError(
                f"lm_eval: {shots} examples and a question need {shots + 1} rows; {self.data.name} has {count}",
                hint="Examples are drawn from the same rows.",
            )

    def _configurations(self, task: InputFile | str) -> list[Mapping[str, Any]]:  # Any: YAML values
        """Read the configurations of every task that `task` stands for."""
        from llmquant.catalogs.lm_eval import installed_tasks
        from llmquant.catalogs.lm_eval_task_file import read_task_file
        from llmquant.catalogs.lm_eval_yaml import read_task
        from llmquant.storage.cache import Cache

        index = installed_tasks(Cache.default())
        if isinstance(task, InputFile):
            if task.path is None:  # a worker need not check again
                return []
            return [read_task_file(task.path, task.name, index, rows=self.data is not None)]
        if task.lower().endswith(_YAML):
            raise OptionError(
                f"lm_eval: there is no file {task!r}", hint="Paths are relative to the working directory."
            )
        return [read_task(index.root / index.find(leaf).file) for leaf in index.leaves(task)]


def _wrong_values(options: LmEvalOptions) -> Iterator[OptionError]:
    if not options.tasks:
        yield OptionError("lm_eval needs a task", hint="Write lm_eval(coqa); see: llmquant tasks")
    for name, least in (("num_fewshot", 0), ("batch_size", 1), ("max_length", 2), ("verify", 0)):
        value = getattr(options, name)
        if isinstance(value, int) and value < least:
            yield OptionError(f"lm_eval: {name} must be at least {least}, found {value}")
    answer = (options.gen_kwargs or {}).get("max_gen_toks", 1)
    if isinstance(answer, int) and answer < 1:
        yield OptionError(f"lm_eval: max_gen_toks must be at least 1, found {answer}")
    if options.fewshot_as_multiturn and not options.apply_chat_template:
        yield OptionError(
            "lm_eval: fewshot_as_multiturn makes turns of a chat, but apply_chat_template is false",
            hint="Add apply_chat_template=true.",
        )
    if options.enable_thinking is not None and not options.apply_chat_template:
        yield OptionError(
            "lm_eval: enable_thinking is for the chat template, but apply_chat_template is false",
            hint="Add apply_chat_template=true.",
        )
    if options.enable_thinking and not options.think_end_token:
        yield OptionError(
            "lm_eval: enable_thinking=true needs think_end_token, else the reasoning is scored as the answer",
            hint='For most models: think_end_token="</think>".',
        )
    if options.data is not None and len(options.tasks) > 1:
        yield OptionError(
            f"lm_eval: data needs a single task, but {len(options.tasks)} tasks are named",
            hint="Write one evaluator per task: lm_eval(coqa, data=a.jsonl), lm_eval(boolq, data=b.jsonl).",
        )


def _dataset_of_class(function: Function) -> str:
    """Return the data set of a task of Python code; ``""`` if its code fetches the rows in its own way."""
    code = "" if function.file is None else function.file.read_text(encoding="utf-8")
    found = re.search(r'^ +DATASET_PATH = "(.+)"', code, re.MULTILINE)
    return found[1] if found and "def download" not in code else ""


def _count_lines(file: Path) -> int:
    with file.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


def _refuse_unsupported(configuration: Mapping[str, Any]) -> None:  # Any: YAML values
    name = configuration.get("task")
    if configuration.get("unsafe_code"):
        raise UnsupportedError(
            f"lm_eval: task {name!r} runs code that the model wrote", hint="Run it with lm-eval itself, in a sandbox."
        )
    if configuration.get("doc_to_image") or configuration.get("doc_to_audio"):
        raise UnsupportedError(f"lm_eval: task {name!r} uses pictures or sound, but this evaluator is for text")
