"""A repository elsewhere, such as s3://bucket/models, opened by fsspec and copied into a cache.

    <cache>/<SHA-256 of the URL>/<SHA-256 of the content>/    a copy, and its source in .copied.json

A copy is made under another name and renamed once it is whole: an interrupted one is never seen.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from serving.errors import ConfigurationError, ModelNotFound, ServingError, Unavailable
from serving.model.agreement import GOLDEN_FILE
from serving.model.manifest import MANIFEST
from serving.model.repository import CLASSIFIER, LABELS
from serving.model.settings import SETTINGS
from serving.model.signatures import MARK

_log = logging.getLogger(__name__)

_COPIED = ".copied.json"
_UNFINISHED = "unfinished-"
_ONNX = ".onnx"
MAX_BYTES = 16 << 30
"""The most bytes of a repository that are copied."""
MAX_FILE_BYTES = 2 << 30
"""The largest file: protobuf, and so ONNX, has no larger messages."""
_FACTS = "|".join(map(re.escape, (MANIFEST, GOLDEN_FILE, MARK)))
_NAMES = rf"{_FACTS}|[^/.][^/]*\.(?:onnx|onnx[._]data|data|bin|weights)"
"""What a version says of itself; graphs, and the files with weights that exporters write beside."""
_BESIDE = "|".join(map(re.escape, (LABELS, CLASSIFIER, SETTINGS)))
_PATH = re.compile(rf"[^/.][^/]*/(?:[1-9][0-9]{{0,8}}/(?:{_NAMES})|{_BESIDE})")
_PLAIN_HTTP = re.compile("(^|::)http://")
"""At the begin of a URL, or in a chain such as simplecache::http://."""
_STATE = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "last_modified", "blob_id", "created")
"""Facts of an object that change with its content, as the libraries name them."""
_DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
_LASTING = (ImportError, FileNotFoundError, PermissionError, ValueError)
"""A library, an object or a right is missing, or the scheme is unknown: to try again is no help."""


