"""The OpenAPI document of /v1 and of the Open Inference Protocol's /v2."""

from typing import Any
from urllib.parse import quote

from serving.commandline import installation
from serving.model.loaded import LoadedModel
from serving.oip.examples import request_body
from serving.router import Router
from serving.transports.http_routing import TIMEOUT_HEADER

Schema = dict[str, Any]

TEXT, INTEGER, YES_NO = ({"type": name} for name in ("string", "integer", "boolean"))
FILES = {
    "type": "object",
    "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
}
"""A form of files, by any names."""
COUNT = {"type": "integer", "minimum": 0}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_TABLE = """
tensor         name:text datatype:text shape:integer* data:any*
output         name:text datatype:text shape:integer* data:any*?
described      name:text datatype:text shape:integer*
configured     name:text data_type:text dims:integer*
parameter      string_value:text
statistics     name:text version:text inference_count:count execution_count:count
fact           name:text datatype:text axes:text* content:text?
sample         name:text datatype:text axes:text* content:text? shape:count* sample:any
model          name:text version:text state:text reason:text roles:text* device:text? precision:text? optimized:text? batching:text?
               inputs:sample*? outputs:fact*? classes:text*? takes_pictures:flag? requests:text{}?
Problem        type:text? title:text status:integer detail:text
InferRequest   id:text? inputs:tensor*
InferResponse  model_name:text model_version:text id:text? outputs:output*
Live           live:flag
Ready          ready:flag
ServerMetadata name:text version:text extensions:text*
ModelMetadata  name:text versions:text* platform:text inputs:described* outputs:described* parameters:any{}
ModelConfig    name:text platform:text backend:text max_batch_size:count input:configured* output:configured*
               parameters:parameter{}
Statistics     model_stats:statistics*
Models         models:model*
"""  # noqa: E501
"""Schemas by their fields; * is an array, {} an object of any names, ? may be left out. Small names
are parts of others."""
_NOTES = {
    "tensor.datatype": "Such as FP32; see the model's metadata.",
    "tensor.data": "Row by row; lists of lists are read, too.",
    "statistics.inference_count": "Rows that were answered.",
    "statistics.execution_count": "Runs.",
    "sample.content": "Of BYTES: text, bytes or picture, if a handler takes them; else empty.",
    "sample.shape": "A shape that works.",
    "sample.sample": "Values of this shape; null where they are many.",
    "model.state": "READY or UNAVAILABLE.",
    "model.reason": "Why it is not ready.",
    "model.roles": "default, if it answers calls that name no version; its labels; its share of "
    "these calls.",
    "model.batching": "Whether rows are batched, and why not.",
    "model.requests": "The same request for each client, as lines to paste.",
    "ModelMetadata.parameters": "Version, device, batching and limits, as `describe()` has them; a "
    "fact that is not known is left out.",
    "ModelConfig.max_batch_size": "0 where calls run alone.",
    "ModelConfig.parameters": "Also `batching`, which says why rows are batched or not; `labels`, "
    "`axes` and `pictures` are JSON.",
}
_PROBLEM = "application/problem+json"
_PROBLEMS = {
    "400": "The request is malformed or does not fit the model; see `detail`.",
    "401": "A valid bearer token is needed.",
    "404": "No such model or version.",
    "413": "The body, or a picture in it, is too large.",
    "429": "Too much waits already: retry after `Retry-After` seconds.",
    "500": "The model failed on this request.",
    "503": "Starting, draining or out of reach: retry after `Retry-After` seconds.",
    "504": "The deadline passed first.",
}
TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds that the answer may take, such as 0.25.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
}
"""The header with the caller's timeout."""
WORK = ("400", "413", "429", "500", "503", "504")
"""The errors of paths that run a model."""


def object_of(required: str = "", **properties: Any) -> Schema:
    """Describe an object by its properties, and the names of those that it always has."""
    return {"type": "object", "properties": properties, "required": required.split()}


def array_of(items: Schema, **more: Any) -> Schema:
    """Describe an array."""
    return {"type": "array", "items": items, **more}


def some_of(items: Schema, **more: Any) -> Schema:
    """Describe an array of at least one item."""
    return array_of(items, minItems=1, **more)


def text_of(description: str) -> Schema:
    """Describe a text."""
    return {**TEXT, "description": description}


_GENERATE = {"id": TEXT, "parameters": {"type": "object"}}
_GENERATED = {"id": TEXT, "model_name": TEXT, "model_version": TEXT}


def _of_the_protocol() -> dict[str, Schema]:
    known: dict[str, Schema] = {
        "text": TEXT, "integer": INTEGER, "count": COUNT, "flag": YES_NO, "any": {},
    }  # fmt: skip
    for line in _TABLE.replace("\n  ", "").strip().splitlines():
        name, *fields = line.split()
        required, properties = [], {}
        for field, _, kind in (each.partition(":") for each in fields):
            required += [field] * (not kind.endswith("?"))
            schema = known[kind.rstrip("*{}?")]
            if "{}" in kind:
                schema = {"type": "object", "additionalProperties": schema}
            note = _NOTES.get(f"{name}.{field}")
            properties[field] = (array_of(schema) if "*" in kind else schema) | (
                {"description": note} if note else {}
            )
        known[name] = object_of(" ".join(required), **properties)
    known["GenerateRequest"] = {"type": "object", "properties": _GENERATE}
    known["GenerateResponse"] = {"type": "object", "properties": _GENERATED}
    return {name: schema for name, schema in known.items() if name[0].isupper()}


