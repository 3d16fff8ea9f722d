"""lm-eval's model with shared prefixes read once: tokenization, prompts, filters and metrics stay lm-eval's."""

from __future__ import annotations

import gc
import logging
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lm_eval import utils

from llmquant.engine.decode import generate
from llmquant.engine.forward import Scored, TreeReader, free_bytes
from llmquant.engine.support import why_not
from llmquant.engine.trie import Text, plan
from llmquant.evaluators.lm_eval.logits import refuse_nan
from llmquant.evaluators.lm_eval.model import FittingLM
from llmquant.loading.memory import is_out_of_memory
from llmquant.plugins.evaluator import LoadedModel

_Request = tuple[Any, list[int], list[int]]  # Any: two strings, or None for windows
_Answer = tuple[float, bool]

# Tokens per forward pass at most. On a CPU with 135M parameters, a token takes 3.4 ms among 64, 2.7 ms among 512, and
# 3.2 ms among 1,024, where attention between texts in one row is wasted.
_BUDGET = {"cpu": 512, "mps": 512, "cuda": 4096}
_LEAST_BUDGET = 16
# Differences from lm-eval's log-likelihoods that are rounding, in nats: of a request at least, and per token at most. A
# wrong mask or position changes whole nats.
_ROUNDING = {torch.float32: (1e-4, 1e-3), torch.float16: (1e-2, 0.1), torch.bfloat16: (5e-2, 0.5)}
# A decision compares two scores, and the largest difference of a sample is not the largest of all.
_SAFETY = 4

# What lm-eval divides the log-likelihood of a choice by: acc, acc_norm and acc_bytes.
_SIZES: Sequence[Callable[[str], int]] = (lambda choice: 1, len, lambda choice: len(choice.encode()))

_log = logging.getLogger(__name__)


@dataclass
class Report:
    """What was read, and how the results were checked.

    Attributes:
        reason: why lm-eval's own forward passes were used; ``""`` if they were not.
        read: number of tokens read, without those that lm-eval's forward passes read to check.
        stock: number of tokens that lm-eval would have read, without padding.
        distinct: number of tokens if each shared prefix is read once.
        requests: number of scored requests.
        verified: number of random requests that were scored by lm-eval's forward passes too.
        difference: their largest difference in nats.
        epsilon: margin in nats below which a decision is checked.
        again: number of requests that were run again because of a decision below `epsilon`.
        kept: number of answers in 16 bits with such a decision, which are kept.
    """

    reason: str
    read: int = 0
    stock: int = 0
    distinct: int = 0
    requests: int = 0
    verified: int = 0
    difference: float = 0.0
    epsilon: float = 0.0
    again: int = 0
    kept: int = 0


