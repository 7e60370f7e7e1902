"""Repositories elsewhere: in memory, in files, behind a real socket."""

import hashlib
import os
import resource
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from serving.config import ModelConfig
from serving.errors import ConfigurationError, ModelNotFound, Unavailable
from serving.model import remote
from serving.model.remote import RemoteRepository
from serving.versions.catalog import Catalog
from tests.serving.model import templates
from tests.serving.versions.conftest import SMALL

pytestmark = pytest.mark.process

fsspec = pytest.importorskip("fsspec")


@pytest.fixture
def memory(root):
    """The repository in a bucket, beside other things."""
    system = fsspec.filesystem("memory")
    system.put(str(root), "/bucket/models", recursive=True)
    system.pipe("/bucket/models/README.md", b"text")
    system.pipe("/bucket/models/a/1/model.keras", b"weights")
    yield system
    system.rm("/bucket", recursive=True)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def files_in(root):
    paths = (path for path in root.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


def test_user_without_a_home_names_the_cache(cache, monkeypatch):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    RemoteRepository("memory://bucket/models", cache)
    with pytest.raises(ConfigurationError, match="--model-cache"):
        RemoteRepository("memory://bucket/models")


@pytest.mark.parametrize("scheme", ["memory", "file"])
def test_folder_is_copied_and_followed(memory, root, cache, scheme, monkeypatch):
    url = {"memory": "memory://bucket/models", "file": f"file://{root}"}[scheme]
    catalog = Catalog(ModelConfig(url=url, model_cache=cache, device="cpu"))
    assert list(catalog.models) == ["a", "b"]
    before = catalog.models["b"]
    opened: list[str] = []
    system = type(fsspec.filesystem(scheme))
    plain = system.get_file

    def note(self, path, *args, **options):
        opened.append(path)
        plain(self, path, *args, **options)

    monkeypatch.setattr(system, "get_file", note)
    assert not catalog.reload()
    templates.publish(root, "a", SMALL, "2")
    memory.put(str(root / "a" / "2"), "/bucket/models/a/2", recursive=True)
    opened.clear()
    assert catalog.reload()
    assert catalog.models["a"].default_version == "2"
    assert catalog.models["b"] is before
    assert all("/a/2/" in path for path in opened), "it was copied again"
    assert opened


def test_settings_and_weights_beside_a_model_are_copied(memory, cache):
    before = files_in(RemoteRepository("memory://bucket/models", cache).fetch()).keys()
    added = {"config.pbtxt", "classifier.json", "labels.json", "1/model.onnx.data", "1/net.onnx",
             "1/golden.npz", "1/new-signature"}  # fmt: skip
    for name in (*added, "notes.md", "1/report.html", "golden.npz"):
        memory.pipe(f"/bucket/models/a/{name}", b"")
    copied = files_in(RemoteRepository("memory://bucket/models", cache).fetch()).keys()
    assert copied - before == {f"a/{name}" for name in added}
    assert "a/1/model.keras" not in copied


def test_copies_are_by_content_and_old_ones_are_removed(memory, cache):
    repository = RemoteRepository("memory://bucket/models", cache)
    first = repository.fetch()
    assert repository.fetch() == first
    content = memory.cat("/bucket/models/a/1/model.onnx")
    copies = [first]
    (first.parent / "unfinished-of-a-killed-process").mkdir()
    for changed in (b"two", b"three", content):
        memory.pipe("/bucket/models/a/1/model.onnx", changed)
        copies.append(repository.fetch())
        assert (copies[-1] / "a/1/model.onnx").read_bytes() == changed
    assert copies[3] == first
    assert not list(first.parent.glob("unfinished-*"))
    assert [copy.is_dir() for copy in copies] == [True, False, True, True]
    assert RemoteRepository("memory://bucket/models", cache).fetch() == first


def test_out_of_reach_at_start_serves_the_last_copy(memory, cache, monkeypatch, caplog):
    copied = RemoteRepository("memory://bucket/models", cache).fetch()

    def fail(*_, **__):
        raise TimeoutError("no answer\nfrom https://bucket?signature=secret")

    monkeypatch.setattr(type(memory), "find", fail)
    repository = RemoteRepository("memory://bucket/models", cache)
    assert repository.fetch() == copied
    assert "can't read memory://bucket/models: no answer: serving the last copy" in caplog.text
    with pytest.raises(Unavailable, match="no answer"):
        repository.fetch()
    with pytest.raises(Unavailable, match="no answer"):
        RemoteRepository("memory://bucket/models", cache / "other").fetch()


def test_object_that_changes_meanwhile_is_not_taken(memory, cache, monkeypatch):
    plain = type(memory).get_file

    def change(self, path, *args, **options):
        plain(self, path, *args, **options)
        if path.endswith("b/1/model.onnx"):
            self.pipe(path, b"new")

    with monkeypatch.context() as patch:
        patch.setattr(type(memory), "get_file", change)
        with pytest.raises(Unavailable, match=r"model\.onnx was changed while it was copied"):
            RemoteRepository("memory://bucket/models", cache).fetch()
    assert not [path for path in cache.rglob("*") if path.is_dir() and path.parent != cache]
    root = RemoteRepository("memory://bucket/models", cache).fetch()
    assert (root / "b/1/model.onnx").read_bytes() == b"new"


def test_full_disk_is_one_line_and_leaves_nothing(memory, cache):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(ConfigurationError, match=f"can't write {cache}.*: File too large"):
            RemoteRepository("memory://bucket/models", cache).fetch()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != "lock"]
    assert RemoteRepository("memory://bucket/models", cache).fetch().is_dir()


