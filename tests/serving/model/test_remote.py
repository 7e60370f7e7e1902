"""What fails at a repository elsewhere: whose fault it is, and whether to try again."""

import errno
import os

import pytest

from serving.errors import ConfigurationError, Unavailable
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
