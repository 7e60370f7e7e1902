"""The OpenAPI document of /v1 and of the Open Inference Protocol's /v2."""

from typing import Any
from urllib.parse import quote

from serving import installation
from serving.router import Router
from serving.signature import DIGITS, Signature
from serving.transports.http.calls import TIMEOUT_HEADER

_PROBLEMS = {
    "400": "The request can't be answered as it is; `detail` says what was expected and what came.",
    "401": "A valid bearer token is needed.",
    "404": "No such model or version.",
    "413": "The body, or a picture in it, is larger than what is read.",
    "429": "Too much waits already: come again after `Retry-After` seconds.",
    "500": "The model failed on these images.",
    "503": "Starting, draining or out of reach: come again after `Retry-After` seconds.",
    "504": "The deadline passed first.",
}


def openapi_document(router: Router) -> dict[str, Any]:
    """Describe the paths, bodies and answers (OpenAPI 3.1)."""
    classifier = router.classifier
    digits: dict[str, Any] = {}
    models: dict[str, Any] = {}
    if classifier is not None:
        digits["/v1/digits"] = {"post": _digits(router.batching.max_request_images)}
        digits["/v1/numbers"] = {"post": _numbers()}
    for name in router.routes:
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
            "/v2": {"get": _query("Say what this server is and what it can do", "ServerMetadata")},
            "/v2/health/live": {"get": _query("Say whether the server answers at all", "Live")},
            "/v2/health/ready": {"get": _ready("Say whether the server accepts work")},
            **models,
        },
        "components": {
            "schemas": _schemas(DIGITS if classifier is None else classifier.image_signature),
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                code: {
                    "description": text,
                    "content": {
                        "application/problem+json": {
                            "schema": {"$ref": "#/components/schemas/Problem"}
                        }
                    },
                }
                for code, text in _PROBLEMS.items()
            },
        },
        "security": [{}, {"token": []}],
    }


def _operation(summary: str, answer: str, *codes: str, **more: Any) -> dict[str, Any]:
    answered = {"$ref": f"#/components/schemas/{answer}"}
    return {
        "summary": summary,
        "responses": {
            "200": {
                "description": "The answer.",
                "content": {"application/json": {"schema": answered}},
            },
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


def _flag(name: str, description: str) -> dict[str, Any]:
    description = f"If given, {description}"
    return {"name": name, "in": "query", "description": description, "schema": {"type": "string"}}


_OPTIONS = [
    {
        "name": "reject_below",
        "in": "query",
        "description": "What is less probable than this is marked `rejected`.",
        "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": 0},
    },
    _flag("image", "the answer holds what the network sees."),
    _TIMEOUT,
]
_DRAWING = _flag("drawing", "all ink of a picture may be one number, such as an upright stroke.")


def _digits(max_images: int) -> dict[str, Any]:
    images = {"application/json": {"schema": {"$ref": "#/components/schemas/Images"}}}
    return _operation(
        "Read one digit from each picture",
        "Digits",
        *_WORK,
        description="One picture as the body, or several as files of a form. JSON holds images as "
        f"MNIST has them, at most {max_images}. Of a form's pictures, one that can't be read, or "
        "of several digits, has an `error` instead of a digit.",
        parameters=_OPTIONS,
        requestBody={"required": True, "content": images | _PICTURES},
    )


def _numbers() -> dict[str, Any]:
    return _operation(
        "Read the numbers in each picture",
        "NumbersOfPictures",
        *_WORK,
        description="One picture as the body, or several as files of a form. The numbers of a "
        "picture are in reading order, each digit with its box in the picture's pixels; there may "
        "be none. Of a form's pictures, one that can't be read has an `error` instead.",
        parameters=[*_OPTIONS, _DRAWING],
        requestBody={"required": True, "content": _PICTURES},
    )


def _infer() -> dict[str, Any]:
    schema = {"$ref": "#/components/schemas/InferRequest"}
    return _operation(
        "Run the model on tensors",
        "InferResponse",
        "404",
        *_WORK,
        description="The binary tensor data extension is supported: the header "
        "`Inference-Header-Content-Length` counts the JSON, and the tensors follow as bytes.",
        parameters=[_TIMEOUT],
        requestBody={"required": True, "content": {"application/json": {"schema": schema}}},
    )


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _array(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def _schemas(signature: Signature) -> dict[str, Any]:
    size, num_classes = signature.image_bytes, signature.num_classes
    text, integer = {"type": "string"}, {"type": "integer"}
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    row = _array(pixel, minItems=size, maxItems=size)
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    digit = _object(
        [],
        name={**text, "description": "The file's name, where it has one."},
        digit={"type": "integer", "minimum": 0, "maximum": num_classes - 1},
        label={**text, "description": "What that class is called: the digit, of digits."},
        probability=probability,
        probabilities=_array(probability, minItems=num_classes, maxItems=num_classes),
        rejected={"type": "boolean"},
        image={**text, "description": f"{size} bytes in base64: what the network sees."},
        error=text,
    )
    side = {"type": "integer", "minimum": 0}
    box = _object(["left", "top", "right", "bottom"], left=side, top=side, right=side, bottom=side)
    part = {name: digit["properties"][name] for name in ("digit", "probability", "probabilities")}
    number = _object(
        ["text", "probability", "rejected", "box", "digits"],
        text={**text, "description": "Its digits, such as 90210."},
        probability=probability,
        rejected={"type": "boolean"},
        box=box,
        digits=_array(
            _object([*part, "box"], **part, box=box, image=digit["properties"]["image"]),
            minItems=1,
        ),
    )
    of_picture = _object([], name=digit["properties"]["name"], numbers=_array(number), error=text)
    tensor = _object(
        ["name", "datatype", "shape", "data"],
        name=text,
        datatype={**text, "description": "Such as FP32; see the model's metadata."},
        shape=_array(integer),
        data=_array({}, description="Row by row; lists of lists are read, too."),
    )
    output = _object(
        ["name", "datatype", "shape"],
        name=text,
        datatype=text,
        shape=_array(integer),
        data=_array({}),
    )
    return {
        "Images": _object(["images"], images=_array(row, minItems=1)),
        "Digits": _object(
            ["model_version", "digits"],
            model_version={"type": ["string", "null"]},
            digits=_array(digit, minItems=1),
        ),
        "NumbersOfPictures": _object(
            ["model_version", "pictures"],
            model_version={"type": ["string", "null"]},
            pictures=_array(of_picture, minItems=1),
        ),
        "InferRequest": _object(["inputs"], id=text, inputs=_array(tensor)),
        "InferResponse": _object(
            ["model_name", "model_version", "outputs"],
            model_name=text,
            model_version=text,
            id=text,
            outputs=_array(output),
        ),
        "Live": _object(["live"], live={"type": "boolean"}),
        "Ready": _object(["ready"], ready={"type": "boolean"}),
        "ServerMetadata": _object(["name", "version", "extensions"]),
        "ModelMetadata": _object(["name", "versions", "platform", "inputs", "outputs"]),
        "ModelConfig": _object(["name"]),
        "Statistics": _object(["model_stats"]),
        "Problem": _object(
            ["title", "status", "detail"], type=text, title=text, status=integer, detail=text
        ),
    }
