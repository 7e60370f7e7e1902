"""/v1/numbers: pictures in, the numbers on them out; and the page that draws numbers."""

import json
import pickle
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from digit_classifier.http import DIGIT, OPTIONS, classify, digits_route
from digit_classifier.predictions import Predictions
from digit_reader.facts import MAX_LENGTH, number_facts
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.http_api.http_application import Document
from serving.http_api.openapi import (
    COUNT,
    INTEGER,
    PROBABILITY,
    TEXT,
    WORK,
    YES_NO,
    Schema,
    array_of,
    object_of,
    operation,
    some_of,
    text_of,
)
from serving.http_api.pictures import (
    MAX_BODY_BYTES,
    PICTURES,
    VERSION,
    option,
    read_pictures,
    share_of,
)
from serving.router import Router
from serving.tensors import Images
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint

MODULES = ("digit_reader.http", "digit_reader.numbers", "digit_reader.digit")
PAGES: dict[str, tuple[str, str]] = {}  # reader.js makes the page of digits one of numbers
FILES = Path(__file__).parent / "files"

MAX_CANDIDATES = 4000
"""The most candidates of a picture: some 400 digits, and a second of work."""
_PATTERN = option(
    "pattern",
    "Only numbers that fit this regular expression are read, such as "
    "\\d{2}/\\d{2}/\\d{4}. It may have digits, the marks . , - / :, blanks, letters "
    "(ink that is skipped), \\d, [ ], ( ), |, ?, *, + and {2,4}.",
    type="string",
    maxLength=MAX_LENGTH,
)
_DRAWING = option(
    "drawing",
    "If given, all ink of a picture may be one number, such as an upright stroke.",
    type="string",
)


def routes(router: Router, config: ServerConfig) -> list[Endpoint]:
    """Return /v1/numbers; nothing if no model reads digits."""
    if digits_route(router) is None:
        return []
    answer = partial(_answer, router)
    return [Endpoint("POST", "/v1/numbers", answer, MAX_BODY_BYTES, True, "HttpNumbers")]


def describe(router: Router, config: ServerConfig) -> tuple[Document, Document]:
    """Describe /v1/numbers and its schemas."""
    if digits_route(router) is None:
        return {}, {}
    picture = object_of("", name=DIGIT["name"], numbers=array_of(_number()), error=TEXT)
    numbers = object_of("model_version pictures", model_version=VERSION, pictures=some_of(picture))
    return {"/v1/numbers": {"post": _numbers()}}, {"NumbersOfPictures": numbers}


async def _answer(router: Router, call: Exchange) -> Answer:
    query = call.plan.query
    pattern = query["pattern"][-1] if "pattern" in query else None
    if pattern is not None:
        await call.work(check_pattern, pattern)
    options = share_of(call.plan, "reject_below"), "image" in query, "drawing" in query, pattern
    items, version = [], None
    async for name, found in read_pictures(call, find):
        images, reading = (None, found) if isinstance(found, ServingError) else found
        answer = None
        if images is not None and len(images):
            answer = await classify(router, images, call)
            version = answer.model_version
        items.append(await call.work(write_item, name, reading, answer, *options))
    head = json.dumps({"model_version": version}, separators=(",", ":"))
    return Answer(f'{head[:-1]},"pictures":[{",".join(items)}]}}'.encode())


# The rest of a request is work in other processes. This one, the loop's, imports no Pillow and no
# SciPy for it, so functions import what they need, and a `Reading` comes and goes as bytes.


def check_pattern(pattern: str) -> None:
    """Refuse what is no pattern: see `of_rows`."""
    from digit_reader.text.pattern import of_rows

    of_rows(pattern)


def find(source: BinaryIO) -> tuple[Images, bytes]:
    """Find what may be digits in a picture: the images to classify, and a pickled `Reading`."""
    from digit_reader.reader import find_candidates

    reading = find_candidates(source, MAX_CANDIDATES)
    return reading.images, pickle.dumps(reading)


def write_item(
    name: str,
    pickled: bytes | ServingError,
    answer: Predictions | None,
    reject_below: float,
    with_images: bool,
    is_drawing: bool,
    pattern: str | None,
) -> str:
    """Write the numbers of a picture as JSON."""
    item: dict[str, Any] = {"name": name} if name else {}
    if isinstance(pickled, ServingError):
        item["error"] = str(pickled)
    else:
        numbers = []
        if answer is not None:
            reading = pickle.loads(pickled)
            read = reading.drawn_numbers if is_drawing else reading.numbers
            if pattern is not None:
                read = partial(reading.fitting_numbers, pattern=pattern)
            numbers = read(answer.probabilities)
        item["numbers"] = [number_facts(n, reject_below, with_images=with_images) for n in numbers]
    return json.dumps(item, separators=(",", ":"))


def _numbers() -> dict[str, Any]:
    return operation(
        "Read the numbers in each picture",
        "NumbersOfPictures",
        *WORK,
        description="One picture as the body, or several as files of a form. The numbers of a "
        "picture are in reading order, each digit with its box in the picture's pixels; there may "
        "be none. Of a form's pictures, one that can't be read has an `error` instead.",
        parameters=[*OPTIONS, _DRAWING, _PATTERN],
        body=PICTURES,
    )


def _number() -> Schema:
    """Return the schema of a number in a picture."""
    names = "left top right bottom"
    box = object_of(names, **dict.fromkeys(names.split(), COUNT))
    part = {name: DIGIT[name] for name in ("digit", "probability", "probabilities")}
    return object_of(
        "text probability rejected box turned sheet fields digits",
        text=text_of("Its digits and marks, such as 90210 or -3,14."),
        probability=PROBABILITY,
        rejected=YES_NO,
        box=box,
        turned={
            "enum": [0, 90, 180, 270],
            "description": "Degrees by which it is turned clockwise in the picture.",
        },
        sheet=array_of(
            array_of(INTEGER, minItems=2, maxItems=2),
            description="The corners of the photographed sheet that it lies on, or none: x, y.",
        ),
        fields=some_of(
            object_of("text box", text=TEXT, box=box),
            description="The digits between marks, and the marks: . , - / :",
        ),
        digits=some_of(
            object_of(" ".join([*part, "box"]), **part, box=box, image=DIGIT["image"]),
        ),
    )
