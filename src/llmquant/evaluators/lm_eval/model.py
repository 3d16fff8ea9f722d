"""The loaded model behind lm-eval's interface, with batches that fit into memory and a record of its prompts."""

from __future__ import annotations

import bisect
import copy
import datetime
import gc
import hashlib
import logging
import math
import re
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs
from transformers import LogitsProcessorList

from llmquant.errors import RunError
from llmquant.evaluators.lm_eval.logits import Ending, Watch, refuse_nan
from llmquant.evaluators.lm_eval.scored_part import Complete
from llmquant.loading.memory import is_out_of_memory
from llmquant.plugins.evaluator import LoadedModel
from llmquant.study.looping import is_looping

# Llama 3.1's own fallback date: templates that write today's date would produce another prompt every day.
CHAT_DATE = datetime.date(2024, 7, 26)
# A token of one byte: a decoder joins such tokens, so that its text is not final.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TODAY = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prompt:
    """The prompt that the model read for one request.

    Attributes:
        digest: digest of the token ids.
        cut_to: number of remaining tokens if the prompt was too long, in which case lm-eval drops the first tokens.
    """

    digest: str
    cut_to: int | None


@dataclass(frozen=True)
class Written:
    """What the model generated for one document, as in `Sample`."""

    generated: int = 0
    cut: bool = False
    looping: bool = False
    early: bool = False

    def __add__(self, other: Written) -> Written:
        return Written(
            self.generated + other.generated,
            self.cut or other.cut,
            self.looping or other.looping,
            self.early or other.early,
        )


