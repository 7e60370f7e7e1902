"""Pictures over HTTP: the paths, the pages, and their part of the OpenAPI document."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving.config import ServerConfig
from serving.digits.http.pictures import Classes, Digits
from serving.model.repository import PictureInputs
from serving.router import Route, Router
from serving.tensors import DIGITS
from serving.transports.http.applications import Document
from serving.transports.http.openapi import (
    COUNT,
    PROBABILITY,
    TEXT,
    TIMEOUT,
    WORK,
    YES_NO,
    Schema,
    array_of,
    body_of,
    object_of,
    operation,
    some_of,
    text_of,
)
from serving.transports.http1.routing import Endpoint

MODULES = ("serving.digits.http.pictures", "serving.digits.pictures.normalizer")
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
        paths["/v1/digits"] = {"post": _digits(router.batching.max_request_images)}
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
    TIMEOUT,
]
_TOP = option(
    "top", "How many of the most probable classes the answer has.",
    type="integer", minimum=1, maximum=999_999, default=5,
)  # fmt: skip


def _digits(max_images: int) -> dict[str, Any]:
    return operation(
        "Read one digit from each picture",
        "Digits",
        *WORK,
        description="One picture as the body, or several as files of a form. JSON holds images as "
        f"MNIST has them, at most {max_images}. Of a form's pictures, one that can't be read, or "
        "of several digits, has an `error` instead of a digit.",
        parameters=OPTIONS,
        body=body_of("Images") | PICTURES,
    )


def _classes() -> dict[str, Any]:
    return operation(
        "Classify pictures",
        "Classes",
        "404",
        *WORK,
        description="One picture as the body, or several as files of a form. Each is made the "
        "model's input as its manifest or classifier.json says. Of a form's pictures, one that "
        "can't be read has an `error` instead of a class.",
        parameters=[_REJECT_BELOW, _TOP, TIMEOUT],
        body=PICTURES,
    )


def _schemas() -> dict[str, Schema]:
    """Return the schemas of digits and of other classes, by name."""
    digit = object_of("", **DIGIT)
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    row = array_of(pixel, minItems=DIGITS.image_bytes, maxItems=DIGITS.image_bytes)
    return {
        "Images": object_of("images", images=some_of(row)),
        "Digits": object_of("model_version digits", model_version=VERSION, digits=some_of(digit)),
        "Classes": object_of(
            "model_name model_version pictures",
            model_name=TEXT,
            model_version=TEXT,
            pictures=some_of(_classified()),
        ),
    }


DIGIT = {
    "name": text_of("The file's name, where it has one."),
    "digit": {"type": "integer", "minimum": 0, "maximum": DIGITS.num_classes - 1},
    "label": text_of("The name of that class: the digit."),
    "probability": PROBABILITY,
    "probabilities": array_of(
        PROBABILITY, minItems=DIGITS.num_classes, maxItems=DIGITS.num_classes
    ),
    "rejected": YES_NO,
    "image": text_of(f"{DIGITS.image_bytes} bytes in base64: the network's input."),
    "error": TEXT,
}
"""The schemas of an answer's fields."""


def _classified() -> Schema:
    """Return the schema of the answer to a picture by any classifier."""
    share = object_of("label probability", label=TEXT, probability=PROBABILITY)
    same = ("name", "label", "probability", "rejected", "error")
    return object_of(
        "",
        **{name: DIGIT[name] for name in same},
        **{"class": COUNT, "probabilities": some_of(share)},
    )
