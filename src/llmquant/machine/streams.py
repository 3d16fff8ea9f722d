"""Keep standard output and standard error for this program's own text."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterator
from typing import TextIO

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def stdout_to_stderr() -> Iterator[TextIO]:
    """Send the output of other code, such as a plugin's import, to standard error.

    Yields:
        A stream that still writes to standard output.
    """
    stream: TextIO = sys.stdout
    with contextlib.ExitStack() as stack:
        if sys.stdout is sys.__stdout__:  # else standard output was replaced in this process and has no file descriptor
            stream.flush()
            kept = os.dup(1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
            stack.callback(stream.flush)
            os.dup2(2, 1)
            stream = stack.enter_context(os.fdopen(kept, "w", encoding=stream.encoding, closefd=False))
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield stream


@contextlib.contextmanager
def libraries_to_log() -> Iterator[None]:
    """Log at level INFO what other libraries write to standard error, such as progress bars; own warnings are shown.

    Outputs that libraries display in a notebook are dropped. Standard output stays, for a debugger.
    """
    shown, own = sys.stderr, logging.getLogger("llmquant")
    lines = _Lines(shown)
    with contextlib.ExitStack() as stack:
        if not own.hasHandlers():
            still = logging.StreamHandler(shown)
            own.addHandler(still)
            stack.callback(own.removeHandler, still)
        for logger in list(logging.root.manager.loggerDict.values()):
            for handler in getattr(logger, "handlers", ()):
                bound = isinstance(handler, logging.StreamHandler) and vars(handler).get("stream") is shown
                if bound and logger is not own:
                    handler.setStream(lines)
                    stack.callback(handler.setStream, shown)
        if "IPython" in sys.modules:
            from IPython.utils.capture import capture_output

            stack.enter_context(capture_output(stdout=False, stderr=False))  # bars that are widgets
        stack.callback(setattr, lines, "writes", shown.write)
        stack.enter_context(contextlib.redirect_stderr(lines))
        yield


class _Lines(io.TextIOBase):
    """Logs lines; after the block it writes to the stream, for libraries that keep what was standard error.

    Attributes:
        writes: takes the text.
    """

    def __init__(self, shown: TextIO) -> None:
        self.writes = self._log_lines
        self._shown, self._logging = shown, False

    def fileno(self) -> int:
        return self._shown.fileno()

    def write(self, text: str) -> int:
        return self.writes(text)

    def _log_lines(self, text: str) -> int:
        if not self._logging:  # a handler made by a library may write to this stream
            self._logging = True
            for line in filter(str.strip, text.splitlines()):
                _log.info("%s", line.strip())
            self._logging = False
        return len(text)
