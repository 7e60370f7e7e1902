"""Files that are written whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file by renaming it into place: a reader sees the old content or the new.

    Raises:
        OSError: the disk is full or the folder can't be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(partial, 0o644)  # mkstemp's 0600 would lock out a server under another user
        os.replace(partial, path)
    except OSError as err:
        raise OSError(err.errno, err.strerror, str(path)) from err  # a full disk names no file
    finally:
        Path(partial).unlink(missing_ok=True)
