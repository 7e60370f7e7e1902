"""What fails at a repository elsewhere: whose fault it is, and whether to try again."""

import errno
import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from serving.errors import ConfigurationError, Unavailable
from serving.model import remote
from serving.model.remote import RemoteRepository

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def system():
    system = fsspec.filesystem("memory")
    system.pipe("/full/models/a/1/model.onnx", b"graph")
    yield system
    system.rm("/full", recursive=True)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EDQUOT])
def test_disk_that_is_full_is_a_fault_of_the_cache(number, system, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(type(system), "get_file", full)
    cache = tmp_path / "cache"
    with pytest.raises(ConfigurationError) as caught:
        RemoteRepository("memory://full/models", cache).fetch()
    text = str(caught.value)
    assert text.startswith(f"can't write {cache}")
    assert text.endswith(f": {os.strerror(number)}")


@pytest.mark.parametrize(
    ("error", "kind", "reason"),
    [
        (OSError(errno.EIO, "Input/output error"), Unavailable, "[Errno 5] Input/output error"),
        (TimeoutError("no answer\nfrom there"), Unavailable, "no answer"),
        (RuntimeError(), Unavailable, "RuntimeError"),
        (ImportError("no module"), ConfigurationError, "no module"),
        (FileNotFoundError("gone"), ConfigurationError, "there is nothing"),
        (PermissionError("not yours"), ConfigurationError, "not yours"),
        (ValueError("unknown"), ConfigurationError, "unknown"),
    ],
)
def test_other_failures_are_of_the_url_and_only_some_may_pass(
    error, kind, reason, system, tmp_path, monkeypatch
):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(type(system), "get_file", fail)
    with pytest.raises(kind) as caught:
        RemoteRepository("memory://full/models", tmp_path / "cache").fetch()
    assert str(caught.value) == f"can't read memory://full/models: {reason}"


@pytest.mark.parametrize("status", [401, 403, 404, 500, 503])
def test_status_of_a_web_server_says_whether_to_try_again(status, system, tmp_path, monkeypatch):
    class Refused(Exception):
        """As a client of HTTP raises it."""

    def fail(*_, **__):
        error = Refused("text?signature=secret")
        error.__dict__["status"] = status
        raise error

    monkeypatch.setattr(type(system), "get_file", fail)
    kind = ConfigurationError if status in (401, 403, 404) else Unavailable
    with pytest.raises(kind) as caught:
        RemoteRepository("memory://full/models", tmp_path / "cache").fetch()
    assert str(caught.value) == f"can't read memory://full/models: status {status}"


@pytest.mark.parametrize(
    "name",
    ["ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "blob_id", "created"],
)
def test_fact_that_changes_with_the_content_is_the_state(name):
    """As each library calls it; without any, nothing shows a change."""
    assert remote._state({"size": 3, name: "v", "other": "w"}) == "3 v"
    assert remote._state({"size": 3, name: None}) == remote._state({}) == ""
    facts = {each: each for each in remote._STATE}
    assert remote._state(facts) == "None ETag"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("https://host/some/net.onnx", {"client_kwargs": {
            "trust_env": True, "headers": {"Accept-Encoding": "identity"}}}),
        ("memory://bucket/net.onnx", {}),
    ],
)  # fmt: skip
def test_file_is_asked_for_as_it_is_now(url, options, tmp_path, monkeypatch):
    """Not compressed on its way, and not as it was listed before."""
    asked, events = [], []

    class System:
        def invalidate_cache(self):
            events.append("invalidate")

        def info(self, root):
            events.append(f"info {root}")
            return {"size": 5, "name": "other"}

    def opened(given, **more):
        asked.append((given, more))
        return system, "root"

    system = System()
    monkeypatch.setattr(fsspec.core, "url_to_fs", opened)
    found = RemoteRepository(url, tmp_path)._list()
    assert found == (system, {"net.onnx": {"size": 5, "name": "root"}})
    assert asked == [(url, options)]
    assert events == ["invalidate", "info root"]


def test_copy_is_the_users_own_and_made_once(system, tmp_path):
    repository = RemoteRepository("memory://full/models", tmp_path / "some" / "cache")
    root = repository.fetch()
    assert (root / "a" / "1" / "model.onnx").read_bytes() == b"graph"
    assert root.parent.stat().st_mode & 0o777 == 0o700
    assert repository.fetch() == root
    assert {each.name for each in root.parent.iterdir()} == {"lock", root.name}
    system.pipe("/full/models/b/1/model.onnx", b"another")
    other = repository.fetch()
    assert (other / "b" / "1" / "model.onnx").read_bytes() == b"another"
    assert (other / "a" / "1" / "model.onnx").samefile(root / "a" / "1" / "model.onnx")


def test_newest_copy_is_served_where_the_url_is_out_of_reach(system, tmp_path, monkeypatch):
    """A later process has it from the times of the copies, which no name tells."""
    repository = RemoteRepository("memory://full/models", tmp_path)
    first = repository.fetch()
    system.pipe("/full/models/b/1/model.onnx", b"another")
    second = repository.fetch()

    def fail(self):
        raise Unavailable("not now")

    monkeypatch.setattr(RemoteRepository, "_list", fail)
    for newest, older in ((first, second), (second, first)):
        os.utime(older, ns=(1, 1))
        os.utime(newest, ns=(2, 2))
        assert RemoteRepository("memory://full/models", tmp_path).fetch() == newest


