"""The mteb evaluator: mteb's tasks, scored by mteb, on a loaded embedder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import mteb as harness
from mteb.abstasks import AbsTask

from llmquant.catalogs.mteb import known_mteb
from llmquant.evaluators.mteb.options import MtebOptions, selected
from llmquant.evaluators.mteb.run import evaluate_task, fetch_task
from llmquant.plugins.context import Context
from llmquant.plugins.evaluator import Evaluator
from llmquant.retrieval.loaded import LoadedEmbedder
from llmquant.study.run import Result


class Mteb(Evaluator[MtebOptions]):
    """Run mteb's tasks."""

    def fetch(self, ctx: Context) -> None:
        """Fetch the tasks' data.

        Raises:
            RunError: if a task's data is unavailable.
        """
        for task in self._tasks(ctx):
            fetch_task(task)

    def evaluate(self, subject: LoadedEmbedder, ctx: Context) -> Iterator[Result]:
        """Yield one result per task, and one per subset of a task with several subsets.

        Raises:
            RunError: if a task's data is unavailable, or none of it can be encoded.
        """
        sized = replace(subject, batch_tokens=self.options.batch_tokens)
        for task in self._tasks(ctx):
            yield from evaluate_task(task, sized, ctx, engine=self.options.engine)

    def _tasks(self, ctx: Context) -> Iterator[AbsTask]:
        for name, subsets, splits in selected(self.options, known_mteb(ctx.cache)):
            yield harness.get_task(name, hf_subsets=list(subsets) or None, eval_splits=list(splits) or None)
