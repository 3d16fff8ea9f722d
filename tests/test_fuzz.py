"""Whatever is in a store, a study file or a call, it ends in an answer or in one clear error.

``nox -s fuzz`` tries 10,000 of each and prints how many; here it is some dozens, the same every time.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import shutil
import typing
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

import fuzzing
from llmquant.cli.app import app
from llmquant.errors import LlmquantError, RequestError
from llmquant.planning.resolve import Planned
from llmquant.plugins.registry import registry
from llmquant.results.comparison import Comparison
from llmquant.running.progress import progress
from llmquant.running.scheduler import Scheduler
from llmquant.storage.store import Store
from llmquant.study.call import Call
from llmquant.study.record import StudyRecord
from llmquant.study.study import Study

TRIES = int(os.environ.get("LLMQUANT_FUZZ_TRIES", "0"))
_SETTINGS = settings(
    max_examples=TRIES or 60,
    derandomize=not TRIES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, Phase.shrink],
)
_FORMATS = ["table", "markdown", "csv", "json", "html"]
_EXECUTOR: Any = SimpleNamespace(
    name="elsewhere",
    outlives=True,
    slots=1,
    device="cpu",
    threads=1,
    collect=lambda *_: "lost",
    why_lost=lambda _: "gone",
    leave=lambda _: None,
)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[[str, Callable[[], int]], None]:
    """Say at the end of a long run what was tried."""

    def tell(what: str, count: Callable[[], int]) -> None:
        if TRIES:
            with capsys.disabled():
                print(f"\n{what}: {count():,} tries, 0 tracebacks")

    return tell


def run_cli(*arguments: str) -> None:
    """Run a command in this process; whatever it raises beside its errors and its exit code is a traceback."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with redirect_stdout(out), redirect_stderr(out), suppress(SystemExit, LlmquantError):
        app(arguments)


def read_as_compare_does(root: Path) -> None:
    """Read what is planned, reused and still running."""
    store = Store(root)
    for study in store.studies():
        with suppress(LlmquantError):
            record = store.read_study(study, StudyRecord.from_json)
            scheduler = Scheduler(Planned(record, {}, (), (), {}), registry(), store, _EXECUTOR)
            scheduler.take_up()
            assert progress(record, scheduler.reused, scheduler.runs, [], None).total == len(record.experiments)
            scheduler.jobs()


def test_damaged_stores_end_in_one_clear_error(tmp_path: Path, told):
    """Reports in every form, and what `compare` reads, of stores with one to three damages."""
    whole, root = tmp_path / "whole", tmp_path / "store"
    fuzzing.whole_store(whole)
    logging.disable(logging.CRITICAL)
    tries = 0

    @_SETTINGS
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        nonlocal tries
        tries += 1
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        for _ in range(data.draw(st.integers(1, 3))):
            data.draw(fuzzing.damage(root))
        run_cli("report", str(root), "--format", data.draw(st.sampled_from(_FORMATS)))
        read_as_compare_does(root)

    try:
        damaged()
    finally:
        logging.disable(logging.NOTSET)
    told("damaged stores", lambda: tries)


def test_damaged_portable_files_end_in_one_clear_error(tmp_path: Path, told):
    """Reports in every form of portable files that were changed in one place."""
    whole, file = fuzzing.whole_store(tmp_path / "whole"), tmp_path / "study.json"
    text = json.dumps(Comparison.from_store(whole).to_json())
    tries = 0

    @_SETTINGS
    @given(st.data())
    def damaged(data: st.DataObject) -> None:
        nonlocal tries
        tries += 1
        raw = text.encode()
        if data.draw(st.integers(0, 9)):
            raw = json.dumps(data.draw(fuzzing.changed_json(json.loads(text)))).encode()
        else:
            raw = data.draw(fuzzing.changed_bytes(raw))
        file.write_bytes(raw)
        run_cli("report", str(file), "--format", data.draw(st.sampled_from(_FORMATS)))

    damaged()
    told("damaged portable files", lambda: tries)


def test_study_files_are_read_as_written_or_refused(tmp_path: Path, told):
    """A study that is read survives being written; all else is a wrong request."""
    tries = 0

    @_SETTINGS
    @given(fuzzing.study_texts())
    def nearly_right(text: tuple[str, bytes]) -> None:
        nonlocal tries
        tries += 1
        file = tmp_path / f"study.{text[0]}"
        file.write_bytes(text[1])
        try:
            study = Study.from_file(file)
        except RequestError:
            return
        assert Study.from_json(json.loads(json.dumps(study.to_json()))) == study

    nearly_right()
    told("study files", lambda: tries)


@cache
def _plugin(kind: Any, name: str) -> Any:
    plugin, _ = registry().find(kind, name)
    return registry().options_class(plugin)


def _right_values(hint: Any) -> list[str]:
    if get_origin(hint) is Literal:
        return [str(choice) for choice in get_args(hint)]
    simple = {bool: ["true", "false"], int: ["1", "8", "128"], float: ["0.5", "2"], str: ["coqa", "a"]}
    return simple.get(hint, []) + [text for arm in get_args(hint) for text in _right_values(arm)]


@pytest.mark.parametrize("kind", ["quantizer", "evaluator", "embedder", "executor"])
def test_options_are_built_or_refused(kind: Any, tmp_path: Path, told, monkeypatch: pytest.MonkeyPatch):
    """Calls of every built-in plugin: their options are built, dumped and built again, or the request is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("A text.\n")
    names = sorted(registry().names(kind))
    tries = 0

    def fields(name: str) -> list[str]:
        return [field.name for field in dataclasses.fields(_plugin(kind, name))]

    def values(name: str, option: str) -> list[str]:
        return _right_values(typing.get_type_hints(_plugin(kind, name), localns={"Json": Any})[option])

    @_SETTINGS
    @given(fuzzing.calls(names, fields, values))
    def nearly_right(text: str) -> None:
        nonlocal tries
        tries += 1
        try:
            call = Call.parse(text)
            chosen = registry().choose(kind, call)
        except RequestError:
            return
        assert Call.parse(str(call)) == call
        assert registry().restore(kind, chosen.use).options == chosen.options

    nearly_right()
    told(f"calls of {kind}s", lambda: tries)
