"""Digits over HTTP: /v1/digits, its page, and their part of the OpenAPI document."""

import base64
import json
import random
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from digit_classifier import pictures
from digit_classifier.handler import IMAGE, STEPS, about
from digit_classifier.methods import route_of
from digit_classifier.predictions import DIGITS, as_images
from serving.config import ServerConfig
from serving.errors import InvalidRequest, ModelNotFound, ServingError
from serving.http_api import openapi
from serving.http_api.files_path import (
    MAX_BODY_BYTES,
    Answered,
    Chosen,
    FilesPath,
    Outputs,
    Parameters,
    media_type,
)
from serving.http_api.http_application import Document
from serving.http_api.pictures import PICTURES, REJECT_BELOW, VERSION, option, share_of
from serving.pictures.classifier import CLASS, LABEL, PROBABILITIES, Decoded
from serving.router import Route, Router
from serving.tensors import Images
from serving.transports.http_port import Exchange
from serving.transports.http_routing import JSON, Answer, Endpoint, RoutedRequest, as_json

_NUM_DECIMALS = 6
_JSON_BYTES = 4 << 20
_ITEM_BYTES = 256
"""The least size of an item of the answer."""

_WRONG = {float: "floats (multiply 0..1 by 255)", str: "texts", bool: "booleans"}

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


class DigitsPath(FilesPath):
    """Answers /v1/digits."""

    def routes(self) -> list[Endpoint]:
        """Return the routes."""
        return [Endpoint("POST", "/v1/digits", self.answer, _max_bytes, True, "HttpDigits")]

    def find(self, plan: RoutedRequest, share: float) -> Chosen:
        """Choose the version of the digits' model."""
        if (route := digits_route(self.router)) is None:
            raise ModelNotFound("no classifier of digits is served")
        return Chosen(STEPS, about(), route, route.versions.choose(share))

    async def parameters(self, call: Exchange) -> Parameters:
        """Return the options of the query."""
        reject_below = share_of(call.plan, "reject_below")
        return {"reject_below": reject_below, "with_image": "image" in call.plan.query}

    async def answered(self, call: Exchange, parameters: Parameters) -> Answered:
        """Have pictures handled, or images of JSON run."""
        if media_type(call.plan.get("content-type")) != JSON:
            return await super().answered(call, parameters)
        limit, body = self.router.batching.max_request_rows, call.body
        images = await call.work(read_images, body, limit, size=len(body))
        call.body = b""
        chosen = self.find(call.plan, random.random())
        found, version = await self.finished(call, chosen, Decoded([images], images))
        return Answered(chosen, [("", found)], version)

    async def write(self, call: Exchange, answered: Answered, parameters: Parameters) -> Answer:
        """Write the digit of each picture or image."""
        chosen, files, version = answered
        found = [each for _, each in files if not isinstance(each, ServingError)]
        size = _ITEM_BYTES * max(len(files), sum(len(each[CLASS]) for each in found))
        model = chosen.route.name, version
        options = parameters["reject_below"], parameters["with_image"]
        return await call.work(write_report, files, *model, *options, size=size)


def _max_bytes(plan: RoutedRequest) -> int:
    return _JSON_BYTES if media_type(plan.get("content-type")) == JSON else MAX_BODY_BYTES


def read_images(body: bytes, limit: int) -> Images:
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
            return as_images(array, DIGITS, limit)
        got = f", got {' and '.join(sorted(_WRONG.get(kind, 'others') for kind in wrong))}"
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        pass
    raise InvalidRequest(
        'expected JSON such as {"images": [[0, ..., 255], ...]}: N lists of '
        f"{DIGITS.image_bytes} integers from 0 to 255{got}"
    )


def write_report(
    files: Sequence[tuple[str, Outputs | ServingError]],
    model_name: str,
    version: str | None,
    reject_below: float,
    with_image: bool,
) -> Answer:
    """Write the result for each picture, in order."""
    items: list[dict[str, Any]] = []
    for name, found in files:
        item: dict[str, Any] = {"name": name} if name else {}
        if isinstance(found, ServingError):
            items.append(item | {"error": str(found)})
            continue
        columns = [found[each].tolist() for each in (CLASS, LABEL, PROBABILITIES)]
        for digit, label, shares, image in zip(*columns, found[IMAGE], strict=True):
            probabilities = [round(share, _NUM_DECIMALS) for share in shares]
            facts = item | {
                "digit": digit,
                "label": label,
                "probability": probabilities[digit],
                "probabilities": probabilities,
                "rejected": probabilities[digit] < reject_below,
            }
            if with_image:
                facts["image"] = base64.b64encode(image.tobytes()).decode()
            items.append(facts)
    return as_json({"model_name": model_name, "model_version": version, "digits": items})


def routes(router: Router, config: ServerConfig) -> Iterator[Endpoint]:
    """Return /v1/digits; nothing if no model takes digits."""
    if digits_route(router) is not None:
        yield from DigitsPath(router).routes()


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
        f"MNIST has them, at most {max_images}. A picture of several separate digits is refused; "
        "digits that touch are answered as one. Of a form's pictures, one that can't be read or is "
        "refused has an `error` instead of a digit.",
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
            "model_name model_version digits",
            model_name=openapi.text_of("The model's name."),
            model_version=VERSION,
            digits=openapi.some_of(digit),
        ),
    }
