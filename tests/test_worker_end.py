"""A worker keeps its output and ends, whatever an evaluator did to its streams, threads and exit handlers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_WORKER = """
import atexit, os, sys, threading, time
from pathlib import Path
from llmquant.running import output, worker as pipeline

def work(record, store):
    copies = output.keep_output()
    {what}
    output.give_back(copies)
    with open(sys.argv[2], "w") as stream:
        assert stream.fileno() > 2
        print("after it")
        pipeline._log.info("logged")
    {end}

pipeline.work = work
pipeline.main()
"""


def _run(tmp_path: Path, what: str, end: str = "return False") -> subprocess.CompletedProcess[str]:
    code = _WORKER.format(what=what, end=end)
    command = [sys.executable, "-c", code, "record.json", str(tmp_path / "file")]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "what",
    [
        "os.close(1); os.close(2)",
        "sys.stdout.close(); sys.stderr.close()",
        "sys.stdout = sys.stderr = None",
        "os.dup2(os.open(os.devnull, os.O_WRONLY), 1); os.dup2(1, 2)",
    ],
)
def test_output_that_an_evaluator_closed_is_opened_again(tmp_path: Path, what: str):
    """What is printed and logged afterwards is in the log, and not in the next file that is opened."""
    done = _run(tmp_path, what)
    assert (done.returncode, done.stdout) == (0, "after it\n")
    assert "logged" in done.stderr
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    "what", ["threading.Thread(target=time.sleep, args=(600,)).start()", "atexit.register(time.sleep, 600)"]
)
def test_a_worker_ends_whatever_was_left_running(tmp_path: Path, what: str):
    """A thread that never ends and an exit handler that hangs do not keep a study waiting."""
    assert _run(tmp_path, what).returncode == 0


def test_a_worker_that_fails_says_why(tmp_path: Path):
    """The log has the traceback, and the exit code is not 0."""
    done = _run(tmp_path, "pass", "raise OSError(28, 'no room')")
    assert done.returncode == 1
    assert "no room" in done.stderr


def test_a_variant_whose_baseline_failed_says_so(tmp_path: Path):
    """It fails for that reason, which the report can group, not for a missing file."""
    from dataclasses import replace

    from llmquant.errors import ReferenceFailedError
    from llmquant.running.worker import _failure, _reference
    from llmquant.storage.store import Store
    from made_up import experiment

    variant = replace(experiment("nf4", "fidelity(text.txt)"), reference="0123456789abcdef")
    with pytest.raises(ReferenceFailedError, match="the baseline's run 0123456789abcdef left no ") as caught:
        _reference(variant, Store(tmp_path))
    assert _failure(caught.value, tmp_path / "job.json", 0).kind == "reference_failed"
