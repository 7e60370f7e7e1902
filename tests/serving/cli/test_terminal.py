"""Output of native code is dropped for a while, and no longer."""

import os

import pytest

from serving.commandline.terminal import silenced_stderr


def test_stderr_is_there_again_after_work_that_fails(capfd):
    opened = os.listdir("/proc/self/fd")

    @silenced_stderr()
    def fail():
        os.write(2, b"dropped\n")
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    os.write(2, b"seen\n")
    assert capfd.readouterr().err == "seen\n"
    assert os.listdir("/proc/self/fd") == opened
