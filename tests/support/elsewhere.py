"""Remove Linux's own features from this interpreter, as on Windows; see test_platforms.py.

Other packages are imported before: on Windows and macOS they have ways of their own.
"""

import asyncio
import builtins
import io
import os
import select
import shutil
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "termios", "tty", "uvloop")
NAMES = {
    os: (
        "sched_getaffinity", "sched_setaffinity", "register_at_fork", "fork", "forkpty", "sysconf",
        "getuid", "geteuid", "killpg", "mkfifo", "fchmod", "chown", "statvfs", "getloadavg",
        "O_NONBLOCK", "O_CLOEXEC", "O_DIRECTORY", "O_NOFOLLOW", "RTLD_NOLOAD", "pread", "setsid",
        "posix_fadvise", "memfd_create", "eventfd",
    ),
    signal: (
        "SIGHUP", "SIGKILL", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGCHLD", "SIGPIPE",
        "alarm", "setitimer", "pthread_sigmask", "SIG_BLOCK", "SIG_SETMASK", "pthread_kill",
    ),
    socket: ("AF_UNIX", "SO_REUSEPORT"),
    select: ("epoll", "poll"),
}  # fmt: skip
LINUX_FOLDERS = ("/proc", "/sys")


def leave_linux(*packages: str) -> None:
    """Import packages of others while all is there, then take it away."""
    for name in packages:
        import_module(name)
    shutil._use_fd_functions = False  # type: ignore[attr-defined]
    socket.socketpair = partial(socket.socketpair, socket.AF_UNIX)
    for module, names in NAMES.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    builtins.open = io.open = _without_folders(io.open)
    os.open = _without_folders(os.open, opens_folders=False)
    os.stat = _without_folders(os.stat)
    os.listdir = _without_folders(os.listdir)
    os.scandir = _without_folders(os.scandir)
    os.rename = _without_overwriting(os.rename)
    asyncio.SelectorEventLoop.add_signal_handler = _refuse  # type: ignore[assignment]
    # There the locale decides a text file's encoding, unless its reader does.
    ours = r"(serving|training|benchmarks)(\.|$)"
    warnings.filterwarnings("error", category=EncodingWarning, module=ours)


def _without_folders(function: Callable[..., Any], opens_folders: bool = True) -> Any:
    def call(path: Any, *arguments: Any, **settings: Any) -> Any:
        text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else ""
        if str(text).startswith(LINUX_FOLDERS):
            raise FileNotFoundError(2, "No such file or directory", text)
        if not opens_folders and os.path.isdir(text):
            raise PermissionError(13, "Permission denied", text)
        return function(path, *arguments, **settings)

    return call


def _without_overwriting(rename: Callable[..., None]) -> Any:
    def call(old: Any, new: Any, **settings: Any) -> None:
        if os.path.exists(new):
            raise FileExistsError(17, "File exists", os.fspath(new))
        rename(old, new, **settings)

    return call


def _refuse(*arguments: object) -> None:
    raise NotImplementedError
