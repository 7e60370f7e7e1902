"""What is on the disk before a version is seen, by the system calls that a publication makes."""

import fcntl
import os
from pathlib import Path

import pytest

from serving.publishing.files import write_atomically
from serving.publishing.writer import write_version


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Syncs and renames in their order, below the test's folder; names of partial files are *."""
    found = []

    def shown(path):
        path = os.path.relpath(path, tmp_path)
        head, name = os.path.split(path)
        hidden = name.startswith(".") and name.count(".") > 1
        return os.path.join(head, "*") if hidden else path

    def note(module, name, paths_of):
        real = getattr(module, name)

        def noted(*arguments, **options):
            found.append((name, *map(shown, paths_of(*arguments))))
            return real(*arguments, **options)

        monkeypatch.setattr(module, name, noted)

    note(os, "fsync", lambda descriptor: [os.readlink(f"/proc/self/fd/{descriptor}")])
    note(os, "replace", lambda *paths: paths)
    note(os, "chmod", lambda path, mode: [path])
    note(Path, "rename", lambda *paths: paths)
    return found


def written(path):
    """The calls that write a file whole."""
    folder = os.path.dirname(path)
    partial = os.path.join(folder, "*")
    return [("fsync", partial), ("chmod", partial), ("replace", partial, path)]


def test_file_is_on_the_disk_and_readable_before_it_has_its_name(calls, tmp_path):
    write_atomically(tmp_path / "a" / "file", b"content")
    assert calls == written("a/file")
    assert (tmp_path / "a" / "file").read_bytes() == b"content"


def test_all_of_a_version_is_on_the_disk_before_the_first_rename(calls, tmp_path):
    found = write_version(
        tmp_path / "net", lambda version: {"x": b"1", "y": version.encode()}, {"config": b"c"}
    )
    assert calls == [
        ("fsync", "."),  # the model's folder is new
        *written("net/.staging/config"), ("fsync", "net/.staging"),
        *written("net/.staging/1/x"), *written("net/.staging/1/y"), ("fsync", "net/.staging/1"),
        ("rename", "net/.staging/config", "net/config"),
        ("rename", "net/.staging/1", "net/1"),
        ("fsync", "net"),
    ]  # fmt: skip
    assert found == tmp_path / "net" / "1"
    assert sorted(os.listdir(tmp_path / "net")) == ["1", "config"]
    calls.clear()
    write_version(tmp_path / "net", lambda _: {}, {"config": b"other"})
    assert calls == [
        *written("net/.staging/config"), ("fsync", "net/.staging"), ("fsync", "net/.staging/2"),
        ("rename", "net/.staging/2", "net/2"), ("fsync", "net"),
    ]  # fmt: skip
    assert (tmp_path / "net" / "config").read_bytes() == b"c"


def test_rest_of_a_publication_that_was_killed_is_removed_under_the_lock(tmp_path, monkeypatch):
    (tmp_path / ".staging" / "7").mkdir(parents=True)
    seen, flock = [], fcntl.flock

    def lock(descriptor, how):
        seen.append((how, (tmp_path / ".staging").exists()))
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    assert write_version(tmp_path, lambda version: {"a": b""}).name == "1"
    assert seen == [(fcntl.LOCK_EX, True)]
    assert os.listdir(tmp_path) == ["1"]


@pytest.mark.parametrize("moment", ["contents", "second rename"])
def test_publication_that_fails_leaves_no_staging(moment, tmp_path, monkeypatch):
    rename, number = Path.rename, iter(range(9))

    def fail(path, target):
        if next(number) == 1:
            raise OSError(28, "No space left on device")
        return rename(path, target)

    def contents(version):
        if moment == "contents":
            raise OSError(28, "No space left on device")
        return {"a": b""}

    if moment != "contents":
        monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="No space left"):
        write_version(tmp_path, contents, {"config": b"c"})
    assert os.listdir(tmp_path) == ["config"] * (moment != "contents")


@pytest.mark.parametrize(("module", "name"), [(fcntl, "flock"), (os, "fsync")])
def test_folder_is_closed_where_the_disk_fails(module, name, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module, name, fail)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="Input/output error"):
        write_version(tmp_path / "net", lambda version: {"a": b""})
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_folders_are_made_where_there_are_none(tmp_path):
    for _ in range(2):
        write_atomically(tmp_path / "a" / "b" / "file", b"content")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"content"
    assert write_version(tmp_path / "c" / "d" / "net", lambda version: {}).name == "1"


def test_error_of_a_disk_is_not_hidden_by_what_follows(tmp_path, monkeypatch):
    mkdir = Path.mkdir

    def full(path, *args, **options):
        if path.name == ".staging":
            raise OSError(28, "No space left on device")
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(OSError, match="No space left on device"):
        write_version(tmp_path, lambda version: {"a": b""})
    assert os.listdir(tmp_path) == []


def test_folder_that_another_publication_makes_meanwhile_is_no_error(tmp_path, monkeypatch):
    folder, is_dir = tmp_path / "net", Path.is_dir

    def unseen(path):
        found = is_dir(path)
        if not os.path.isdir(path):
            os.mkdir(path)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(Path, "is_dir", unseen)
        assert write_version(folder, lambda version: {}).name == "1"