class FittingLM(HFLM):  # type: ignore[misc]  # lm_eval has no types
    """lm-eval's Hugging Face model around a loaded module.

    Batches hold the same requests in the same order as lm-eval's own: with a size that fits, results are identical.

    Args:
        batch_size: requests per batch; with `shrink` permanently halved whenever memory runs out.
        max_length: maximum tokens of prompt and answer; ``None`` means the model's number of positions.
        enable_thinking: passed to the chat template; ``None`` leaves the choice to the template.
        think_end_token: text that ends the reasoning; only the text after it is the answer.
        complete: rules by task: an answer ends as soon as nothing that follows can change its score.
        progress: called with (done, total) requests.

    Attributes:
        prompts: the prompts, by the texts of a request.
        written: what was generated, by the task's name and the document's number.
        margins: smallest margin in nats of a document's decisions, by the same, if it was measured.
        endless: number of answers in which `think_end_token` does not occur.
        reasoned: number of answers with reasoning that no option excludes.
        unsaid: whether the chat template omitted a system message.
    """

    def __init__(
        self,
        subject: LoadedModel,
        *,
        batch_size: int,
        shrink: bool,
        max_length: int | None,
        progress: Callable[[int, int], None],
        enable_thinking: bool | None = None,
        think_end_token: str | None = None,
        complete: Mapping[str, Complete] | None = None,
    ) -> None:
        # A copy, because lm-eval gives the tokenizer a padding token that other evaluators must not see.
        tokenizer = copy.deepcopy(subject.tokenizer)
        if isinstance(tokenizer.chat_template, str):
            tokenizer.chat_template = _TODAY.sub(
                lambda found: repr(CHAT_DATE.strftime(found[2])), tokenizer.chat_template
            )
        # lm-eval searches decoded text, without special tokens, for strings, and the ids before decoding for ids.
        special = think_end_token in tokenizer.all_special_tokens
        super().__init__(
            subject.module,
            backend="causal",
            tokenizer=tokenizer,
            batch_size=batch_size,
            max_length=max_length,
            softmax_dtype="float32",
            enable_thinking=enable_thinking,
            # The name of this variable in Granite's and DeepSeek's templates.
            chat_template_args={} if enable_thinking is None else {"thinking": enable_thinking},
            think_end_token=tokenizer.convert_tokens_to_ids(think_end_token) if special else think_end_token,
        )
        self.prompts: dict[tuple[str, ...], Prompt] = {}
        self.written: defaultdict[tuple[str, int], Written] = defaultdict(Written)
        self.margins: dict[tuple[str, int], float] = {}
        self._answers: list[Written] = []  # in the order in which lm-eval generates
        self.endless = self.reasoned = 0
        self.unsaid = False
        self.complete = complete or {}
        self._rule: Complete | None = None  # of the tasks that are generated now
        self._think_end = think_end_token
        self._shrink = shrink
        self._progress = progress
        self._done = self._total = 0

    def get_model_info(self) -> dict[str, Any]:  # Any: lm-eval's own type
        """Return an empty record: lm-eval would query the Hub, and provenance has the information already."""
        return {}

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a conversation with the chat template, without its system message if the template refuses it."""
        said: str = super().apply_chat_template(chat_history, add_generation_prompt)
        self.unsaid |= any(turn["role"] == "system" and turn["content"].strip() not in said for turn in chat_history)
        return said

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # Any: Instance
        """Answer prompts with lm-eval's method.

        Raises:
            RunError: if a task asks for more tokens than the model has positions.
        """
        self._expect(len(requests))
        self.note_prompts(requests)
        rules = {self.complete.get(request.task_name) for request in requests}
        self._rule = rules.pop() if len(rules) == 1 else None
        self._answers.clear()
        order = self.cache_hook = _Order()
        answers: list[str] = super().generate_until(requests, disable_tqdm=True)
        found: dict[str, deque[Written]] = defaultdict(deque)
        for context, answer in zip(order.contexts, self._answers, strict=True):
            found[context].append(answer)
        for request in requests:
            self.written[request.task_name, request.doc_id] += found[request.args[0]].popleft()
        if not self._think_end:
            self.reasoned += sum("</think>" in answer for answer in answers)
        return answers

    def note_prompts(self, requests: Sequence[Any]) -> None:  # Any: Instance
        """Note the prompts of answers to generate.

        Raises:
            RunError: if a task asks for more tokens than the model has positions.
        """
        for context, settings in (request.args for request in requests):
            wanted = normalize_gen_kwargs(settings, self.max_gen_toks)["max_gen_toks"]
            if wanted >= self.max_length:
                raise RunError(
                    f"the task asks for answers of {wanted} tokens, but prompt and answer have {self.max_length}",
                    hint='Request fewer tokens: gen_kwargs={"max_gen_toks": 64}.',
                )
            ids = self.tok_encode(context)
            if not ids:
                raise RunError(
                    "a prompt is empty, and the tokenizer adds no token before a text",
                    hint="Add a question to every document.",
                )
            self._note((context,), ids, len(ids), self.max_length - wanted)

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:  # Any: Instance
        """Score continuations with lm-eval's method.

        Raises:
            RunError: if the model returns NaN, which every comparison of scores would take for a number.
        """
        self._expect(len(requests))
        scores: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        refuse_nan(logprob for logprob, _ in scores)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # Any: Instance
        """Score whole texts with lm-eval's method; progress counts windows.

        Raises:
            RunError: as `loglikelihood`.
        """
        self._expect(sum(-(-len(ids) // self.max_length) for ids in self._encoded(requests)))
        scores: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        refuse_nan(scores)
        return scores

    def _model_generate(
        self,
        context: torch.Tensor,
        max_length: int,
        stop: list[str],
        **generation_kwargs: Any,  # Any: lm-eval passes on a task's settings
    ) -> torch.Tensor:
        mask = generation_kwargs.pop("attention_mask")
        generate, until = super()._model_generate, stop
        watch = Watch()
        processors = LogitsProcessorList([watch])
        if self._think_end or self._rule:

            def ended(ids: list[int]) -> bool:
                if self._think_end:
                    return _ends(self.tokenizer.decode(ids), until, self._think_end)
                return self.is_complete(ids, until, self._rule)

            processors.append(Ending(ended, self.tokenizer.eos_token_id, context.shape[1]))
        if self._think_end:
            stop = []

        def rows(start: int, end: int) -> torch.Tensor:
            part = {**generation_kwargs, "attention_mask": mask[start:end], "logits_processor": processors}
            answers: torch.Tensor = generate(context[start:end], max_length, stop, **part)
            if self._think_end:
                said = self.tokenizer.batch_decode(answers[:, context.shape[1] :])
                self.endless += sum(self._think_end not in text for text in said)
            return answers

        parts = list(self._fitting(len(context), rows, lambda start, end: end - start))
        refuse_nan([math.nan] if watch.nan else ())
        width = max(part.shape[1] for part in parts)
        # Rows that ended early are padded in the same way as by `generate` inside a batch.
        fill = self.tokenizer.pad_token_id
        padded = torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1]), value=fill) for part in parts])
        for answer in padded[:, context.shape[1] :].tolist():
            self._answers.append(self.measure(answer, until, max_length - context.shape[1], self._rule))
        return padded

    def is_complete(self, ids: Sequence[int], stop: Sequence[str], rule: Complete | None) -> bool:
        """Return whether nothing that follows can change the score of an answer."""
        if rule is None or not ids or _BYTE.fullmatch(str(self.tokenizer.convert_ids_to_tokens(ids[-1]))):
            return False
        return rule(self.tok_decode(ids), stop)

    def measure(self, ids: Sequence[int], stop: Sequence[str], limit: int, rule: Complete | None) -> Written:
        """Measure an answer up to its end: in a batch, lm-eval's generation continues until all answers have ended."""
        ends = self.model.generation_config.eos_token_id
        last = {self.tokenizer.pad_token_id, self.eot_token_id, *(ends if isinstance(ends, list) else [ends])}
        count = next((place for place, token in enumerate(ids) if token in last), len(ids))

        def ended(tokens: int) -> bool:
            return _ends(self.tokenizer.decode(ids[:tokens]), stop, self._think_end)

        stopped = ended(count)
        if stopped:
            count = bisect.bisect_left(range(count), True, key=ended)
        early = not stopped and self.is_complete(ids[:count], stop, rule)
        cut = not stopped and not early and count == limit
        return Written(count, cut, is_looping(self.tokenizer.decode(ids[:count])), early)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],  # Any: strings, or None for windows
        disable_tqdm: bool = False,
        override_bs: int | None = None,
    ) -> list[tuple[float, bool]]:
        # lm-eval computes continuations that differ only in the last token once, so they must stay in one batch.
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self._check(requests)
        for index, (_, context, continuation) in enumerate(requests):
            groups[*context, *continuation[:-1]].append(index)

        def lm_eval_order(group: list[int]) -> tuple[int, tuple[int, ...]]:
            _, context, continuation = requests[max(group, key=lambda index: len(requests[index][2]))]
            return -len(context) - len(continuation), (*context, *continuation)

        ordered = sorted(groups.values(), key=lm_eval_order)
        score = super()._loglikelihood_tokens

        def scored(start: int, end: int) -> list[tuple[int, tuple[float, bool]]]:
            indices = [index for group in ordered[start:end] for index in group]
            found = score([requests[index] for index in indices], disable_tqdm=True, override_bs=end - start)
            return list(zip(indices, found, strict=True))

        def count(start: int, end: int) -> int:
            return sum(map(len, ordered[start:end]))

        answers = dict(pair for part in self._fitting(len(ordered), scored, count) for pair in part)
        return [answers[index] for index in range(len(requests))]

    def _fitting(self, total: int, work: Callable[[int, int], _T], requests: Callable[[int, int], int]) -> Iterator[_T]:
        """Yield ``work(start, end)`` over ``range(total)``, in batches that fit into memory."""
        start = 0
        while start < total:
            end = min(total, start + self.batch_size)
            try:
                part = work(start, end)
            except Exception as error:  # torch and the backends of quantized layers may raise anything
                if not self._shrink or end - start == 1 or not is_out_of_memory(error):
                    raise
                self.batch_size_per_gpu = max(1, (end - start) // 2)
                _log.warning("a batch of %d does not fit; continuing with %d", end - start, self.batch_size)
            else:
                yield part
                self._finish(requests(start, end))
                start = end
                continue
            gc.collect()  # outside the except clause, whose traceback keeps the tensors alive
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _expect(self, requests: int) -> None:
        self._total += requests

    def _finish(self, requests: int) -> None:
        self._done += requests
        self._progress(self._done, self._total)

    def _check(self, requests: Sequence[tuple[Any, list[int], list[int]]]) -> None:  # Any: as above
        """Refuse continuations that are too long, and note the prompts."""
        for texts, context, continuation in requests:
            if len(continuation) > self.max_length:
                raise RunError(
                    f"an answer to score has {len(continuation)} tokens, but the model reads {self.max_length}",
                    hint="Omit max_length, or this task.",
                )
            if texts is not None:
                ids = [*context, *continuation]
                self._note(texts, ids, len(ids) - 1, self.max_length)  # the last token is predicted, not read

    def _encoded(self, requests: Sequence[Any]) -> list[list[int]]:  # Any: Instance
        """Tokenize whole texts, and note them."""
        encoded: list[list[int]] = [self.tok_encode(request.args[0]) for request in requests]
        for request, ids in zip(requests, encoded, strict=True):
            self._note(request.args, ids, len(ids), len(ids))  # read in windows, so nothing is cut
        return encoded

    def _note(self, texts: tuple[str, ...], ids: Sequence[int], tokens: int, limit: int) -> None:
        digest = hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
        self.prompts[texts] = Prompt(digest, limit if tokens > limit else None)


def _ends(text: str, stop: Sequence[str], think_end: str | None) -> bool:
    """Return whether a stop sequence ends an answer; in the reasoning before it, none does."""
    if think_end:
        _, ended, text = text.rpartition(think_end)
        text = text.lstrip() if ended else ""
    return any(sequence in text for sequence in stop)


class _Order:
    """Notes the order in which lm-eval generates answers, in the place of its cache."""

    def __init__(self) -> None:
        self.contexts: list[str] = []

    def add_partial(self, method: str, request: tuple[str, object], answer: object) -> None:
        """Note a prompt."""
        if method == "generate_until":
            self.contexts.append(request[0])
