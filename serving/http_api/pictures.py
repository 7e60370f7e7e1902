"""Pictures of any classifier over HTTP: how a body is read, and /v1/models/NAME/classify."""

import io
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.config import ServerConfig
from serving.errors import DeadlineExceeded, InvalidRequest, ServingError
from serving.http_api import openapi
from serving.http_api.http_application import Document
from serving.model.loaded import LoadedModel
from serving.model.picture_inputs import PictureInputs
from serving.model.preprocessing import Preprocessing, classes_of
from serving.pictures.reader import modules, picture_row
from serving.protocols.method import Rows
from serving.router import Router
from serving.tensors import Array, Probabilities
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint, RoutedRequest, as_json

MAX_BODY_BYTES = 32 << 20
"""Pictures of one request, such as a phone's of 48 megapixels."""
MAX_PICTURES = 100
MAX_FORM_S = 20.0
"""The time for the pictures of a form."""
_FORM = "multipart/form-data"
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # a warning for each bad form

_Made = TypeVar("_Made")
TOP = 5
"""The most probable classes that an answer has, unless `top` says another number."""
_NUM_DECIMALS = 6
MODULES = (__name__, *modules())
PAGES: dict[str, tuple[str, str]] = {}
FILES = Path(__file__).parent / "files"
VERSION = {"type": ["string", "null"]}
_PICTURE = {"type": "string", "format": "binary"}
PICTURES = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "properties": {"picture": {"type": "array", "items": _PICTURE, "minItems": 1}},
            "required": ["picture"],
        }
    },
    "application/octet-stream": {"schema": _PICTURE},
    **{f"image/{kind}": {"schema": _PICTURE} for kind in ("png", "jpeg", "webp", "gif", "tiff")},
}


async def read_pictures(
    call: Exchange, read: Callable[[BinaryIO], _Made]
) -> AsyncIterator[tuple[str, _Made | ServingError]]:
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


class Classes:
    """Answers /v1/models/NAME/classify."""

    def __init__(self, router: Router, inputs: PictureInputs) -> None:
        self._router = router
        self._inputs = inputs

    def routes(self) -> list[Endpoint]:
        """Return the routes, with and without a version."""
        paths = ("/v1/models/{name}/classify", "/v1/models/{name}/versions/{version}/classify")
        return [
            Endpoint("POST", path, self._answer, MAX_BODY_BYTES, True, "HttpClassify")
            for path in paths
        ]

    async def _answer(self, call: Exchange) -> Answer:
        reject_below, top = share_of(call.plan, "reject_below"), _top_of(call.plan)
        share = random.random()  # a canary has all of a form's pictures, or none
        model, pictures, read = await self._read(call, share)
        items: list[dict[str, Any]] = []
        for name, picture in read:
            item: dict[str, Any] = {"name": name} if name else {}
            if isinstance(picture, ServingError):
                items.append(item | {"error": str(picture)})
                continue
            row, factor = picture
            found = await self._classified(model, pictures, row, call)
            items.append(item | _facts(found[0] * factor, pictures.labels, top, reject_below))
        name = call.plan.params["name"]
        return as_json({"model_name": name, "model_version": model.version, "pictures": items})

    async def _read(
        self, call: Exchange, share: float
    ) -> tuple[
        LoadedModel, Preprocessing, Sequence[tuple[str, tuple[Array, float] | ServingError]]
    ]:
        """Read the pictures for the version that will classify them: others take other sizes."""
        name, asked = call.plan.params["name"], call.plan.params.get("version")
        while True:
            versions = self._router.find(name).versions
            model = versions.find(asked) if asked else versions.choose(share)
            pictures = self._inputs.find(model.manifest, model.tensors)
            if pictures is None:
                raise InvalidRequest(f"model {name!r} is not known to classify pictures")
            read = partial(picture_row, pictures)
            rows = [each async for each in read_pictures(call, read)]
            if self._router.find(name).versions.versions.get(model.version) is model:
                call.body = b""
                return model, pictures, rows  # else another one took over meanwhile

    async def _classified(
        self, model: LoadedModel, pictures: Preprocessing, row: Array, call: Exchange
    ) -> Probabilities:
        target = self._router.find(call.plan.params["name"]).find(model.version)
        message = row.tobytes() if model.tensors.row_bytes else (row,)
        outputs, _ = await call.run(message, Rows(target, None, 1), call.deadline_s)
        return classes_of(pictures, model.tensors, outputs)


def _facts(
    found: Probabilities, names: Sequence[str], top: int, reject_below: float
) -> dict[str, Any]:
    shares = [round(float(share), _NUM_DECIMALS) for share in found]
    numbers = sorted(range(len(shares)), key=lambda number: -found[number])
    first, labels = numbers[0], names or list(map(str, range(len(shares))))
    return {
        "class": first,
        "label": labels[first],
        "probability": shares[first],
        "probabilities": [{"label": labels[n], "probability": shares[n]} for n in numbers[:top]],
        "rejected": shares[first] < reject_below,
    }


def _top_of(plan: RoutedRequest) -> int:
    text = plan.query.get("top", [str(TOP)])[-1]
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:9]) < 10**6:
        raise InvalidRequest(f"expected top as a number from 1, got {text[:40]!r}")
    return int(text)


def routes(router: Router, config: ServerConfig) -> Iterator[Endpoint]:
    """Return the paths that classify pictures; none if no model takes any."""
    inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
    models = {each.name: (each.model.manifest, each.tensors) for each in router.routes.values()}
    inputs.require_one(models)
    yield from Classes(router, inputs).routes()


def describe(router: Router, config: ServerConfig) -> tuple[Document, Document]:
    """Describe these paths and their schemas."""
    inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
    paths: Document = {}
    for name, route in router.routes.items():
        if inputs.find(route.model.manifest, route.tensors) is not None:
            paths[f"/v1/models/{quote(name)}/classify"] = {"post": _classes()}
    answer = openapi.object_of(
        "model_name model_version pictures",
        model_name=openapi.TEXT,
        model_version=openapi.TEXT,
        pictures=openapi.some_of(_classified()),
    )
    return paths, {"Classes": answer}


def option(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """Describe a parameter of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


REJECT_BELOW = option(
    "reject_below",
    "Less probable answers are marked `rejected`.",
    type="number",
    minimum=0,
    maximum=1,
    default=0,
)
_TOP = option(
    "top",
    "How many of the most probable classes the answer has.",
    type="integer",
    minimum=1,
    maximum=999_999,
    default=5,
)


def _classes() -> dict[str, Any]:
    return openapi.operation(
        "Classify pictures",
        "Classes",
        "404",
        *openapi.WORK,
        description="One picture as the body, or several as files of a form. Each is made the "
        "model's input as its manifest or classifier.json says. Of a form's pictures, one that "
        "can't be read has an `error` instead of a class.",
        parameters=[REJECT_BELOW, _TOP, openapi.TIMEOUT],
        body=PICTURES,
    )


def _classified() -> openapi.Schema:
    share = openapi.object_of(
        "label probability", label=openapi.TEXT, probability=openapi.PROBABILITY
    )
    return openapi.object_of(
        "",
        name=openapi.text_of("The file's name, where it has one."),
        label=openapi.text_of("The name of the most probable class."),
        probability=openapi.PROBABILITY,
        probabilities=openapi.some_of(share),
        rejected=openapi.YES_NO,
        error=openapi.TEXT,
        **{"class": openapi.COUNT},
    )
