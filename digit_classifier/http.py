"""Pictures over HTTP: paths, answers, pages, and their part of the OpenAPI document."""

import base64
import io
import json
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from digit_classifier.methods import PredictionsEncoder, find_classifier
from serving.config import ServerConfig
from serving.errors import DeadlineExceeded, InvalidRequest, ServingError
from serving.model.loaded import LoadedModel
from serving.model.preprocessing import Preprocessing, predictions_of
from serving.model.repository import PictureInputs
from serving.pictures.reader import picture_row, read_digit
from serving.predictions import Images, Predictions, as_images
from serving.protocols.method import Rows
from serving.router import Route, Router
from serving.tensors import DIGITS, Array, Signature
from serving.transports.http import openapi
from serving.transports.http.applications import Document
from serving.transports.http1.port import Exchange
from serving.transports.http1.routing import JSON, Answer, Endpoint, RoutedRequest, as_json

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


TOP = 5
"""The most probable classes that an answer has, unless `top` says another number."""
_NUM_DECIMALS = 6


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
            items.append(item | _facts(found.times(factor), top, reject_below))
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
    ) -> Predictions:
        target = self._router.find(call.plan.params["name"]).find(model.version)
        message = row.tobytes() if model.tensors.row_bytes else (row,)
        outputs, result = await call.run(message, Rows(target, None, 1), call.deadline_s)
        return predictions_of(pictures, model.tensors, outputs, result.version)


def _facts(found: Predictions, top: int, reject_below: float) -> dict[str, Any]:
    shares = [round(float(share), _NUM_DECIMALS) for share in found.probabilities[0]]
    numbers = sorted(range(len(shares)), key=lambda number: -found.probabilities[0, number])
    first, labels = numbers[0], found.class_labels or list(map(str, range(len(shares))))
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


_JSON_BYTES = 4 << 20
_ITEM_BYTES = 256
"""The least size of an item of the answer."""

_WRONG = {float: "floats (multiply 0..1 by 255)", str: "texts", bool: "booleans"}

Read = Sequence[tuple[str, tuple[Images, float] | ServingError]]
"""For each picture its name, and its image with a factor for the probabilities."""


class Digits:
    """Answers /v1/digits."""

    def __init__(self, router: Router) -> None:
        self._router = router

    def routes(self) -> list[Endpoint]:
        """Return the routes."""
        return [Endpoint("POST", "/v1/digits", self._answer, _max_bytes, True, "HttpDigits")]

    async def _answer(self, call: Exchange) -> Answer:
        reject_below = share_of(call.plan, "reject_below")
        kind = call.plan.get("content-type")
        read: Read
        if media_type(kind) == JSON:
            signature = find_classifier(self._router).model.image_signature
            limit = self._router.batching.max_request_rows
            images = await call.work(read_images, call.body, signature, limit, size=len(call.body))
            read = [("", (image[None], 1.0)) for image in images]
        else:
            read = [each async for each in read_pictures(call, read_digit)]
        call.body = b""
        digits = [each for _, each in read if not isinstance(each, ServingError)]
        rows = None
        if digits:
            images_read, factors = zip(*digits, strict=True)
            rows = (await classify(self._router, np.concatenate(images_read), call)).times(factors)
        with_image = "image" in call.plan.query
        size = len(read) * _ITEM_BYTES
        return await call.work(write_report, read, rows, reject_below, with_image, size=size)


async def classify(router: Router, images: Images, call: Exchange) -> Predictions:
    """Classify images, in as many calls as a request's limit needs."""
    route, limit = find_classifier(router), router.batching.max_request_rows
    images = as_images(images, route.model.image_signature)
    answers: list[Predictions] = []
    for start in range(0, len(images), limit):
        part = images[start : start + limit]
        encoder = PredictionsEncoder(route, None, len(part))
        answers.append(await call.run(part.tobytes(), encoder, call.deadline_s))
    return Predictions.concatenate(answers)


def _max_bytes(plan: RoutedRequest) -> int:
    return _JSON_BYTES if media_type(plan.get("content-type")) == JSON else MAX_BODY_BYTES


def read_images(body: bytes, signature: Signature, limit: int) -> Images:
    """Read the images of a JSON body.

    Raises:
        InvalidRequest: the text has the expected form.
    """
    got = ""
    try:
        images = json.loads(body)["images"]
        array = np.asarray(images, np.uint8)
        pixels = images
        for _ in array.shape[1:]:
            pixels = chain.from_iterable(pixels)
        wrong = set(map(type, pixels)) - {int}  # which numpy would cut, or read as numbers
        if not wrong:
            return as_images(array, signature, limit)
        got = f", got {' and '.join(sorted(_WRONG.get(kind, 'others') for kind in wrong))}"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    raise InvalidRequest(
        'expected JSON such as {"images": [[0, ..., 255], ...]}: N lists of '
        f"{signature.image_bytes} integers from 0 to 255{got}"
    )


