"""Requests of pictures: their forms and queries; for /v1/digits and /v1/numbers."""

import io
import logging
import time
from collections.abc import AsyncIterator, Callable
from typing import BinaryIO, TypeVar

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import DeadlineExceeded, DigitsError, InvalidRequest
from serving.transports.http1.port import Exchange
from serving.transports.http1.routing import RoutedRequest

MAX_BODY_BYTES = 32 << 20
"""Pictures of one request, such as a phone's of 48 megapixels."""
MAX_PICTURES = 100
MAX_FORM_S = 20.0
"""The time for the pictures of a form."""
_FORM = "multipart/form-data"
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a warning for each bad form

_Made = TypeVar("_Made")


async def read_pictures(
    call: Exchange, read: Callable[[BinaryIO], _Made]
) -> AsyncIterator[tuple[str, _Made | DigitsError]]:
    """Read the pictures of a body: the files of a form, or the body itself.

    Each is read once the one before is answered, so that other callers have their turn.

    Args:
        call: the request.
        read: such as `from_picture`; called in a process.

    Yields:
        The name of each, and its image, or in a form the reason if there is none.

    Raises:
        InvalidRequest: the form is malformed, has no file or too many, or the body is empty, or the
            only picture can't be read.
    """
    body, kind = call.body, call.plan.get("content-type")
    if media_type(kind) != _FORM:
        if not body:
            raise InvalidRequest("expected a picture, got an empty body")
        yield "", await call.work(_read, read, body)
        return
    end_s = time.monotonic() + MAX_FORM_S
    for name, start, end in await call.work(find_files, body, kind):
        if time.monotonic() > end_s:
            raise DeadlineExceeded(f"the pictures of a form take more than {MAX_FORM_S:g} s")
        try:
            yield name, await call.work(_read, read, body[start:end])
        except InvalidRequest as err:
            yield name, err


def _read(read: Callable[[BinaryIO], _Made], content: bytes) -> _Made:
    return read(io.BytesIO(content))


def find_files(body: bytes, kind: str) -> list[tuple[str, int, int]]:
    """Find a form's files: the name of each, and where in the body it begins and ends."""
    form = _Form(body)
    try:
        boundary = parse_options_header(kind)[1][b"boundary"]
        parser = MultipartParser(boundary, form.callbacks())  # type: ignore[arg-type]
        parser.write(body)
        parser.finalize()
    except (FormParserError, KeyError, ValueError) as err:
        reason = " ".join(str(err).split())[:80]
        raise InvalidRequest(f"expected a form with pictures: {reason}") from err
    if not form.files:
        raise InvalidRequest("expected a form with at least 1 file, got none")
    return form.files


class _Form:
    """Finds the parts of a form."""

    def __init__(self, body: bytes) -> None:
        self.files: list[tuple[str, int, int]] = []
        self._body = body
        self._num_parts = 0

    def callbacks(self) -> dict[str, Callable[..., None]]:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._add_to_field,
            "on_header_value": self._add_to_value,
            "on_header_end": self._end_header,
            "on_part_data": self._add,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._num_parts += 1
        if self._num_parts > MAX_PICTURES:
            raise ValueError(f"more than {MAX_PICTURES} parts")
        self._field = self._value = b""
        self._name: str | None = None
        self._start, self._size = 0, 0

    def _add_to_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _add_to_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _end_header(self) -> None:
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(self._value)[1]
            if b"filename" in options:
                self._name = options[b"filename"].decode("utf-8", "replace")
        self._field = self._value = b""

    def _add(self, data: bytes, start: int, end: int) -> None:
        if data is self._body and not self._start:  # else it only begins like a boundary
            self._start = start - self._size
        self._size += end - start

    def _end(self) -> None:
        if self._name is not None:
            self.files.append((self._name, self._start, self._start + self._size))


def media_type(kind: str) -> str:
    """Return the type of a body, such as image/png."""
    return kind.partition(";")[0].strip().lower()


def share_of(plan: RoutedRequest, name: str) -> float:
    """Return a query's number from 0 to 1; 0 if it is not given.

    Raises:
        InvalidRequest: it is no such number.
    """
    text = plan.query.get(name, ["0"])[-1]
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidRequest(f"expected {name} from 0 to 1, got {text[:40]!r}")
    return share
