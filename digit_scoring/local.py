"""Scores a data set on this machine: Parquet files or pictures in, whole Parquet files out.

They are on any file system that pyarrow opens. A data set is cut into parts, always the same ones,
and each becomes one file, whole or not there: so a run goes on after an interruption.

    OUT/_manifest.json           the model, the input and the options
    OUT/part-000042.parquet
    OUT/_summary.json            rows and errors, once all files are there

Readers of Parquet folders, such as pyarrow, Spark and DuckDB's globs, leave out names with an
underscore, which a file has until it is whole.
"""

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
from pyarrow import fs, types

from digit_classifier.pictures import image_or_reason
from digit_classifier.predictions import digit_type
from serving.commandline import installation
from serving.errors import ConfigurationError
from serving.model.loaded import LoadedModel
from serving.model.remote import without_credentials
from serving.pictures.reader import SUFFIXES, processes
from serving.system.process_pool import Processes, mapped
from serving.tensors import Images, Signature

Decode = Callable[[Sequence[bytes]], Sequence[Images | str]]
"""Decodes picture files: (1, 784) uint8 each, or why there is none."""

_PICTURE_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"II*\0", b"MM\0*")
"""How pictures begin; one may happen to have as many bytes as an image has pixels."""
BATCH_ROWS = 4_096
"""The most rows that are read at once."""
ROWS_PER_FILE, PICTURES_PER_FILE = 262_144, 4_096
"""Of a part, usually: 200 MB of pixels, a second's work of a core; pictures take 7 ms each."""
TABLES = (".parquet", ".pq")
_PICTURES_AT_ONCE = 64
_PICTURE_BYTES = 256 << 20
"""The largest picture that is read, as by the decoder."""
_PICTURES = pa.schema(
    [("picture", pa.string()), ("image", pa.struct([("bytes", pa.large_binary())]))]
)
"""A picture's file is in a struct, as in Hugging Face's data sets."""
RUN_IMAGES = {"cpu": 256, "cuda": 4_096}
"""Images of one run on each device: past 128 an image is no cheaper on a core."""
_ANSWERS = 4
"""Columns that are added."""
_GROUP_BATCHES = 8
"""Of a row group of the output: up to 32,768 rows, 26 MB of pixels."""
_AHEAD = 32
"""Pictures that wait for the processes that decode them."""
_MANIFEST, SUMMARY = "_manifest.json", "_summary.json"
_UNFINISHED = "_unfinished-"


def is_images(kind: Any) -> bool:
    """Return whether a column of an Arrow type can hold images."""
    kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
    kind = kind.value_type if types.is_dictionary(kind) else kind
    if not _is_list(kind):
        return is_pictures(kind) or _is_bytes(kind)
    while _is_list(kind):
        kind = kind.value_type
    return bool(types.is_integer(kind))


def is_pictures(kind: Any) -> bool:
    """Return whether a type is a struct with a picture's file, as in Hugging Face's data sets."""
    index = kind.get_field_index("bytes") if types.is_struct(kind) else -1
    return index >= 0 and _is_bytes(kind.field(index).type)


def as_images(column: Any, num_pixels: int, decode: Decode) -> tuple[Images, dict[int, str]]:
    """Make images of a column.

    Args:
        column: a `pyarrow.Array` of a type for which `is_images` holds: bytes, which are pixels
            if there are as many, else a picture file; structs with picture files; or lists.
        num_pixels: of an image.
        decode: decodes picture files.

    Returns:
        (N, num_pixels) uint8, and by row number why a row has none.
    """
    column = column.storage if isinstance(column, pa.ExtensionArray) else column
    column = column.dictionary_decode() if types.is_dictionary(column.type) else column
    are_files, is_list = is_pictures(column.type), _is_list(column.type)
    if is_list and (regular := _regular(column, num_pixels)) is not None:
        return regular, {}
    rows = (pc.struct_field(column, "bytes") if are_files else column).to_pylist()
    errors, files = dict[int, str](), dict[int, bytes]()
    for row, content in enumerate(rows):
        if content is None:
            errors[row] = "no image: it is null" + " or can't be read" * are_files
        elif is_list:
            rows[row] = found = _pixels([*_leaves(content)], num_pixels)
            if isinstance(found, str):
                errors[row] = found
        elif are_files or len(content) != num_pixels or content.startswith(_PICTURE_STARTS):
            files[row] = content
    for (row, content), decoded in zip(files.items(), decode([*files.values()]), strict=True):
        if not isinstance(decoded, str) and decoded.shape[1] == num_pixels:
            rows[row] = decoded.tobytes()
        elif not isinstance(decoded, str):
            errors[row] = f"pictures are read as images of 28 x 28, not of {num_pixels} pixels"
        elif are_files or content.startswith(_PICTURE_STARTS):
            errors[row] = decoded
        else:
            errors[row] = f"expected {num_pixels} pixels or a picture, got {len(content)} bytes"
    for row in errors:
        rows[row] = bytes(num_pixels)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(-1, num_pixels), errors