PROTOCOL = _of_the_protocol()
"""By name; with the body of errors."""


def openapi_document(
    router: Router, paths: dict[str, Any], schemas: dict[str, Any]
) -> dict[str, Any]:
    """Describe the paths, bodies and answers (OpenAPI 3.1).

    Args:
        router: the models.
        paths: of applications, beside the protocol's.
        schemas: of their bodies and answers.
    """
    models: dict[str, Any] = {}
    for name, route in router.routes.items():
        model = f"/v2/models/{quote(name)}"
        models |= {
            model: {"get": _query("Describe the model's tensors", "ModelMetadata")},
            f"{model}/ready": {"get": _ready("Say whether the model accepts work")},
            f"{model}/config": {"get": _query("Describe how it is run", "ModelConfig")},
            f"{model}/stats": {"get": _query("Give its counts and times", "Statistics")},
            f"{model}/infer": {"post": _infer(route.model)},
            f"{model}/generate": {"post": _generate(route.model)},
            f"{model}/generate_stream": {"post": _generate(route.model, is_stream=True)},
        }
        if route.model.tensors.in_parts:
            del models[f"{model}/infer"], models[f"{model}/generate"]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Models",
            "version": installation.version(),
            "description": "The Open Inference Protocol v2, and paths of applications. The same "
            "models, batches and limits as over gRPC.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            **paths,
            "/v2": {"get": _query("Describe the server and its extensions", "ServerMetadata")},
            "/v2/health/live": {"get": _query("Say whether the server answers at all", "Live")},
            "/v2/health/ready": {"get": _ready("Say whether the server accepts work")},
            "/v2/models": {"get": operation("List the models, with a request for each", "Models")},
            **models,
        },
        "components": {
            "schemas": {**schemas, **PROTOCOL},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {
                code: {"description": text, "content": body_of("Problem", _PROBLEM)}
                for code, text in _PROBLEMS.items()
            },
        },
        "security": [{}, {"token": []}],
    }


def body_of(schema: str, kind: str = "application/json") -> dict[str, Any]:
    """Describe a body that has a schema of the document."""
    return {kind: {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def operation(
    summary: str, answer: str, *codes: str, body: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Describe a method on a path.

    Args:
        summary: one line, without a period.
        answer: the schema of a good answer.
        codes: of the errors, beside 401.
        body: the bodies it takes, by their types.
        more: other fields.
    """
    if body is not None:
        more["requestBody"] = {"required": True, "content": body}
    return {
        "summary": summary,
        "responses": {
            "200": {"description": "The answer.", "content": body_of(answer)},
            **{code: {"$ref": f"#/components/responses/{code}"} for code in ("401", *codes)},
        },
        **more,
    }


def _query(summary: str, answer: str) -> dict[str, Any]:
    return operation(summary, answer, "404")


def _ready(summary: str) -> dict[str, Any]:
    ready = operation(summary, "Ready", "404")
    ready["responses"]["503"] = {**ready["responses"]["200"], "description": "Not now."}
    return ready


def _generate(model: LoadedModel, *, is_stream: bool = False) -> dict[str, Any]:
    """Describe Triton's generate extension."""
    found = operation(
        f"Run the model on members of an object: {model.tensors}",
        "GenerateResponse",
        "404",
        *WORK,
        description="Each input is a member of its name: a value, or a list of rows.",
        parameters=[TIMEOUT],
        body=body_of("GenerateRequest"),
    )
    if is_stream:
        found["description"] += " Each part of the answer is an event of its own, as soon as it is "
        found["description"] += "made; an error behind some is an event with `error` and `reason`."
        content = {"text/event-stream": {"schema": TEXT}}
        found["responses"]["200"] = {"description": "The parts.", "content": content}
    return found


def _infer(model: LoadedModel) -> dict[str, Any]:
    example, num_zeros = request_body(model.tensors, model.sample_shapes)
    body = body_of("InferRequest")
    (first, *others) = model.tensors.inputs or (None,)
    if first is not None and first.content and not others:  # of a handler: the body is its value
        kinds = ["image/*"] if first.is_picture else []
        kinds.append("text/plain" if first.is_text else "application/octet-stream")
        schema = TEXT if first.is_text else {"type": "string", "format": "binary"}
        body |= {kind: {"schema": schema} for kind in kinds}
        if first.is_binary:
            body["multipart/form-data"] = {"schema": FILES}
    if not num_zeros:
        body["application/json"]["example"] = example
    return operation(
        f"Run the model on tensors: {model.tensors}",
        "InferResponse",
        "404",
        *WORK,
        description="The binary tensor data extension is supported: the header "
        "`Inference-Header-Content-Length` counts the JSON, and the tensors follow as bytes. Of a "
        "form of files each is answered alone, in `files`, by an `error` if it is refused.",
        parameters=[TIMEOUT],
        body=body,
    )
