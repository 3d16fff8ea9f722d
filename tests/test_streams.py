"""A call in this process shows its own text, and no other library's."""

from __future__ import annotations

import logging
import sys

from llmquant.machine.streams import libraries_to_log


@libraries_to_log()
def noisy() -> None:
    print("\rLoading weights:  50%", end="", file=sys.stderr)
    logging.getLogger("some_library").warning("found no kernel")
    logging.getLogger("other_library").warning("cannot load its extension")
    logging.getLogger("llmquant.storage.cache").warning("waiting for another study")
    print("a plugin's print")


def test_only_own_warnings_are_shown(capsys, monkeypatch):
    """Bars and logs of libraries are not, also of those imported before; standard output stays; nothing remains."""
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.getLogger("some_library"), "handlers", [handler])
    noisy()
    shown = capsys.readouterr()
    assert shown.err == "waiting for another study\n"
    assert shown.out == "a plugin's print\n"
    assert handler.stream is sys.stderr
    assert not logging.getLogger("llmquant").handlers


def test_the_log_has_what_libraries_write(caplog):
    """At level INFO."""
    caplog.set_level(logging.INFO, "llmquant")
    noisy()
    lines = [record.message for record in caplog.records if record.name == "llmquant.machine.streams"]
    assert lines == ["Loading weights:  50%"]


def test_a_library_keeps_a_stream_that_shows(capsys):
    """What it bound while it was imported in the block writes to standard error afterwards."""
    with libraries_to_log():
        bound = logging.StreamHandler()
    bound.emit(logging.makeLogRecord({"msg": "later"}))
    assert capsys.readouterr().err == "later\n"
