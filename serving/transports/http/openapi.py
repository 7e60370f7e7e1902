"""The OpenAPI document of /v1 and of the Open Inference Protocol's /v2."""

from collections.abc import Collection
from typing import Any
from urllib.parse import quote

from digit_reader.text.pattern import MAX_LENGTH
from serving.batching.route import Route
from serving.commandline import installation
from serving.router import Router
from serving.signature import DIGITS
from serving.transports.http.schemas import schemas_of
from serving.transports.http1.routing import TIMEOUT_HEADER

_PROBLEMS = {
    "400": "The request is malformed or does not fit the model; see `detail`.",
    "401": "A valid bearer token is needed.",
    "404": "No such model or version.",
    "413": "The body, or a picture in it, is too large.",
    "429": "Too much waits already: come again after `Retry-After` seconds.",
    "500": "The model failed on these images.",
    "503": "Starting, draining or out of reach: come again after `Retry-After` seconds.",
    "504": "The deadline passed first.",
}


def openapi_document(router: Router, of_pictures: Collection[str]) -> dict[str, Any]:
    """Describe the paths, bodies and answers (OpenAPI 3.1).

    Args:
        router: the models.
        of_pictures: the names of those that classify pictures.
    """
    classifier = digits_route(router)
    digits: dict[str, Any] = {}
    models: dict[str, Any] = {}
    if classifier is not None:
        digits["/v1/digits"] = {"post": _digits(router.batching.max_request_images)}
        digits["/v1/numbers"] = {"post": _numbers()}
    for name in router.routes:
        if name in of_pictures:
            models[f"/v1/models/{quote(name)}/classify"] = {"post": _classes()}
        model = f"/v2/models/{quote(name)}"
        models |= {
            model: {"get": _query("Describe the model's tensors", "ModelMetadata")},
            f"{model}/ready": {"get": _ready("Say whether the model accepts work")},
            f"{model}/config": {"get": _query("Describe how it is run", "ModelConfig")},
            f"{model}/stats": {"get": _query("Give its counts and times", "Statistics")},
            f"{model}/infer": {"post": _infer()},
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Handwritten digits" if digits else "Models",
            "version": installation.version(),
            "description": f"{'Pictures in, digits out; and the' if digits else 'The'} Open "
            "Inference Protocol v2. The same models, batches and limits as over gRPC.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            **digits,
            "/v2": {"get": _query("Describe the server and its extensions", "ServerMetadata")},
            "/v2/health/live": {"get": _query("Say whether the server answers at all", "Live")},
            "/v2/health/ready": {"get": _ready("Say whether the server accepts work")},
            **models,
        },
        "components": {
            "schemas": schemas_of(
                DIGITS if classifier is None else classifier.model.image_signature
            ),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                code: {"description": text, "content": _of("Problem", "application/problem+json")}
                for code, text in _PROBLEMS.items()
            },
        },
        "security": [{}, {"token": []}],
    }


def digits_route(router: Router) -> Route | None:
    """Return the model of digits.v1 if it reads pictures as those of digits."""
    route = router.classifier
    pictures = None if route is None else route.model.pictures
    return route if pictures is not None and pictures.resize == "digits" else None


def _of(schema: str, kind: str = "application/json") -> dict[str, Any]:
    """Describe a body that has a schema."""
    return {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _operation(
    summary: str, answer: str, *codes: str, body: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    if body is not None:
        more["requestBody"] = {"required": True, "content": body}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": _of(answer)},
            **{code: {"$ref": f"#/components/responses/{code}"} for code in ("401", *codes)},
        },
        **more,
    }


def _query(summary: str, answer: str) -> dict[str, Any]:
    return _operation(summary, answer, "404")


def _ready(summary: str) -> dict[str, Any]:
    operation = _operation(summary, "Ready", "404")
    operation["responses"]["503"] = {**operation["responses"]["200"], "description": "Not now."}
    return operation


_TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds that the answer may take, such as 0.25.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
}
_WORK = ("400", "413", "429", "500", "503", "504")


_PICTURE = {"type": "string", "format": "binary"}
_PICTURES = {
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


def _option(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema}


_REJECT_BELOW = _option(
    "reject_below", "Less probable answers are marked `rejected`.",
    type="number", minimum=0, maximum=1, default=0,
)  # fmt: skip
_OPTIONS = [
    _REJECT_BELOW,
    _option("image", "If given, the answer has the network's input.", type="string"),
    _TIMEOUT,
]
_TOP = _option(
    "top", "How many of the most probable classes the answer has.",
    type="integer", minimum=1, maximum=999_999, default=5,
)  # fmt: skip
_PATTERN = _option(
    "pattern", "Only numbers that fit this regular expression are read, such as "
    "\\d{2}/\\d{2}/\\d{4}. It may have digits, the marks . , - / :, blanks, letters "
    "(ink that is skipped), \\d, [ ], ( ), |, ?, *, + and {2,4}.",
    type="string", maxLength=MAX_LENGTH,
)  # fmt: skip
_DRAWING = _option(
    "drawing", "If given, all ink of a picture may be one number, such as an upright stroke.",
    type="string",
)  # fmt: skip


def _digits(max_images: int) -> dict[str, Any]:
    return _operation(
        "Read one digit from each picture",
        "Digits",
        *_WORK,
        description="One picture as the body, or several as files of a form. JSON holds images as "
        f"MNIST has them, at most {max_images}. Of a form's pictures, one that can't be read, or "
        "of several digits, has an `error` instead of a digit.",
        parameters=_OPTIONS,
        body=_of("Images") | _PICTURES,
    )


def _classes() -> dict[str, Any]:
    return _operation(
        "Classify pictures",
        "Classes",
        "404",
        *_WORK,
        description="One picture as the body, or several as files of a form. Each is made the "
        "model's input as its manifest or classifier.json says. Of a form's pictures, one that "
        "can't be read has an `error` instead of a class.",
        parameters=[_REJECT_BELOW, _TOP, _TIMEOUT],
        body=_PICTURES,
    )


def _numbers() -> dict[str, Any]:
    return _operation(
        "Read the numbers in each picture",
        "NumbersOfPictures",
        *_WORK,
        description="One picture as the body, or several as files of a form. The numbers of a "
        "picture are in reading order, each digit with its box in the picture's pixels; there may "
        "be none. Of a form's pictures, one that can't be read has an `error` instead.",
        parameters=[*_OPTIONS, _DRAWING, _PATTERN],
        body=_PICTURES,
    )


def _infer() -> dict[str, Any]:
    return _operation(
        "Run the model on tensors",
        "InferResponse",
        "404",
        *_WORK,
        description="The binary tensor data extension is supported: the header "
        "`Inference-Header-Content-Length` counts the JSON, and the tensors follow as bytes.",
        parameters=[_TIMEOUT],
        body=_of("InferRequest"),
    )
