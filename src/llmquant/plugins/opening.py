"""Open an executor by its call, and close it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from llmquant.errors import OptionError
from llmquant.plugins.executor import Executor
from llmquant.plugins.registry import registry
from llmquant.study.call import Call
from llmquant.study.reading import brief


@contextmanager
def open_executor(executor: str | Executor) -> Iterator[Executor]:
    """Open an executor by its call and close it afterwards; an executor object is passed through and not closed.

    Raises:
        RequestError: if the executor is unknown, or an option is wrong.
    """
    if not isinstance(executor, str):
        if not hasattr(executor, "installs"):
            hint = 'Give a name such as "local", a call such as "local(threads=2)", or an executor.'
            raise OptionError(f"executor is {brief(executor)}", hint=hint)
        yield executor
        return
    call = Call.parse(executor)
    if call.name == "local":  # the default always means llmquant's own executor
        call = replace(call, name="llmquant/local")
    opened: Executor = registry().construct(registry().choose("executor", call))
    try:
        yield opened
    finally:
        opened.close()
