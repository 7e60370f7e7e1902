"""A repository in a .zip or .tar.gz: only its models' files, no links, in bounded size."""

import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from gzip import GzipFile
from lzma import LZMAError
from pathlib import Path
from typing import IO, Any

from serving.catalog.versions import LABELS
from serving.errors import ConfigurationError
from serving.model.manifest import FILES, MANIFEST
from serving.model.pictures import CLASSIFIER

MAX_BYTES = 16 << 30
"""The most bytes of a repository that is copied."""
_MAX_ENTRIES = 100_000
_MAX_READ = 16 << 20
"""The most bytes that are read in one go: headers in a tar archive may claim any size."""
_NAMES = "|".join(map(re.escape, (MANIFEST, *FILES.values())))
_BESIDE = "|".join(map(re.escape, (LABELS, CLASSIFIER)))
_PATH = re.compile(rf"[^/.][^/]*/(?:[1-9][0-9]{{0,8}}/(?:{_NAMES})|{_BESIDE})")


def repository_paths(paths: Iterable[str]) -> dict[str, str]:
    """Find a repository's files among others.

    Args:
        paths: relative to the repository, or to a folder that holds nothing else.

    Returns:
        The given path of each path in the repository, such as "digits/3/model.onnx".
    """
    found = {path: path for path in paths if _PATH.fullmatch(path)}
    if not found and len({path.partition("/")[0] for path in paths}) == 1:
        below = {path.partition("/")[2]: path for path in paths}
        found = {path: given for path, given in below.items() if _PATH.fullmatch(path)}
    return found


def unpack(archive: Path, name: str, folder: Path) -> None:
    """Write a repository's files from an archive into a folder.

    Raises:
        ConfigurationError: it is damaged or too large, or has links or paths that lead outside.
    """
    try:
        with (
            _Bounded(archive) as stream,
            (
                zipfile.ZipFile(archive)
                if name.endswith(".zip")
                else tarfile.open(fileobj=stream, mode="r:")
            ) as opened,
        ):
            entries = _checked(opened)
            for path, given in repository_paths(list(entries)).items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                with entries[given]() as source, (folder / path).open("xb") as file:
                    shutil.copyfileobj(source, file)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError,
            ValueError, zlib.error, LZMAError, OSError) as err:  # fmt: skip
        if isinstance(err, OSError) and err.errno is not None:  # of the disk, not of the archive
            raise
        raise ConfigurationError(f"{name} can't be unpacked: {err}") from err


def _checked(archive: zipfile.ZipFile | tarfile.TarFile) -> dict[str, Callable[[], IO[bytes]]]:
    """Return a function that opens each file, by its path."""
    entries: dict[str, Callable[[], Any]] = {}
    num_bytes = 0
    infos: Any
    open_it: Any
    if isinstance(archive, zipfile.ZipFile):
        infos, open_it = archive.infolist(), archive.open
    else:
        infos, open_it = archive, archive.extractfile
    for number, info in enumerate(infos, 1):
        if isinstance(info, zipfile.ZipInfo):
            path, size, is_folder = info.filename, info.file_size, info.is_dir()
            is_file = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
        else:
            path, size, is_folder = info.name.removeprefix("./"), info.size, info.isdir()
            is_file = info.isreg()
        num_bytes += size
        if num_bytes > MAX_BYTES or number > _MAX_ENTRIES:
            raise ValueError(f"over {MAX_BYTES} bytes or {_MAX_ENTRIES} files")
        if is_folder:
            continue
        if path.startswith("/") or ".." in path.split("/") or not is_file:
            raise ValueError(f"{path} is a link or leads outside")
        entries[path] = partial(open_it, info)
    return entries


class _Bounded(GzipFile):
    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _MAX_READ:
            raise ValueError(f"a header of {size} bytes")
        return super().read(size)
