"""What the children of these tests do: the first words say which function, and its arguments."""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path


def main(channel, words):
    """Do what the words say; answer by a line of JSON."""
    name, *given = words or ["say"]

    def answer(**facts):
        channel.sendall(json.dumps(facts).encode() + b"\n")

    globals()[name](answer, *given)


def say(answer, word=""):
    descriptors = {each.name for each in Path("/proc/self/fd").iterdir() if each.is_symlink()}
    answer(
        word=word, argv=sys.argv[1:], names=[*os.environ], path=sys.path, group=os.getpgrp(),
        session=os.getsid(0), files=sorted(map(int, descriptors)),
    )  # fmt: skip


def leave(answer, code):
    forked(answer)
    os._exit(code)


def crash(answer, number):
    os.kill(os.getpid(), number)


def forked(answer):
    """Leave another program behind, which has no descriptor of this process."""
    child = os.fork()
    if not child:
        os.execvp("sleep", ["sleep", "60"])
    while Path(f"/proc/{child}/comm").read_text() != "sleep\n":
        time.sleep(0.001)
    answer(pid=child)


def wait(answer, how=""):
    """Fork, and wait for ever: asleep, stopped, with the interpreter's lock, or until SIGTERM."""
    if how == "term":
        signal.signal(signal.SIGTERM, lambda *_: answer(got="SIGTERM"))
    forked(answer)
    if how == "stopped":
        os.kill(os.getpid(), signal.SIGSTOP)
    if how == "locked":
        ctypes.PyDLL(None).sleep(600)
    while True:
        time.sleep(600)


def parent(answer, hows, end_signal=signal.SIGKILL):
    """Start children on a thread that ends, and a fork of this process that lives on."""
    from serving.processes.child import Child, ChildCommand  # late: other programs need none

    made = []

    def start():
        command = ChildCommand(__name__, end_signal=end_signal)
        made.extend(Child(command, ["wait", how]) for how in hows)

    thread = threading.Thread(target=start)
    thread.start()
    thread.join()
    pids = []
    for child in made:
        with child.channel.makefile() as lines:
            pids.append((child.pid, json.loads(lines.readline())["pid"]))
    if fork := os.fork():
        answer(pids=pids, fork=fork)
    time.sleep(60)
