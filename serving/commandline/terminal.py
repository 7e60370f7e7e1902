"""Lines of a terminal: texts from others are escaped, and native code is kept silent."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def silenced_stderr() -> Iterator[None]:
    """Drop native code's output to stderr; exceptions still come through."""
    if sys.stderr is None:  # it was closed when the process began
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def escape(text: str) -> str:
    """Escape control characters, such as a newline or a terminal's sequences, and lone bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
