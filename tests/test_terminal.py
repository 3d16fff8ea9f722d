"""What a terminal shows while something runs: the log above the display, other libraries only on request."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path

import pytest
from rich.console import Console

from llmquant.cli.terminal import Terminal, libraries_logged
from llmquant.results.report.progress import show_layers
from llmquant.running.progress import Progress, Running

_STATE = Progress(2, 0, 1, 0, (Running("bf16_baseline · memory", 1, 2, 0.0),), None)


class _Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def _log_during_a_study(monkeypatch: pytest.MonkeyPatch, *, verbose: bool) -> str:
    """Log as llmquant and as another library during a study in a terminal; return what the terminal receives."""
    screen = _Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setattr(logging.root, "handlers", [])
    try:
        with Terminal("local", "results", quiet=False, verbose=verbose).progress() as show:
            show(_STATE)
            while "memory" not in screen.getvalue():  # drawn by a thread
                time.sleep(0.01)
            before = len(screen.getvalue())
            logging.getLogger("llmquant.running").warning("a warning of ours")
            logging.getLogger("llmquant.running").info("a step")
            logging.getLogger("another_library").warning("a warning of theirs")
            warnings.warn("a deprecation", FutureWarning, stacklevel=1)
            return screen.getvalue()[before:]
    finally:
        logging.captureWarnings(False)
        logging.root.setLevel(logging.WARNING)


def test_the_log_is_printed_above_the_live_display(monkeypatch: pytest.MonkeyPatch):
    """Each line of the log starts after the display was erased, and the display is drawn again below it."""
    shown = _log_during_a_study(monkeypatch, verbose=True)
    for line in ("a warning of ours", "a step", "a warning of theirs"):
        before, _, after = shown.partition(line)
        assert before.endswith("\x1b[2K")
        assert "bf16_baseline · memory" in after


def test_messages_of_other_libraries_are_shown_on_request(monkeypatch: pytest.MonkeyPatch):
    """Without -v, a study's terminal shows the warnings of llmquant alone."""
    shown = _log_during_a_study(monkeypatch, verbose=False)
    assert "a warning of ours" in shown
    assert not any(text in shown for text in ("a step", "a warning of theirs", "a deprecation"))


@pytest.mark.parametrize("fails", [True, False])
def test_what_libraries_print_goes_to_a_file(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
):
    """On both file descriptors, which child processes share; a failure names the file, and success removes it."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with contextlib.suppress(ValueError), libraries_logged(verbose=False) as console:
        os.write(1, b"a bar\n")
        os.write(2, b"a warning\n")
        console.print("a display")
        if fails:
            raise ValueError("wrong")
    _, err = capfd.readouterr()
    assert "a display" in err
    assert "a warning" not in err
    assert [file.read_text() for file in tmp_path.iterdir()] == ["a bar\na warning\n"] * fails
    assert ("messages of other libraries" in err) == fails


def test_no_display_is_drawn_between_what_libraries_print(capfd: pytest.CaptureFixture[str], monkeypatch):
    """With -v their messages are shown, and no bar is."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    with libraries_logged(verbose=True) as console, show_layers(console) as progress:
        os.write(2, b"a warning\n")
        progress(1, 2)
    logging.captureWarnings(False)
    assert capfd.readouterr() == ("", "a warning\n")


def test_no_file_is_left_where_libraries_print_nothing(capfd: pytest.CaptureFixture[str]):
    """A wrong request prints its message alone."""
    with pytest.raises(ValueError, match="wrong"), libraries_logged(verbose=False):
        raise ValueError("wrong")
    assert capfd.readouterr() == ("", "")


def test_layers_are_counted_once_their_number_is_known():
    """A quantizer that does not count has a bar without numbers."""
    screen = _Screen()
    with show_layers(Console(file=screen, force_terminal=True, width=80)) as progress:
        while "quantizing" not in screen.getvalue():  # drawn by a thread
            time.sleep(0.01)
        before = screen.getvalue()
        progress(3, 30)
        while "3 of 30 layers" not in screen.getvalue():
            time.sleep(0.01)
    assert "/" not in before
    assert "layers" not in before
