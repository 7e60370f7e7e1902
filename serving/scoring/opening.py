"""Finds out which format an input has."""

from typing import Any

from pyarrow import fs

from serving import installation
from serving.errors import ConfigurationError
from serving.pictures.files import SUFFIXES
from serving.scoring import idx, npz, picture_folder
from serving.scoring.dataset import Dataset
from serving.scoring.location import Location, one_line
from serving.scoring.parquet import open_parquet
from serving.signature import DIGITS, Signature

_PARQUET = b"PAR1"
_PARQUET_SUFFIXES = (".parquet", ".pq")


def open_dataset(
    location: Location, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    """Open a data set and cut it into pieces.

    Args:
        location: Parquet, IDX or NPZ, or a folder of Parquet files or of pictures.
        signature: what the model takes.
        column: the column or array with the images; None to choose it.
        rows_per_file: rows of a piece; None for the format's own number.

    Raises:
        ConfigurationError: there is nothing, or nothing that can be read.
        ModuleNotFoundError: it is pictures, and what decodes them is not installed.
    """
    info = location.info()
    if info.type == fs.FileType.NotFound:
        raise ConfigurationError(f"no such file or folder: {location}")
    is_folder = info.type == fs.FileType.Directory
    opened = (_open_folder if is_folder else _open_file)(
        location, info, signature, column, rows_per_file
    )
    if not opened.num_rows:
        raise ConfigurationError(f"{location} has no rows")
    return opened


def _open_folder(
    root: Location, info: Any, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    files = root.files(recursive=True)
    tables = [file for file in files if file.path.lower().endswith(_PARQUET_SUFFIXES)]
    pictures = [file for file in files if file.path.lower().endswith(SUFFIXES)]
    if tables and pictures:
        raise ConfigurationError(f"{root} holds Parquet files and pictures: name a folder of one")
    if tables:
        return open_parquet(root, tables, column, rows_per_file)
    if not pictures:
        raise ConfigurationError(
            f"{root} holds no Parquet files and no pictures; name an IDX or NPZ file itself"
        )
    installation.require("PIL", "scipy")
    if signature.input_shape != DIGITS.input_shape:
        raise ConfigurationError(f"pictures are read as images of 28 x 28, not as {signature}")
    return picture_folder.open_pictures(root, pictures, rows_per_file)


def _open_file(
    location: Location, info: Any, signature: Signature, column: str | None,
    rows_per_file: int | None,
) -> Dataset:  # fmt: skip
    with one_line(location.path), location.filesystem.open_input_file(location.path) as file:
        head = file.read(4)
    if head == _PARQUET:
        return open_parquet(location, [info], column, rows_per_file)
    if head == npz.MAGIC:
        return npz.open_npz(location, info, signature, column, rows_per_file)
    if head.startswith((idx.MAGIC, idx.GZIP)):
        return idx.open_idx(location, info, signature, rows_per_file)
    raise ConfigurationError(
        f"{location} is neither Parquet, IDX nor NPZ; pictures are read by folder"
    )