class TreeLM(FittingLM):
    """lm-eval's model, except that what requests share is read once.

    Args:
        verify: number of random requests per task that are scored by lm-eval's forward passes too.
        seed: seed of the random choice.
        exact: whether lm-eval generates answers in 16 bits, where rounding changes some of them.
        named: arguments of `FittingLM`.

    Attributes:
        report: what was read, and how it was checked.
    """

    def __init__(
        self, subject: LoadedModel, *, verify: int, seed: int, exact: bool = False, **named: Any
    ) -> None:  # Any: FittingLM's
        super().__init__(subject, **named)
        self.exact = exact
        independent = subject.row_independent and subject.info.row_independent
        self.report = Report(why_not(self.model, row_independent=independent))
        self._verify, self._draw = verify, random.Random(seed)
        self._documents: Sequence[tuple[str, int]] = ()
        # At most a quarter of the free memory for logits: twice in 4 bytes, if every token read is scored.
        logits = 8 * self.model.config.get_text_config(decoder=True).vocab_size
        fitting = free_bytes(self.device) // 4 // logits
        self._budget = max(_LEAST_BUDGET, min(_BUDGET[self.device.type], fitting))
        self.report.epsilon, self._allowed = _ROUNDING.get(self.model.dtype, _ROUNDING[torch.float32])

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:  # Any: Instance
        """Answer prompts, each until it ends by itself."""
        return generate(self, requests)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[_Answer]:  # Any: Instance
        """Score continuations; those of a document compete."""
        self._documents = [(request.task_name, request.doc_id) for request in requests]
        return super().loglikelihood(requests, disable_tqdm)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:  # Any: Instance
        """Score whole texts, in lm-eval's windows."""
        if self.report.reason:
            return super().loglikelihood_rolling(requests, disable_tqdm)
        windows = [
            (number, utils.make_disjoint_window(window))
            for number, ids in enumerate(self._encoded(requests))
            for window in utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
        ]
        self._expect(len(windows))
        self._documents = ()  # nothing is decided
        answers = self._loglikelihood_tokens([(None, *window) for _, window in windows])
        totals = [0.0] * len(requests)
        for (number, _), (logprob, _) in zip(windows, answers, strict=True):
            totals[number] += logprob
        refuse_nan(totals)
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[_Answer]:
        if self.report.reason:
            return super()._loglikelihood_tokens(requests, disable_tqdm, override_bs)
        self._check(requests)
        scores = self._read(requests)
        stock = self._stock(requests, self._draw.sample(range(len(requests)), min(self._verify, len(requests))))
        if not all(self._agrees(logprob - scores[i][0], len(requests[i][2])) for i, (logprob, _) in stock.items()):
            return list(self._stock(requests, range(len(requests))).values())
        close = set(self._close(requests, scores)) - stock.keys()
        stock |= self._stock(requests, sorted(close))
        self.report.requests += len(requests)
        self.report.verified += len(stock) - len(close)
        self.report.again += len(close)
        answers = [stock.get(index, (logprob, lead > 0)) for index, (logprob, lead) in enumerate(scores)]
        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            if request[0] is not None and index not in stock:
                self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def _stock(self, requests: Sequence[_Request], indices: Sequence[int]) -> dict[int, _Answer]:
        """Score requests by lm-eval's forward passes; progress has counted them already."""
        done, progress = self._done, self._progress
        self._progress = lambda done, total: None
        try:
            answers = super()._loglikelihood_tokens([requests[index] for index in indices])
        finally:
            self._done, self._progress = done, progress
        return dict(zip(indices, answers, strict=True))

    def _agrees(self, difference: float, tokens: int) -> bool:
        self.report.difference = max(self.report.difference, abs(difference))
        self.report.epsilon = max(self.report.epsilon, _SAFETY * self.report.difference)
        if abs(difference) <= self._allowed * tokens:
            return True
        self.report.reason = f"a log-likelihood differed from lm-eval's by {abs(difference):.2g}"
        _log.warning("shared prefixes are not used: %s", self.report.reason)
        return False

    def _read(self, requests: Sequence[_Request]) -> list[tuple[float, float]]:
        """Return each request's log-likelihood and its lead in nats, positive if greedy decoding writes the request."""
        texts = [
            Text([*context, *continuation][-(self.max_length + 1) :][:-1], continuation)
            for _, context, continuation in requests
        ]
        planned = plan(texts, self._budget)
        self.report.stock += planned.stock
        self.report.distinct += planned.distinct
        scored: list[list[Scored]] = [[] for _ in texts]
        while waiting := [index for index, found in enumerate(scored) if len(found) < len(texts[index].targets)]:
            for index in waiting:
                scored[index].clear()
            try:
                self._read_texts(texts, waiting, scored)
            except Exception as error:  # torch and the backends of quantized layers may raise anything
                if self._budget <= _LEAST_BUDGET or not is_out_of_memory(error):
                    raise
                self._budget //= 2
                _log.warning("a forward pass does not fit; continuing with %d tokens", self._budget)
            gc.collect()  # outside the except clause, whose traceback keeps the tensors alive
        return [(sum(each.logprob for each in found), min(each.lead for each in found)) for found in scored]

    def _read_texts(self, texts: Sequence[Text], numbers: Sequence[int], scored: Sequence[list[Scored]]) -> None:
        reader = TreeReader(self.model)
        for forward in plan([texts[number] for number in numbers], self._budget).forwards:
            self.report.read += sum(len(row.tokens) for row in forward.rows)
            for each in reader.read(forward):
                index = numbers[each.target.text]
                scored[index].append(each)
                if len(scored[index]) == len(texts[index].targets):
                    self._finish(1)

    def _close(self, requests: Sequence[_Request], scores: Sequence[tuple[float, float]]) -> Iterator[int]:
        """Yield requests with a decision that rounding could change: greedy or not, and which choice is the best."""
        documents: dict[tuple[str, int], list[int]] = defaultdict(list)
        for index, document in enumerate(self._documents):
            documents[document].append(index)
            if self.is_close(document, abs(scores[index][1])):
                yield index
        for document, indices in documents.items():
            # Choices alone have an empty context, for acc_mutual_info; they compete with nothing.
            choices = [index for index in indices if requests[index][0] and requests[index][0][0]] or indices
            for size in _SIZES if len(choices) > 1 else ():
                sizes = [max(1, size(requests[index][0][1].removeprefix(" "))) for index in choices]
                values = [scores[index][0] / length for index, length in zip(choices, sizes, strict=True)]
                best = max(range(len(choices)), key=values.__getitem__)
                for rival in range(len(choices)):
                    margin = (values[best] - values[rival]) * min(sizes[best], sizes[rival])
                    if rival != best and self.is_close(document, margin):
                        yield from (choices[best], choices[rival])

    def is_close(self, document: tuple[str, int], margin: float) -> bool:
        """Note the margin of a decision; return whether rounding could change it."""
        self.margins[document] = min(margin, self.margins.get(document, margin))
        return not margin >= self.report.epsilon
