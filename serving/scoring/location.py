"""Where data sets lie: local paths, and URIs such as s3://bucket/folder that pyarrow opens."""

import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import fs

from serving.catalog.remote import without_credentials
from serving.errors import ConfigurationError

_SHOWN = re.compile(r"(/[^/._][^/]*)*")
"""A path in a folder, with no name that begins with a dot or an underscore."""
_DAMAGED = (pa.ArrowException, OSError, EOFError, zlib.error, zipfile.BadZipFile)


class Location(NamedTuple):
    """A file or folder on one of pyarrow's file systems; can be pickled."""

    filesystem: Any
    """A `pyarrow.fs.FileSystem`."""
    path: str
    """The path in it, without a slash at the end."""

    @classmethod
    def of(cls, text: str) -> "Location":
        """Open a local path or a URI.

        Raises:
            ConfigurationError: pyarrow knows no such file system, or can't open it.
        """
        if "://" not in text:
            return cls(fs.LocalFileSystem(), os.path.abspath(text))
        shown = without_credentials(text)
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowException, OSError) as err:
            raise ConfigurationError(f"{shown}: {reason(err).replace(text, shown)}") from err
        return cls(filesystem, path.rstrip("/"))

    def __truediv__(self, name: str) -> "Location":
        return Location(self.filesystem, f"{self.path}/{name}")

    def open(self) -> Any:
        """Open the file, to read it from any position."""
        return self.filesystem.open_input_file(self.path)

    def files(self) -> list[Any]:
        """List the `pyarrow.fs.FileInfo` of all files below, sorted by path, but for hidden ones.

        Raises:
            ConfigurationError: something is neither a file nor a folder, or a link leads to a
                folder that is listed already.
        """
        # Arrow would follow a link to a parent some forty times.
        is_local = isinstance(self.filesystem, fs.LocalFileSystem)
        with one_line(self.path):
            found = self.filesystem.get_file_info(
                list(_walk(self.path)) if is_local else fs.FileSelector(self.path, recursive=True)
            )
        found = [each for each in found if _SHOWN.fullmatch(each.path, len(self.path))]
        for each in found:
            if each.type in (fs.FileType.NotFound, fs.FileType.Unknown):
                raise ConfigurationError(
                    f"{each.path} is neither a file nor a folder but a broken link or a pipe: "
                    "remove it, or let its name begin with an underscore"
                )
        files = (each for each in found if each.type == fs.FileType.File)
        return sorted(files, key=lambda each: each.path)

    def contains(self, other: "Location") -> bool:
        """Return whether another location is this one or below it."""
        is_same = self.filesystem.equals(other.filesystem)
        return is_same and f"{other.path}/".startswith(f"{self.path}/")


def _walk(root: str) -> Iterator[str]:
    """Yield the paths of all that is no folder; a link to a folder is followed."""
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise ConfigurationError(f"{folder} is {real}, which is read already: remove the link")
        seen.add(real)
        folders[:] = sorted(name for name in folders if name[0] not in "._")
        for path in (f"{folder}/{name}" for name in files):
            shown = path.encode("utf-8", "backslashreplace").decode()
            if shown != path:
                raise ConfigurationError(f"{shown} can't be read: its name is not UTF-8")
            yield path


def _refuse(err: OSError) -> None:
    raise ConfigurationError(f"{err.filename}: {reason(err)}") from err


@contextmanager
def one_line(subject: str, *also: type[Exception]) -> Iterator[None]:
    """Turn errors of files, pyarrow and decompressors into one line about a subject.

    Raises:
        ConfigurationError: instead of those, and of the types named.
    """
    try:
        yield
    except (*_DAMAGED, *also) as err:
        raise ConfigurationError(f"{subject}: {reason(err)}") from err


def reason(err: Exception) -> str:
    """Return the first line of another library's error."""
    text = "cut off" if isinstance(err, EOFError) else getattr(err, "strerror", None) or str(err)
    line = (text or type(err).__name__).partition("\n")[0]
    return "".join(c if c.isprintable() else " " for c in line)[:300]
