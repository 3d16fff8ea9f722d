"""Keep standard output for this program's own text."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import TextIO


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
