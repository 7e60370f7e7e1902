"""Digits over HTTP: /v1/digits, its page, and their part of the OpenAPI document."""

import base64
import json
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from digit_classifier import pictures
from digit_classifier.methods import PredictionsEncoder, find_classifier, route_of
from digit_classifier.pictures import read_digit
from digit_classifier.predictions import DIGITS, Predictions, as_images
from serving.config import ServerConfig
from serving.errors import InvalidRequest, ServingError
from serving.http_api import openapi
from serving.http_api.http_application import Document
from serving.http_api.pictures import (
    MAX_BODY_BYTES,
    PICTURES,
    REJECT_BELOW,
    VERSION,
    media_type,
    option,
    read_pictures,
    share_of,
)
from serving.router import Route, Router
from serving.tensors import Images, Signature
from serving.transports.http_port import Exchange
from serving.transports.http_routing import JSON, Answer, Endpoint, RoutedRequest, as_json

_NUM_DECIMALS = 6
_JSON_BYTES = 4 << 20
_ITEM_BYTES = 256
"""The least size of an item of the answer."""

_WRONG = {float: "floats (multiply 0..1 by 255)", str: "texts", bool: "booleans"}

Read = Sequence[tuple[str, tuple[Images, float] | ServingError]]
"""For each picture its name, and its image with a factor for the probabilities."""
MODULES = (__name__, *pictures.modules())
PAGES = {"/v1/digits": ("draw.html", "Draw a digit")}
FILES = Path(__file__).parent / "files"
OPTIONS = [
    REJECT_BELOW,
    option("image", "If given, the answer has the network's input.", type="string"),
    openapi.TIMEOUT,
]
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


def routes(router: Router, config: ServerConfig) -> Iterator[Endpoint]:
    """Return /v1/digits; nothing if no model takes digits."""
    if digits_route(router) is not None:
        yield from Digits(router).routes()


def describe(router: Router, config: ServerConfig) -> tuple[Document, Document]:
    """Describe /v1/digits and its schemas."""
    if digits_route(router) is None:
        return {}, {}
    return {"/v1/digits": {"post": _digits(router.batching.max_request_rows)}}, _schemas()


def digits_route(router: Router) -> Route | None:
    """Return the model of digits.v1 if its classes are the digits and it reads pictures of them."""
    route = route_of(router)
    if route is None or route.model.image_signature != DIGITS:
        return None
    known = route.model.pictures
    return route if known is not None and known.resize == "digits" else None


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


def _schemas() -> dict[str, openapi.Schema]:
    digit = openapi.object_of("", **DIGIT)
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    row = openapi.array_of(pixel, minItems=DIGITS.image_bytes, maxItems=DIGITS.image_bytes)
    return {
        "Images": openapi.object_of("images", images=openapi.some_of(row)),
        "Digits": openapi.object_of(
            "model_version digits", model_version=VERSION, digits=openapi.some_of(digit)
        ),
    }
