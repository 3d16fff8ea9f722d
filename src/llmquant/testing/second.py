"""A second program for the checks of executors: ``python -m llmquant.testing.second SPEC CALL ACTION ...``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from llmquant.errors import PluginError
from llmquant.plugins.registry import registry
from llmquant.plugins.spec import PluginSpec
from llmquant.testing.trial import Trial, run_python

if TYPE_CHECKING:
    from llmquant.plugins.executor import Executor

_TIMEOUT_S = 300


def run_second(trial: Trial, action: str, *arguments: str) -> str:
    """Open the executor in a second program, do something, close it, and return the last line of the output.

    Raises:
        PluginError: if the program fails.
    """
    spec = json.dumps(vars(trial.spec))
    arguments = ("-m", "llmquant.testing.second", spec, trial.call, action, *arguments)
    done = run_python(*arguments, timeout_s=_TIMEOUT_S, cwd=trial.folder)
    if done.returncode or not done.stdout.strip():
        raise PluginError(
            f"a second program could not {action} a job: {(done.stderr.splitlines() or ['no output'])[-1]}"
        )
    return done.stdout.splitlines()[-1]


def _cancel(executor: Executor, job_id: str, store: str) -> str:
    for _ in range(100):
        state = executor.collect(job_id, Path(store))
        if state == "running":
            break
        time.sleep(0.1)
    executor.cancel(job_id)
    return state


def _leave(executor: Executor, record: str, store: str) -> str:
    job_id = executor.submit(Path(record), Path(store))
    executor.leave(job_id)
    return job_id


def main() -> None:
    """Do what the command line says, and print the outcome as the last line."""
    spec, call, action, *arguments = sys.argv[1:]
    trial = Trial(PluginSpec(**json.loads(spec)), call)
    executor: Executor = registry().construct(trial.chosen)
    outcome = {"cancel": _cancel, "leave": _leave}[action](executor, *arguments)
    executor.close()
    print(outcome)  # noqa: T201 - for `run_second`


if __name__ == "__main__":
    main()
