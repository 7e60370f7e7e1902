"""/v1/numbers: pictures in, the numbers on them out; and the page that draws numbers."""

import json
from pathlib import Path
from typing import Any

from digit_classifier.http import DIGIT, OPTIONS, choose, digits_route
from digit_reader.facts import MAX_LENGTH
from digit_reader.handler import NumberPictures
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.http_api.handler_path import (
    MAX_BODY_BYTES,
    Answered,
    Chosen,
    HandlerPath,
    Parameters,
)
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
from serving.http_api.pictures import PICTURES, VERSION, option, share_of
from serving.router import Router
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint, RoutedRequest

MODULES = ("digit_reader.http", "digit_reader.numbers", "digit_reader.digit")
PAGES: dict[str, tuple[str, str]] = {}  # reader.js makes the page of digits one of numbers
FILES = Path(__file__).parent / "files"

_HANDLER = NumberPictures()
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
    answer = Numbers(router).answer
    return [Endpoint("POST", "/v1/numbers", answer, MAX_BODY_BYTES, True, "HttpNumbers")]


def describe(router: Router, config: ServerConfig) -> tuple[Document, Document]:
    """Describe /v1/numbers and its schemas."""
    if digits_route(router) is None:
        return {}, {}
    picture = object_of("", name=DIGIT["name"], numbers=array_of(_number()), error=TEXT)
    numbers = object_of("model_version pictures", model_version=VERSION, pictures=some_of(picture))
    return {"/v1/numbers": {"post": _numbers()}}, {"NumbersOfPictures": numbers}


class Numbers(HandlerPath):
    """Answers /v1/numbers."""

    def find(self, plan: RoutedRequest, share: float) -> Chosen:
        """Choose the version of the digits' model."""
        return choose(self.router, _HANDLER, share)

    async def parameters(self, call: Exchange) -> Parameters:
        """Return the options of the query."""
        query = call.plan.query
        pattern = query["pattern"][-1] if "pattern" in query else None
        if pattern is not None:
            await call.work(check_pattern, pattern)
        return {
            "reject_below": share_of(call.plan, "reject_below"),
            "image": "image" in query,
            "drawing": "drawing" in query,
            "pattern": pattern,
        }

    async def write(self, call: Exchange, answered: Answered, parameters: Parameters) -> Answer:
        """Write the numbers of each picture, which are JSON already."""
        items = []
        for name, found in answered.files:
            head = f'"name":{json.dumps(name)},' if name else ""
            if isinstance(found, ServingError):
                items.append(f'{{{head}"error":{json.dumps(str(found))}}}')
            else:
                items.append(f'{{{head}"numbers":{found["numbers"][0]}}}')
        version = json.dumps(answered.version)
        return Answer(f'{{"model_version":{version},"pictures":[{",".join(items)}]}}'.encode())


def check_pattern(pattern: str) -> None:
    """Refuse what is no pattern, in a process: see `of_rows`."""
    from digit_reader.text.pattern import of_rows  # which the loop's process does without

    of_rows(pattern)


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
