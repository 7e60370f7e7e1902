"""Files that are written whole, or not at all."""

import os
import stat
import subprocess
import sys

import pytest

from serving.publishing.files import write_atomically


def test_file_is_readable_by_others(tmp_path):
    write_atomically(tmp_path / "file", b"content")
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644


def test_full_disk_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/file'"):
        write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_kill_while_writing_leaves_the_old_content(tmp_path, moment):
    write_atomically(tmp_path / "file", b"old")
    program = f"""
import os, pathlib, signal
from serving.publishing.files import write_atomically
os.{moment} = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(pathlib.Path({str(tmp_path / "file")!r}), b"new")
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -9
    assert (tmp_path / "file").read_bytes() == b"old"
    write_atomically(tmp_path / "file", b"newer")
    assert (tmp_path / "file").read_bytes() == b"newer"