def test_two_copies_are_kept_of_many(system, tmp_path):
    repository, roots = RemoteRepository("memory://full/models", tmp_path), []
    for number in range(4):
        system.pipe("/full/models/a/1/model.onnx", b"graph %d" % number)
        roots.append(repository.fetch())
    assert {each for each in roots[0].parent.iterdir() if each.is_dir()} == {*roots[2:]}


def test_one_file_is_a_model_of_its_name(system, tmp_path):
    system.pipe("/full/net.onnx", b"graph")
    digest = hashlib.sha256(b"graph").hexdigest()
    for end in ("", f"#sha256={digest}"):
        root = RemoteRepository(f"memory://full/net.onnx{end}", tmp_path).fetch()
        assert root.name == digest
        assert (root / "net" / "1" / "model.onnx").read_bytes() == b"graph"


def test_copy_is_whole_on_the_disk_before_it_has_its_name(system, tmp_path, monkeypatch):
    seen = []

    def note(*paths):
        (tree,) = tmp_path.glob("*/*/tree")
        names = sorted(each.name for each in tree.rglob("*") if each.is_file())
        seen.append((len(paths), names))

    rename = os.rename
    monkeypatch.setattr(os, "sync", note)
    monkeypatch.setattr(os, "rename", lambda *paths: (note(*paths), rename(*paths)))
    RemoteRepository("memory://full/models", tmp_path).fetch()
    whole = [remote._COPIED, "model.onnx"]
    assert seen == [(0, whole), (2, whole)]


def test_file_is_as_it_is_elsewhere_once_its_copy_is_made(system, tmp_path, monkeypatch):
    """Asked for again, not remembered; one that is too large is not copied at all."""
    seen = []

    def noted(name):
        work = getattr(system, name)

        def call(*args, **options):
            seen.append(name)
            return work(*args, **options)

        return call

    for name in ("info", "get_file", "invalidate_cache"):
        monkeypatch.setattr(system, name, noted(name))
    repository = RemoteRepository("memory://full/models", tmp_path)
    repository._left_bytes, path = 5, "/full/models/a/1/model.onnx"
    digest = repository._download(system, path, tmp_path / "model.onnx")
    assert digest == hashlib.sha256(b"graph").hexdigest()
    assert (seen[:2], seen[-2:]) == (["info", "get_file"], ["invalidate_cache", "info"])
    seen.clear()
    repository._left_bytes = 4
    with pytest.raises(ConfigurationError, match="has over 4 bytes"):
        repository._download(system, path, tmp_path / "model.onnx")
    assert "get_file" not in seen


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://h/models#sha256=1", "#sha256= and 64 digits belong to one file"),
        (f"http://h/models#sha256={'a' * 64}", "#sha256= and 64 digits belong to one file"),
        ("http://h/net.onnx#sha256=1", "#sha256= and 64 digits belong to one file"),
        ("http://h/models", "one .onnx is expected"), ("https://h/models", "one .onnx is expected"),
        ("http://h/net.onnx", "without TLS it needs #sha256=DIGEST"),
    ],
)  # fmt: skip
def test_url_of_the_web_is_of_one_file_whose_content_is_sure(url, reason, tmp_path):
    with pytest.raises(ConfigurationError) as refused:
        RemoteRepository(url, tmp_path)
    assert str(refused.value) == f"{url.partition('#')[0]}: {reason}"


def test_copy_is_made_by_one_process_at_a_time(system, tmp_path, monkeypatch):
    """A process that has waited for another finds the copy which that one made."""
    repository = RemoteRepository("memory://full/models", tmp_path)
    done: Any = []
    newest = repository._newest

    def lock(file, how):
        assert (Path(file.name).name, how) == ("lock", fcntl.LOCK_EX)
        done.append("locked")

    monkeypatch.setattr(fcntl, "flock", lock)
    monkeypatch.setattr(repository, "_newest", lambda: done.append("looked") or newest())
    repository.fetch()
    assert done == ["locked", "looked"]


def test_file_of_a_repository_has_two_gibibytes_at_most(system, tmp_path, monkeypatch):
    plain = type(system).info

    def info(self, path, **more):
        return {**plain(self, path, **more), "size": (2 << 30) + 1}

    monkeypatch.setattr(type(system), "info", info)
    with pytest.raises(ConfigurationError) as caught:
        RemoteRepository("memory://full/models", tmp_path).fetch()
    assert str(caught.value) == (
        "memory://full/models: model.onnx has over 2147483648 bytes, the most that are copied"
    )


@pytest.mark.parametrize(("most", "is_taken"), [(15, True), (14, False)])
def test_files_of_a_repository_are_bounded_together(most, is_taken, system, tmp_path, monkeypatch):
    """Those of the last copy, too."""
    assert remote.MAX_BYTES == 16 << 30
    monkeypatch.setattr(remote, "MAX_BYTES", most)
    system.pipe("/full/models/b/1/model.onnx", b"0123456789")
    repository = RemoteRepository("memory://full/models", tmp_path)
    if is_taken:
        repository.fetch()
    else:
        with pytest.raises(ConfigurationError, match="has over 9 bytes, the most that are copied"):
            repository.fetch()
