"""Files that others have written: what is no file of a known size is not read."""

import os
import resource

import pytest

from serving.errors import ConfigurationError
from serving.system.files import open_regular, read_regular, require_descriptors


def test_regular_files_are_read_up_to_the_limit(tmp_path):
    path, link = tmp_path / "it", tmp_path / "link"
    path.write_bytes(b"12345")
    link.symlink_to(path)
    assert read_regular(path, 5) == read_regular(link, 6) == b"12345"
    with open_regular(link, 5) as file:
        assert file.read() == b"12345"
    with pytest.raises(OSError, match="5 bytes, at most 4 expected"):
        read_regular(path, 4)
    with pytest.raises(OSError, match="symbolic links"):
        read_regular(link, 5, os.O_NOFOLLOW)


def test_others_are_refused_and_nothing_blocks(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path, 5)
    for path in tmp_path / "fifo", "/dev/null":
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(type(tmp_path)(path), 5)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", 5)


def test_file_that_grows_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "it"
    path.write_bytes(b"12345")
    fstat = os.fstat

    def then_it_grows(descriptor):
        found = fstat(descriptor)
        with path.open("ab") as file:
            file.write(b"6")
        return found

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", then_it_grows)
        with pytest.raises(OSError, match="it is still being written"):
            read_regular(path, 100)


def test_file_that_is_replaced_meanwhile_is_closed_again(tmp_path, monkeypatch):
    path, large, opened = tmp_path / "it", tmp_path / "large", []
    path.write_bytes(b"1")
    large.write_bytes(b"123456")
    real = os.open

    def replaced(name, *args):
        opened.append(real(large, *args))
        return opened[-1]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", replaced)
        with pytest.raises(OSError, match="6 bytes, at most 5 expected"):
            open_regular(path, 5)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


@pytest.mark.parametrize(
    ("limit", "number", "is_enough"),
    [(5, 5, True), (5, 6, False), (resource.RLIM_INFINITY, 6, True)],
)
def test_descriptors_are_enough(limit, number, is_enough, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, 100))
    if is_enough:
        require_descriptors(number)
    else:
        with pytest.raises(ConfigurationError, match=r"^ulimit -n is 5: at least 6 files must be"):
            require_descriptors(number)