class RemoteRepository:
    """A URL and its copy; not safe to use from two threads at once."""

    def __init__(self, url: str, cache: Path | None = None) -> None:
        """Copy nothing yet.

        Args:
            url: a folder of models that fsspec can list, or one .onnx, whose digest may follow as
                `#sha256=`.
            cache: the folder of copies; None for one in the user's cache.

        Raises:
            ConfigurationError: it can't be a repository.
        """
        self._url, _, fragment = url.partition("#")
        parts = urlsplit(self._url)
        self._shown = without_credentials(self._url)
        self._name = parts.path.rpartition("/")[2]
        self._is_file = self._name.endswith(_ONNX)
        self._is_http = parts.scheme in ("http", "https")
        self._digest = fragment.removeprefix("sha256=")
        if fragment and not (self._is_file and re.fullmatch("sha256=[0-9a-f]{64}", fragment)):
            raise ConfigurationError(f"{self._shown}: #sha256= and 64 digits belong to one file")
        if self._is_http and not self._is_file:
            raise ConfigurationError(f"{self._shown}: one .onnx is expected")
        if _PLAIN_HTTP.search(self._url) and not fragment:
            raise ConfigurationError(f"{self._shown}: without TLS it needs #sha256=DIGEST")
        self._cache = (cache or _usual_cache()) / hashlib.sha256(self._url.encode()).hexdigest()
        self._root: Path | None = None
        self._left_bytes = 0
        """What may still be copied of one state of the repository."""

    def fetch(self) -> Path:
        """Copy changed files.

        Returns:
            The root of a local repository, which nobody changes. If the URL is out of reach at the
            first time, it is the copy of an earlier process, if there is one, with a warning.

        Raises:
            ConfigurationError: the URL, the credentials or the cache can't be used.
            Unavailable: the URL is out of reach, or its content changes meanwhile.
        """
        import fcntl  # not on Windows, where no server runs

        if self._root is None or not self._digest:
            try:
                self._cache.mkdir(mode=0o700, parents=True, exist_ok=True)
                with (self._cache / "lock").open("w") as lock:
                    fcntl.flock(lock, fcntl.LOCK_EX)  # other workers would copy the same meanwhile
                    self._root = self._newest()
            except OSError as err:
                raise ConfigurationError(f"can't write {self._cache}: {err.strerror}") from err
        return self._root

    def _newest(self) -> Path:
        """Return the newest copy, made now if need be, and remove those before the last one."""
        for left in self._cache.glob(f"{_UNFINISHED}*"):
            shutil.rmtree(left)
        pinned = self._cache / self._digest
        if self._digest and pinned.is_dir():
            return pinned
        copies = [path for path in self._cache.iterdir() if path.is_dir()]
        copies.sort(key=lambda path: path.stat().st_mtime_ns)
        try:
            root = self._copy(copies[-1] if copies else pinned)
        except Unavailable as err:
            if self._root is not None or self._digest or not copies:
                raise
            _log.warning("%s: serving the last copy", err)
            return copies[-1]
        for old in copies[:-1]:
            if old != root:
                shutil.rmtree(old)
        os.utime(root)
        return root

    def _copy(self, last: Path) -> Path:
        with self._errors():
            system, objects = self._list()
        if not objects:
            raise ModelNotFound(f"no MODEL/VERSION/model.onnx in {self._shown}")
        before: dict[str, list[str]] = {}
        with suppress(OSError, ValueError):
            before = json.loads((last / _COPIED).read_bytes())
        states = {path: _state(info) for path, info in objects.items()}
        if all(states.values()) and states == {path: state for path, (state, _) in before.items()}:
            return last
        with tempfile.TemporaryDirectory(prefix=_UNFINISHED, dir=self._cache) as unfinished:
            tree = Path(unfinished, "tree")
            copied: dict[str, list[str]] = {}
            self._left_bytes = MAX_BYTES
            for path, state in states.items():
                file = (Path(unfinished) if self._is_file else tree) / path
                file.parent.mkdir(parents=True, exist_ok=True)
                if state and not self._is_file and state == before.get(path, [""])[0]:
                    os.link(last / path, file)
                    copied[path] = before[path]
                else:
                    copied[path] = [state, self._download(system, objects[path]["name"], file)]
                self._left_bytes -= file.stat().st_size
            digests = {path: digest for path, (_, digest) in copied.items()}
            digest = hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
            if self._is_file:
                digest = copied[self._name][1]
                self._publish(Path(unfinished, self._name), digest, tree)
            (tree / _COPIED).write_text(json.dumps(copied))
            os.sync()
            root = self._cache / digest
            if root.is_dir():  # of the same content in another state
                os.replace(tree / _COPIED, root / _COPIED)
            else:
                os.rename(tree, root)
        return root

    def _publish(self, file: Path, digest: str, tree: Path) -> None:
        if digest != (self._digest or digest):
            raise ConfigurationError(
                f"{self._shown}: expected SHA-256 {self._digest}, got {digest}"
            )
        version = tree / self._name.removesuffix(_ONNX) / "1"
        version.mkdir(parents=True)
        file.rename(version / "model.onnx")

    def _list(self) -> tuple[Any, dict[str, dict[str, Any]]]:
        """Return fsspec's file system and the objects to copy, by their paths in the copy."""
        import fsspec  # of the extra remote

        # Compressed on its way, an object would have another digest. trust_env: HTTPS_PROXY
        # and ~/.netrc are followed.
        client = {"trust_env": True, "headers": {"Accept-Encoding": "identity"}}
        options = {"client_kwargs": client} if self._is_http else {}
        system, root = fsspec.core.url_to_fs(self._url, **options)
        system.invalidate_cache()
        if self._is_file:
            return system, {self._name: system.info(root) | {"name": root}}
        infos = system.find(root, detail=True)
        names = {path.removeprefix(root).lstrip("/"): path for path in infos}
        found = {path: infos[names[given]] for path, given in _repository_paths(names).items()}
        for path in [path for path, info in found.items() if not _is_regular(info)]:
            _log.warning("%s/%s is left out: it is no regular file", self._shown, path)
            del found[path]
        return system, found

    def _download(self, system: Any, name: str, file: Path) -> str:
        """Copy one object; return the digest of its content."""
        import fsspec

        most = min(self._left_bytes, MAX_FILE_BYTES)

        def check(num_bytes: int | None) -> None:
            if (num_bytes or 0) > most:
                raise ConfigurationError(
                    f"{self._shown}: {file.name} has over {most} bytes, the most that are copied"
                )

        class Limit(fsspec.Callback):  # type: ignore[misc]  # fsspec has no types
            """Ends a transfer that gets longer than allowed."""

            def call(self, *_: object, **__: object) -> None:
                check(self.value)

        with self._errors():
            before = system.info(name)  # some libraries list other facts than they tell of one
            size = before.get("size")
            check(size)
            system.get_file(name, str(file), callback=Limit())
            system.invalidate_cache()
            is_whole = size is None or size == file.stat().st_size
            if not is_whole or _state(system.info(name)) != _state(before):
                raise Unavailable(f"{self._shown}: {file.name} was changed while it was copied")
        with file.open("rb") as copy:
            return hashlib.file_digest(copy, "sha256").hexdigest()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn errors of fsspec, and of the libraries under it, into one line."""
        try:
            yield
        except ServingError:
            raise
        except Exception as err:
            if getattr(err, "errno", None) in _DISK_FULL:
                raise
            # fsspec says of each failed request over HTTP that nothing was found.
            cause = err.__cause__ if isinstance(err, FileNotFoundError) and err.__cause__ else err
            text = f"can't read {self._shown}: {_reason(cause)}"
            if isinstance(cause, _LASTING) or getattr(cause, "status", 0) in (401, 403, 404):
                raise ConfigurationError(text) from err
            raise Unavailable(text) from err


def _usual_cache() -> Path:
    """Return the folder of copies in the user's cache.

    Raises:
        ConfigurationError: this user has no home.
    """
    try:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise ConfigurationError("this user has no home: name a folder by --model-cache") from None
    return Path(user, "digit-serving", "models")


def without_credentials(url: str) -> str:
    """Return a URL as it can be printed: without user, password and parameters."""
    return re.sub(r"(?<=://)[^/@]*@", "", url.partition("?")[0] if "://" in url else url)


def _repository_paths(paths: Iterable[str]) -> dict[str, str]:
    """Find a repository's files among others.

    Args:
        paths: relative to the repository, or to a folder that holds nothing else.

    Returns:
        The given path of each path in the repository, such as "iris/3/model.onnx".
    """
    found = {path: path for path in paths if _PATH.fullmatch(path)}
    if not found and len({path.partition("/")[0] for path in paths}) == 1:
        below = {path.partition("/")[2]: path for path in paths}
        found = {path: given for path, given in below.items() if _PATH.fullmatch(path)}
    return found


def _is_regular(info: dict[str, Any]) -> bool:
    """Return whether an object can be read to an end: a local pipe or device has none."""
    if info["type"] != "other":
        return True
    with suppress(OSError):
        return stat.S_ISREG(os.stat(info["name"]).st_mode)
    return False


def _reason(err: BaseException) -> str:
    """Return the first line of an error, without the signatures of URLs in it."""
    if isinstance(err, FileNotFoundError):
        return "there is nothing"
    status = getattr(err, "status", None)
    text = f"status {status}" if status else str(err).strip() or type(err).__name__
    return re.sub(r"\?\S+", "?...", text.partition("\n")[0])[:200]


def _state(info: dict[str, Any]) -> str:
    """Return text that differs once an object changes; "" if nothing shows that."""
    facts = [str(info[name]) for name in _STATE if info.get(name) is not None]
    return f"{info.get('size')} {facts[0]}" if facts else ""