def write_report(
    read: Read, rows: Predictions | None, reject_below: float, with_image: bool
) -> Answer:
    """Write the result for each picture, in order."""
    items: list[dict[str, Any]] = []
    answers = iter(
        [] if rows is None else zip(rows.digits, rows.labels, rows.probabilities, strict=True)
    )
    for name, found in read:
        item: dict[str, Any] = {"name": name} if name else {}
        if isinstance(found, ServingError):
            item["error"] = str(found)
        else:
            digit, label, probabilities = next(answers)
            item["digit"] = int(digit)
            item["label"] = label
            item["probability"] = round(float(probabilities[digit]), _NUM_DECIMALS)
            item["probabilities"] = [round(float(p), _NUM_DECIMALS) for p in probabilities]
            item["rejected"] = item["probability"] < reject_below
            if with_image:
                item["image"] = base64.b64encode(found[0].tobytes()).decode()
        items.append(item)
    return as_json({"model_version": None if rows is None else rows.model_version, "digits": items})


MODULES = (__name__, "digit_classifier.normalizer")
PAGES = {"/v1/digits": ("draw.html", "Draw a digit")}
FILES = Path(__file__).parent / "files"


def routes(router: Router, config: ServerConfig) -> Iterator[Endpoint]:
    """See `HttpApplication`."""
    inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
    models = {each.name: (each.model.manifest, each.tensors) for each in router.routes.values()}
    inputs.require_one(models)
    yield from Classes(router, inputs).routes()
    if digits_route(router) is not None:
        yield from Digits(router).routes()


def describe(router: Router, config: ServerConfig) -> tuple[Document, Document]:
    """See `HttpApplication`."""
    inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
    paths: Document = {}
    if digits_route(router) is not None:
        paths["/v1/digits"] = {"post": _digits(router.batching.max_request_rows)}
    for name, route in router.routes.items():
        if inputs.find(route.model.manifest, route.tensors) is not None:
            paths[f"/v1/models/{quote(name)}/classify"] = {"post": _classes()}
    return paths, _schemas()


def digits_route(router: Router) -> Route | None:
    """Return the model of digits.v1 if its classes are the digits and it reads pictures of them."""
    route = router.classifier
    if route is None or route.model.image_signature != DIGITS:
        return None
    pictures = route.model.pictures
    return route if pictures is not None and pictures.resize == "digits" else None


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


def option(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """Describe a parameter of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


_REJECT_BELOW = option(
    "reject_below", "Less probable answers are marked `rejected`.",
    type="number", minimum=0, maximum=1, default=0,
)  # fmt: skip
OPTIONS = [
    _REJECT_BELOW,
    option("image", "If given, the answer has the network's input.", type="string"),
    openapi.TIMEOUT,
]
_TOP = option(
    "top", "How many of the most probable classes the answer has.",
    type="integer", minimum=1, maximum=999_999, default=5,
)  # fmt: skip


def _digits(max_images: int) -> dict[str, Any]:
    return openapi.operation(
        "Read one digit from each picture",
        "Digits",
        *openapi.WORK,
        description="One picture as the body, or several as files of a form. JSON holds images as "
        f"MNIST has them, at most {max_images}. Of a form's pictures, one that can't be read, or "
        "of several digits, has an `error` instead of a digit.",
        parameters=OPTIONS,
        body=openapi.body_of("Images") | PICTURES,
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
        parameters=[_REJECT_BELOW, _TOP, openapi.TIMEOUT],
        body=PICTURES,
    )


def _schemas() -> dict[str, openapi.Schema]:
    digit = openapi.object_of("", **DIGIT)
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    row = openapi.array_of(pixel, minItems=DIGITS.image_bytes, maxItems=DIGITS.image_bytes)
    return {
        "Images": openapi.object_of("images", images=openapi.some_of(row)),
        "Digits": openapi.object_of(
            "model_version digits", model_version=VERSION, digits=openapi.some_of(digit)
        ),
        "Classes": openapi.object_of(
            "model_name model_version pictures",
            model_name=openapi.TEXT,
            model_version=openapi.TEXT,
            pictures=openapi.some_of(_classified()),
        ),
    }


DIGIT = {
    "name": openapi.text_of("The file's name, where it has one."),
    "digit": {"type": "integer", "minimum": 0, "maximum": DIGITS.num_classes - 1},
    "label": openapi.text_of("The name of that class: the digit."),
    "probability": openapi.PROBABILITY,
    "probabilities": openapi.array_of(
        openapi.PROBABILITY, minItems=DIGITS.num_classes, maxItems=DIGITS.num_classes
    ),
    "rejected": openapi.YES_NO,
    "image": openapi.text_of(f"{DIGITS.image_bytes} bytes in base64: the network's input."),
    "error": openapi.TEXT,
}
"""The schemas of an answer's fields."""


def _classified() -> openapi.Schema:
    share = openapi.object_of(
        "label probability", label=openapi.TEXT, probability=openapi.PROBABILITY
    )
    same = ("name", "label", "probability", "rejected", "error")
    return openapi.object_of(
        "",
        **{name: DIGIT[name] for name in same},
        **{"class": openapi.COUNT, "probabilities": openapi.some_of(share)},
    )
