"""Where data sets lie: local paths, and URIs such as s3://bucket/folder that pyarrow opens."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
from pyarrow import fs

from serving.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Location:
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
            raise ConfigurationError(f"{shown}: {_line(err).replace(text, shown)}") from err
        return cls(filesystem, path.rstrip("/"))

    @property
    def is_local(self) -> bool:
        """Whether it is a file of this machine."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    def __truediv__(self, name: str) -> "Location":
        return replace(self, path=f"{self.path}/{name}")

    def __str__(self) -> str:
        return self.path

    def info(self) -> Any:
        """Return its `pyarrow.fs.FileInfo`; one of type NotFound where there is nothing."""
        with one_line(self.path):
            return self.filesystem.get_file_info(self.path)

    def files(self, *, recursive: bool) -> list[Any]:
        """List the files in a folder, sorted by path; none where there is no folder.

        Hidden ones are left out: a name in their path begins with a dot or an underscore, as those
        of Spark's and our own bookkeeping do.
        """
        selector = fs.FileSelector(self.path, recursive=recursive, allow_not_found=True)
        with one_line(self.path):
            found = self.filesystem.get_file_info(selector)
        return sorted(
            (info for info in found if info.type == fs.FileType.File and not self._is_hidden(info)),
            key=lambda info: info.path,
        )

    def _is_hidden(self, info: Any) -> bool:
        return any(name[:1] in "._" for name in self.name_of(info.path).split("/"))

    def name_of(self, path: str) -> str:
        """Return a path relative to this folder."""
        return path[len(self.path) :].lstrip("/")

    def contains(self, other: "Location") -> bool:
        """Return whether another location is this one or below it."""
        if not self.filesystem.equals(other.filesystem):
            return False
        return f"{other.path}/".startswith(f"{self.path}/")


def without_credentials(uri: str) -> str:
    """Return a URI as it can be printed: without user, password and parameters."""
    return re.sub(r"(?<=://)[^/@]*@", "", uri.partition("?")[0] if "://" in uri else uri)


@contextmanager
def one_line(subject: str) -> Iterator[None]:
    """Turn what pyarrow raises into one line about a subject.

    Raises:
        ConfigurationError: instead of any error of pyarrow or of the system.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as err:
        raise ConfigurationError(f"{subject}: {_line(err)}") from err


def _line(err: Exception) -> str:
    text = getattr(err, "strerror", None) or str(err) or type(err).__name__
    line = "".join(c if c.isprintable() else " " for c in text.partition("\n")[0])
    return line[:300]
