"""Folders of pictures: a row is a file; a piece is some files in the order of their paths."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from serving.scoring.dataset import (
    BATCH_BYTES,
    PICTURES_PER_FILE,
    Dataset,
    Format,
    Piece,
    Rows,
    digest,
    file_identity,
    ranges,
)
from serving.scoring.location import Location

MAX_BYTES = 256 << 20
"""The largest picture that is read, as by the decoder."""
_BATCH_PICTURES = 256
_IMAGE = "image"
_FILE = pa.struct([("bytes", pa.large_binary())])
"""The type of a picture's file, as Hugging Face datasets have it."""


@dataclass(frozen=True, slots=True)
class PictureReader:
    """Reads picture files; see `Reader`."""

    root: Location
    image_column: str = _IMAGE
    format: Format = Format(are_images_kept=False)  # noqa: RUF009

    @property
    def schema(self) -> Any:
        """See `Reader.schema`."""
        return pa.schema([("picture", pa.string()), (_IMAGE, _FILE)])

    def read(self, piece: Piece) -> Iterator[Rows]:
        """See `Reader.read`."""
        contents: list[bytes | None] = []
        errors: dict[int, str] = {}
        begin = num_bytes = 0
        for number, name in enumerate(piece.names, 1):
            content = self._content(name)
            if isinstance(content, str):
                errors[len(contents)] = content
                contents.append(None)
            else:
                contents.append(content)
                num_bytes += len(content)
            is_last = number == len(piece.names)
            if is_last or len(contents) == _BATCH_PICTURES or num_bytes > BATCH_BYTES:
                yield Rows(self._batch(piece.names[begin:number], contents), errors)
                begin, num_bytes, contents, errors = number, 0, [], {}

    def _content(self, name: str) -> bytes | str:
        """Read one file, or say why it can't be."""
        try:
            with self.root.filesystem.open_input_file((self.root / name).path) as file:
                if file.size() > MAX_BYTES:
                    return f"expected at most {MAX_BYTES} bytes"
                content: bytes = file.read()
                return content
        except (OSError, pa.ArrowException) as err:
            return f"cannot be read: {getattr(err, 'strerror', None) or type(err).__name__}"

    def _batch(self, names: Sequence[str], contents: Sequence[bytes | None]) -> Any:
        printable = [name.encode("utf-8", "backslashreplace").decode() for name in names]
        files = pa.StructArray.from_arrays([pa.array(contents, pa.large_binary())], fields=[*_FILE])
        columns = [pa.array(printable, pa.string()), files]
        return pa.RecordBatch.from_arrays(columns, schema=self.schema)


def open_pictures(root: Location, infos: Sequence[Any], rows_per_file: int | None) -> Dataset:
    """Cut a folder's pictures into pieces.

    Args:
        root: the folder.
        infos: its pictures, sorted by path.
        rows_per_file: pictures of a piece.
    """
    pieces = []
    steps = ranges(len(infos), rows_per_file or PICTURES_PER_FILE)
    for number, (start, stop) in enumerate(steps):
        names = tuple(root.name_of(info.path) for info in infos[start:stop])
        each = map(file_identity, names, infos[start:stop])
        pieces.append(Piece(number, digest(*each), root.path, start, stop, stop - start, names))
    return Dataset(PictureReader(root), pieces)
