"""Safe reading of files that others have written, and the server's file descriptors."""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from serving.errors import ConfigurationError

_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):  # Windows has the last one only
    _FLAGS |= getattr(os, _name, 0)


def require_descriptors(number: int) -> None:
    """Check the limit of file descriptors: some libraries crash when they run out of them.

    Raises:
        ConfigurationError: the process may open fewer files than `number`.
    """
    import resource

    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit != resource.RLIM_INFINITY and limit < number:
        raise ConfigurationError(f"ulimit -n is {limit}: at least {number} files must be open")


def reserve_standard_files() -> None:
    """Open /dev/null for a closed stdin, stdout or stderr: no other file gets its number."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def read_regular(path: Path, max_bytes: int, more_flags: int = 0) -> bytes:
    """Read a whole file.

    A FIFO would block the reader, a device may never end, and a sparse file can claim any size.

    Args:
        path: the file; a symbolic link to one is followed.
        max_bytes: larger files are refused unread.
        more_flags: how it is opened, such as os.O_NOFOLLOW.

    Raises:
        OSError: it can't be opened or read, is not a regular file, is too large, or is growing.
    """
    with open_regular(path, max_bytes, more_flags) as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1)
    if len(data) > size:
        raise OSError(errno.EAGAIN, "it is still being written")
    return data


def open_regular(path: Path, max_bytes: int, more_flags: int = 0) -> BinaryIO:
    """Open a file for reading; see `read_regular`.

    Raises:
        OSError: it can't be opened, is not a regular file, or is too large.
    """
    # Opening a device can have effects, so check first; O_NONBLOCK: it may be replaced meanwhile.
    _size(path.stat(), max_bytes)
    file = os.fdopen(os.open(path, _FLAGS | more_flags), "rb")
    try:
        _size(os.fstat(file.fileno()), max_bytes)
    except OSError:
        file.close()
        raise
    return file


def _size(state: os.stat_result, max_bytes: int) -> int:
    if stat.S_ISDIR(state.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(state.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if state.st_size > max_bytes:
        raise OSError(errno.EFBIG, f"{state.st_size} bytes, at most {max_bytes} expected")
    return state.st_size
