"""The first steps of a child, which are the same for all of them."""

import os
import pickle
import signal
import socket
import struct
import sys
from importlib import import_module

from serving.processes.end import LOST
from serving.processes.lifeline import end_with

LENGTH = struct.Struct("<I")
"""Precedes the first words."""


def run(module: str) -> None:
    """Tie this process to its parent, read the first words, and call `main` of a module.

    The command line has the signal that ends this process with its parent, the lifeline, the
    channel, and then the arguments of the module.

    Args:
        module: its `main` takes the channel, a socket, and the words.
    """
    number, lifeline, channel = map(int, sys.argv[1:4])
    del sys.argv[1:4]
    # One that is asked to end will end its own children.
    owner = -os.getpid() if number == signal.SIGKILL else os.getpid()
    end_with(lifeline, number, owner)
    sock = socket.socket(fileno=channel)
    sock.set_inheritable(False)
    length = sock.recv(LENGTH.size, socket.MSG_WAITALL)
    if len(length) < LENGTH.size:
        os._exit(LOST)
    (size,) = LENGTH.unpack(length)
    words = pickle.loads(sock.recv(size, socket.MSG_WAITALL))
    import_module(module).main(sock, words)