def _regular(column: Any, num_pixels: int) -> Images | None:
    """Return the images of lists of any depth; None if any is null, too short or no pixel."""
    num_rows, size = len(column), 1
    while _is_list(column.type):
        sizes = pc.min_max(pc.list_value_length(column)).as_py()
        if column.null_count or sizes["min"] != sizes["max"]:
            return None
        size *= sizes["min"]
        column = column.flatten()
    limits = pc.min_max(column).as_py()
    if column.null_count or size != num_pixels or limits["min"] < 0 or limits["max"] > 255:
        return None
    images: Images = column.to_numpy().astype(np.uint8, copy=False)
    return images.reshape(num_rows, num_pixels)


def _leaves(row: Any) -> Iterator[int | None]:
    for each in row:
        if isinstance(each, list):
            yield from _leaves(each)
        else:
            yield each


def _pixels(row: list[int | None], num_pixels: int) -> bytes | str:
    if len(row) != num_pixels:
        return f"expected {num_pixels} pixels, got {len(row)}"
    if not all(each is not None and 0 <= each <= 255 for each in row):
        return "expected pixels from 0 to 255"
    return bytes(row)  # type: ignore[arg-type]


def _is_list(kind: Any) -> bool:
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def _is_bytes(kind: Any) -> bool:
    is_any = types.is_binary(kind) or types.is_large_binary(kind)
    return bool(is_any or types.is_fixed_size_binary(kind))


class Part(NamedTuple):
    """Consecutive rows that become one file."""

    number: int
    num_rows: int
    read: "partial[Iterator[Any]]"
    """Reads it in order, as `pyarrow.RecordBatch`es."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A data set that is open."""

    filesystem: Any
    path: str
    """Of the file or folder."""
    identity: str
    """A digest of their names, sizes and times."""
    schema: Any
    """The `pyarrow.Schema` of its rows."""
    image_column: str
    are_pictures: bool
    """Whether the files are pictures, which stay where they are."""
    parts: Sequence[Part]


