"""Requests of pictures: their bodies, forms and queries; for all paths below /v1."""

import io
from asyncio import get_running_loop
from collections.abc import AsyncGenerator, Awaitable, Callable
from concurrent.futures import Executor
from typing import Any, BinaryIO, NamedTuple, TypeVar

from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from serving.errors import DigitsError, InvalidRequest
from serving.router import Router
from serving.transports.http.bodies import Bodies
from serving.transports.http.calls import Calls, while_connected

MAX_BODY_BYTES = 32 << 20
"""Pictures of one request, such as a phone's of 48 megapixels."""
MAX_PICTURES = 100
FORM = "multipart/form-data"


_Read = TypeVar("_Read")


class Picture(NamedTuple):
    """A picture of a request."""

    name: str
    content: bytes


class Pictures:
    """What the answers to requests of pictures have in common."""

    def __init__(self, router: Router, calls: Calls, bodies: Bodies, pictures: Executor) -> None:
        """Classify through `calls`; decode pictures on `pictures`, some 7 ms each."""
        self._router = router
        self._calls = calls
        self._bodies = bodies
        self._pictures = pictures

    async def _answer_each(
        self, request: Request, answer: Callable[[bytes], Awaitable[dict[str, Any] | DigitsError]]
    ) -> list[dict[str, Any]]:
        """Answer the pictures of a request; of a form's, those that can't be read by an `error`."""
        items: list[dict[str, Any]] = []
        async with self._bodies.read(request, MAX_BODY_BYTES) as body:
            for name, content in await pictures_of(request, body):
                facts = await answer(content)
                if isinstance(facts, DigitsError):
                    if media_type(request) != FORM:
                        raise facts
                    facts = {"error": str(facts)}
                items.append(({"name": name} if name else {}) | facts)
        return items


async def pictures_of(request: Request, body: bytes) -> list[Picture]:
    """Return the pictures of a body: the files of a form, or the body itself.

    Raises:
        InvalidRequest: the form is malformed, has no file or too many, or the body is empty.
    """
    if media_type(request) != FORM:
        if not body:
            raise InvalidRequest("expected a picture, got an empty body")
        return [Picture("", body)]

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = _FormParser(request.headers, whole(), max_files=MAX_PICTURES, max_fields=MAX_PICTURES)
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as err:
        reason = " ".join(str(err).split())[:80]
        raise InvalidRequest(f"expected a form with pictures: {reason}") from err
    files = [value for _, value in form.multi_items() if isinstance(value, UploadFile)]
    if not files:
        raise InvalidRequest("expected a form with at least 1 file, got none")
    return [Picture(file.filename or "", await file.read()) for file in files]


async def read_picture(
    request: Request, executor: Executor, read: Callable[[BinaryIO], _Read], content: bytes
) -> _Read | DigitsError:
    """Read a picture on an executor; return why it can't be read.

    Args:
        request: if its caller leaves, a picture whose turn has not come is not read.
        executor: some 7 ms for a digit, some 50 for a page of numbers.
        read: such as `from_picture`.
        content: the picture's file.

    Raises:
        Unavailable: the caller left.
    """
    work = get_running_loop().run_in_executor(executor, _read_or_error, read, content)
    return await while_connected(request, work)


def _read_or_error(read: Callable[[BinaryIO], _Read], content: bytes) -> _Read | DigitsError:
    try:
        return read(io.BytesIO(content))
    except DigitsError as err:
        return err


class _FormParser(MultiPartParser):
    spool_max_size = MAX_BODY_BYTES  # the body is in memory already: nothing is written to a disk


def media_type(request: Request) -> str:
    """Return the type of a request's body, such as image/png."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def share_of(request: Request, name: str) -> float:
    """Return a query's number from 0 to 1; 0 if it is not given.

    Raises:
        InvalidRequest: it is no such number.
    """
    text = request.query_params.get(name, "0")
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidRequest(f"expected {name} from 0 to 1, got {text[:40]!r}")
    return share