@pytest.mark.parametrize(
    ("url", "kind", "message"),
    [
        ("https://host/models", ConfigurationError, "https://host/models: one .onnx is expected"),
        ("http://host/m.onnx", ConfigurationError, "http://host/m.onnx: without TLS it needs"),
        (
            "simplecache::http://me:secret@host/m.onnx",
            ConfigurationError,
            "simplecache::http://host/m.onnx: without TLS it needs",
        ),
        (
            "https://me:secret@host/m.onnx?key#sha256=1",
            ConfigurationError,
            "https://host/m.onnx: #sha",
        ),
        (
            "s3://bucket/models#sha256=" + "0" * 64,
            ConfigurationError,
            "s3://bucket/models: #sha256",
        ),
        ("memory://nowhere", ModelNotFound, "no MODEL/VERSION/model.onnx in memory://nowhere"),
        ("memory://nowhere/m.onnx", ConfigurationError, "m.onnx: there is nothing"),
        ("nope://bucket", ConfigurationError, "can't read nope://bucket: Protocol not known"),
        ("smb://host/share", ConfigurationError, "can't read smb://host/share: "),
    ],
)
def test_url_that_is_no_repository_is_one_line(url, kind, message, cache):
    with pytest.raises(kind) as caught:
        RemoteRepository(url, cache).fetch()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_folder_of_one_repository_is_that_repository(memory, root, cache):
    copied = RemoteRepository("memory://bucket/", cache).fetch()
    assert files_in(copied) == files_in(root)


def test_pipe_or_device_hides_no_other_version(root, cache, caplog):
    """A link to a file is read."""
    before = files_in(root)
    for version in ("2", "3", "4"):
        (root / "a" / version).mkdir()
    os.mkfifo(root / "a/2/model.onnx")
    (root / "a/3/model.onnx").symlink_to("/dev/zero")
    (root / "a/4/model.onnx").symlink_to(root / "a/1/model.onnx")
    copied = RemoteRepository(f"file://{root}", cache).fetch()
    assert files_in(copied) == before | {"a/4/model.onnx": before["a/1/model.onnx"]}
    assert caplog.text.count("is left out: it is no regular file") == 2


def test_file_is_a_model(memory, cache):
    memory.pipe("/bucket/net.onnx", b"graph")
    repository = RemoteRepository("memory://bucket/net.onnx", cache)
    assert files_in(repository.fetch()) == {"net/1/model.onnx": b"graph"}
    memory.pipe("/bucket/net.onnx", b"another")
    assert files_in(repository.fetch()) == {"net/1/model.onnx": b"another"}


class Web(BaseHTTPRequestHandler):
    """Answers every path with `content`, or as its name says."""

    content = b""

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        status = int(self.path[1:4]) if self.path[1:4].isdecimal() else 200
        self.send_response(status)
        if "endless" not in self.path:
            self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        while self.command == "GET" and "endless" in self.path:
            self.wfile.write(bytes(100_000))
        if self.command == "GET" and status == 200:
            half = len(self.content) // 2
            self.wfile.write(self.content[: half if "cut" in self.path else None])
            self.close_connection = True

    def handle(self):
        with suppress(ConnectionError):  # the reader has seen enough
            super().handle()

    def log_message(self, *_):
        pass


@pytest.fixture
def web(root):
    pytest.importorskip("aiohttp")
    Web.content = (root / "a/1/model.onnx").read_bytes()
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("chain", ["", "simplecache::"])
def test_model_of_a_web_server_is_copied_once_and_its_digest_checked(web, cache, chain):
    digest = hashlib.sha256(Web.content).hexdigest()
    url = f"{chain}{web}/a.onnx?token=secret#sha256={digest}"
    copied = RemoteRepository(url, cache).fetch()
    assert files_in(copied) == {"a/1/model.onnx": Web.content}
    with pytest.raises(ConfigurationError, match=f"expected SHA-256 {'0' * 64}, got {digest}"):
        RemoteRepository(f"{chain}{web}/a.onnx#sha256={'0' * 64}", cache).fetch()
    Web.content = b"gone"
    assert RemoteRepository(url, cache).fetch() == copied


def test_download_ends_at_the_limit_though_no_length_was_announced(web, cache, monkeypatch):
    monkeypatch.setattr(remote, "MAX_FILE_BYTES", 20_000_000)
    with pytest.raises(ConfigurationError, match=r"endless\.onnx has over 20000000 bytes"):
        RemoteRepository(f"{web}/endless.onnx#sha256={'0' * 64}", cache).fetch()
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != "lock"]


def test_files_of_a_repository_have_one_limit_together(memory, root, cache, monkeypatch):
    size = sum(map(len, files_in(root).values()))
    monkeypatch.setattr(remote, "MAX_BYTES", size - 1)
    with pytest.raises(ConfigurationError, match="the most that are copied"):
        RemoteRepository("memory://bucket/models", cache).fetch()
    monkeypatch.setattr(remote, "MAX_BYTES", size)
    RemoteRepository("memory://bucket/models", cache).fetch()


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("cut.onnx", Unavailable, "can't read http://127.0.0.1"),
        ("403.onnx", ConfigurationError, "status 403"),
        ("404.onnx", ConfigurationError, "status 404"),
        ("503.onnx", Unavailable, "status 503"),
    ],
)
def test_web_server_that_fails_is_one_line(web, cache, name, kind, message):
    with pytest.raises(kind, match=message) as caught:
        RemoteRepository(f"{web}/{name}?token=secret#sha256={'0' * 64}", cache).fetch()
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not [path for path in cache.rglob("*") if path.is_file() and path.name != "lock"]