def open_place(text: str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` and the path in it of a local path or a URI.

    Raises:
        ConfigurationError: pyarrow knows no such file system, or can't open it.
    """
    if "://" not in text:
        return fs.LocalFileSystem(), os.path.abspath(text)
    shown = without_credentials(text)
    with one_line(shown, hidden=text):
        filesystem, path = fs.FileSystem.from_uri(text)
    return filesystem, path.rstrip("/")


def open_source(place: tuple[Any, str], column: str | None, rows_per_file: int | None) -> Source:
    """Open a data set and cut it into parts, always the same ones.

    Raises:
        ConfigurationError: there is nothing, or nothing that can be read.
        ModuleNotFoundError: it has pictures, and their decoder is not installed.
    """
    filesystem, root = place
    with one_line(root):
        info = filesystem.get_file_info(root)
        is_folder = info.type == fs.FileType.Directory
        found = _listed(filesystem, root) if is_folder else [info]
    if info.type == fs.FileType.NotFound:
        raise ConfigurationError(f"no such file or folder: {root}")
    tables = [each for each in found if not is_folder or each.path.lower().endswith(TABLES)]
    pictures = [each for each in found if is_folder and each.path.lower().endswith(SUFFIXES)]
    if bool(tables) == bool(pictures):
        problem = "both Parquet files and" if tables else "no Parquet files and no"
        raise ConfigurationError(f"{root} holds {problem} pictures: name a folder of one kind")
    files = tables or pictures
    for each in files:
        if each.type != fs.FileType.File:
            raise ConfigurationError(f"{each.path} is no regular file, or a broken link")
    facts = "\n".join(f"{each.path[len(root) :]} {each.size} {each.mtime_ns}" for each in files)
    if tables:
        schema, name, parts = _tables(filesystem, tables, column, rows_per_file)
    else:
        installation.require("PIL", "scipy")
        schema, name = _PICTURES, "image"
        parts = list(_picture_parts(filesystem, root, pictures, rows_per_file))
    if not parts:
        raise ConfigurationError(f"{root} has no rows")
    return Source(
        filesystem=filesystem,
        path=root,
        schema=schema,
        identity=hashlib.sha256(facts.encode()).hexdigest(),
        image_column=name,
        are_pictures=bool(pictures),
        parts=parts,
    )


def _listed(filesystem: Any, root: str) -> list[Any]:
    """List all below a folder but its folders, sorted; names with a dot or underscore are hidden.

    A link to a local folder is followed, once: Arrow would follow one to a parent some forty times.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        hidden = re.compile("/[._]")
        infos = [each for each in infos if not hidden.search(each.path, len(root))]
        return sorted(
            (each for each in infos if each.type != fs.FileType.Directory),
            key=lambda each: each.path,
        )
    paths: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise ConfigurationError(f"{folder} is {real}, which is read already: remove the link")
        seen.add(real)
        folders[:] = [name for name in folders if name[0] not in "._"]
        paths += [f"{folder}/{name}" for name in files if name[0] not in "._"]
    return list(filesystem.get_file_info(sorted(paths)))


def _refuse(err: OSError) -> None:
    raise err


def _tables(
    filesystem: Any, infos: Sequence[Any], column: str | None, rows_per_file: int | None
) -> tuple[Any, str, list[Part]]:
    paths = [info.path for info in infos]
    kind = pyarrow.dataset.ParquetFileFormat()
    schema, parts = None, list[Part]()
    for path in paths:
        with one_line(path):
            fragment = kind.make_fragment(path, filesystem)
            own = fragment.physical_schema.remove_metadata()
            sizes = [group.num_rows for group in fragment.row_groups]
        schema = schema or own
        if own != schema:
            raise ConfigurationError(f"{path} has other columns than {paths[0]}")
        name = _image_column(path, schema, column)
        are_pictures = is_pictures(schema.field(name).type)
        most = rows_per_file or (PICTURES_PER_FILE if are_pictures else ROWS_PER_FILE)
        for groups, num_rows in _gathered(sizes, most):
            read = partial(_read_table, path, fragment.subset(row_group_ids=groups))
            parts.append(Part(len(parts), num_rows, read))
    return schema, name, parts


def _image_column(path: str, schema: Any, column: str | None) -> str:
    """Choose the column of images: the named one, `image`, `images`, or the only possible one."""
    able = [each.name for each in schema if is_images(each.type)]
    wanted = (column,) if column else ("image", "images")
    chosen = next(
        filter(None, ([each for each in able if each == name] for name in wanted)),
        [] if column else able,
    )
    if len(chosen) == 1:
        return str(chosen[0])
    problem = ("several columns" if chosen else "no column") + (f" {column!r}" if column else "")
    found = ", ".join(f"{each.name} ({each.type})" for each in schema)
    raise ConfigurationError(
        f"{path} has {problem} of images (bytes, or lists of whole numbers from 0 to 255); "
        f"name one with --column: {found}"
    )


def _gathered(sizes: Sequence[int], most: int) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of consecutive row groups of up to `most` rows, and their rows."""
    groups, num_rows = list[int](), 0
    for number, size in enumerate(sizes):
        if num_rows and num_rows + size > most:
            yield groups, num_rows
            groups, num_rows = [], 0
        groups, num_rows = [*groups, number], num_rows + size
    if num_rows:
        yield groups, num_rows


def _read_table(path: str, fragment: Any) -> Iterator[Any]:
    with one_line(path):
        yield from fragment.to_batches(batch_size=BATCH_ROWS, use_threads=False, batch_readahead=1)


def _picture_parts(
    filesystem: Any, root: str, infos: Sequence[Any], rows_per_file: int | None
) -> Iterator[Part]:
    step = rows_per_file or PICTURES_PER_FILE
    for number, start in enumerate(range(0, len(infos), step)):
        some = infos[start : start + step]
        yield Part(number, len(some), partial(_read_pictures, filesystem, root, some))


def _read_pictures(filesystem: Any, root: str, infos: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(infos), _PICTURES_AT_ONCE):
        some = infos[start : start + _PICTURES_AT_ONCE]
        names = [info.path[len(root) + 1 :] for info in some]
        contents = [{"bytes": _content(filesystem, info)} for info in some]
        columns = [pa.array(names), pa.array(contents, _PICTURES.field("image").type)]
        yield pa.RecordBatch.from_arrays(columns, schema=_PICTURES)


def _content(filesystem: Any, info: Any) -> bytes | None:
    """Return a picture's file; None if it can't be read, or is too large."""
    try:
        with filesystem.open_input_file(info.path) as file:
            return bytes(file.read()) if file.size() <= _PICTURE_BYTES else None
    except (OSError, pa.ArrowException):
        return None


@contextmanager
def one_line(subject: str, hidden: str = "\0") -> Iterator[None]:
    """Turn errors of files, pyarrow and the libraries below it into one line about a subject.

    Args:
        subject: of the line.
        hidden: text that the line must not have; the subject takes its place.

    Raises:
        ConfigurationError: instead of those.
    """
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, ImportError) as err:
        raise ConfigurationError(f"{subject}: {reason(err).replace(hidden, subject)}") from err


def reason(err: Exception) -> str:
    """Return the first line of another library's error."""
    text = getattr(err, "strerror", None) or str(err) or type(err).__name__
    return "".join(c if c.isprintable() else " " for c in text.partition("\n")[0])[:300]


class Output(NamedTuple):
    """A folder for results, and their columns; see `answered`."""

    filesystem: Any
    path: str
    schema: Any


def decode(decoders: Processes, contents: Sequence[bytes]) -> list[Images | str]:
    """Decode some picture files: (1, 784) uint8 each, or why it can't be read."""
    return list(mapped(decoders, image_or_reason, contents, _AHEAD))


def answered(schema: Any, dropped: str | None, prefix: str, signature: Signature) -> Any:
    """Return a schema with the answers' columns at its end.

    Raises:
        ConfigurationError: the input has a column with the name of an answer's.
    """
    digit = pa.from_numpy_dtype(digit_type(signature.num_classes))
    kinds = {"probability": pa.float32(), "model_version": pa.string(), "error": pa.string()}
    answers = [pa.field(prefix + name, kind) for name, kind in {"digit": digit, **kinds}.items()]
    both = pa.schema([*(field for field in schema if field.name != dropped), *answers])
    for name in both.names:
        if both.names.count(name) > 1:
            raise ConfigurationError(
                f"the input has a column {name!r} already: --prefix names the new ones"
            )
    return both


def answer(batch: Any, column: str, schema: Any, model: LoadedModel, decoders: Processes) -> Any:
    """Answer the rows of a batch; one that can't be read has its error."""
    size, num_rows = RUN_IMAGES[model.device], len(batch)
    signature = model.image_signature
    decoded = partial(decode, decoders)
    images, errors = as_images(batch.column(column), signature.image_bytes, decoded)
    is_bad = np.zeros(num_rows, bool)
    is_bad[list(errors)] = True
    good = images[~is_bad] if errors else images
    runs = [model.classify(good[start : start + size]) for start in range(0, len(good), size)]
    digits = np.zeros(num_rows, digit_type(signature.num_classes))
    confidence = np.zeros(num_rows, np.float32)
    if runs:
        digits[~is_bad] = np.concatenate([each.argmax(axis=1) for each in runs])
        confidence[~is_bad] = np.concatenate([each.max(axis=1) for each in runs])
    mask = is_bad if errors else None
    version = pa.scalar(model.version, pa.string())
    return pa.RecordBatch.from_arrays(
        [
            *(batch.column(name) for name in schema.names[:-_ANSWERS]),
            pa.array(digits, mask=mask),
            pa.array(confidence, mask=mask),
            pa.repeat(version, num_rows),
            pa.array(map(errors.get, range(num_rows)), pa.string()),
        ],
        schema=schema,
    )


def prepare(output: Output, manifest: dict[str, Any], *, is_resumed: bool) -> None:
    """Make the folder ready: a new one, or one that holds results of the same run.

    Raises:
        ConfigurationError: there are results and they are not to be resumed, or they are of
            something else, or the folder can't be written.
    """
    filesystem, path, _ = output
    with one_line(path):
        filesystem.create_dir(path, recursive=True)
        names = {each.base_name for each in filesystem.get_file_info(fs.FileSelector(path))}
        if _MANIFEST not in names:
            if any(name[0] not in "._" for name in names):
                raise ConfigurationError(f"{path} is not empty, and holds no results to resume")
            write_json(output, _MANIFEST, manifest)
            return
        if not is_resumed:
            raise ConfigurationError(
                f"{path} holds results already: --resume goes on, or name another folder"
            )
        with filesystem.open_input_file(f"{path}/{_MANIFEST}") as stream:
            found = json.loads(stream.read())
        for subject, value in manifest.items():
            if found.get(subject) != value:
                before, now = str(found.get(subject))[:160], str(value)[:160]
                raise ConfigurationError(
                    f"{path} holds results of another {subject} ({before}), not of this one "
                    f"({now}): name another folder"
                )
        for name in names:
            if name.startswith(_UNFINISHED):
                filesystem.delete_file(f"{path}/{name}")


@contextmanager
def writing(filesystem: Any, path: str) -> Iterator[Any]:
    """Open a file that gets its name once the block ends without an exception."""
    folder, _, name = path.rpartition("/")
    unfinished = f"{folder}/{_UNFINISHED}{name}"
    try:
        with filesystem.open_output_stream(unfinished) as stream:
            yield stream
        if isinstance(filesystem, fs.LocalFileSystem):
            with open(unfinished, "rb") as file:  # a name must not outlive a crash without content
                os.fsync(file.fileno())
        filesystem.move(unfinished, path)
    except BaseException:
        # An object store completes the upload of a stream that is closed by an exception.
        with suppress(OSError, pa.ArrowException):
            filesystem.delete_file(unfinished)
        raise


def write_json(output: Output, name: str, document: object) -> None:
    """Write a JSON file, whole."""
    path = f"{output.path}/{name}"
    with one_line(path), writing(output.filesystem, path) as stream:
        stream.write(json.dumps(document, indent=2).encode() + b"\n")


def errors_of(filesystem: Any, path: str) -> tuple[int, str] | None:
    """Return how many rows of a file have no answer, and why one has none; None without a file.

    Raises:
        ConfigurationError: it is damaged.
    """
    with one_line(path):
        try:
            with filesystem.open_input_file(path) as stream:
                footer = pq.read_metadata(stream)
        except FileNotFoundError:
            return None
    num_errors, text = 0, ""
    for number in range(footer.num_row_groups):
        column = footer.row_group(number).column(footer.num_columns - 1)
        num_errors += column.num_values - column.statistics.null_count
        text = text or column.statistics.max or ""
    return num_errors, text


def _score_part(
    source: Source, output: Output, classified: Callable[[Any], Any], part: Part
) -> tuple[int, str]:
    """Score a part, unless its file is there already; see `errors_of`."""
    filesystem, folder, schema = output
    path = f"{folder}/part-{part.number:06}.parquet"
    if (found := errors_of(filesystem, path)) is not None:
        return found
    # Images have no value twice, and their least and greatest would be no use.
    others = [name for name in schema.names if name != source.image_column]
    num_rows = 0
    with (
        one_line(folder),
        writing(filesystem, path) as stream,
        pq.ParquetWriter(stream, schema, use_dictionary=others, write_statistics=others) as writer,
    ):
        answers = map(classified, part.read())
        for first in answers:
            rows = pa.Table.from_batches([first, *islice(answers, _GROUP_BATCHES - 1)])
            writer.write_table(rows)
            num_rows += len(rows)
        if num_rows != part.num_rows:
            raise ConfigurationError(
                f"the input has changed: {part.num_rows} rows expected, got {num_rows}"
            )
    return errors_of(filesystem, path) or (0, "")


def score(
    source: Source,
    output: Output,
    model: LoadedModel,
    num_threads: int,
    advance: Callable[[int], None],
) -> Iterator[tuple[int, str]]:
    """Score all parts on this machine's cores; yields `errors_of` each one, in any order.

    Reading, running and writing release the GIL, so threads use all cores.

    Raises:
        ServingError: a part failed; those in progress end without a file.
    """
    is_stopped = threading.Event()
    decoders = processes(num_threads)

    def classified(batch: Any) -> Any:
        if is_stopped.is_set():
            raise CancelledError
        advance(len(batch))
        return answer(batch, source.image_column, output.schema, model, decoders)

    threads = ThreadPoolExecutor(num_threads, "scorer")
    try:
        run = partial(_score_part, source, output, classified)
        for future in as_completed([threads.submit(run, part) for part in source.parts]):
            yield future.result()
    finally:
        is_stopped.set()
        threads.shutdown(cancel_futures=True)
        decoders.close()
