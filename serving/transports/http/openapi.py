"""The OpenAPI document of /v1 and of the Open Inference Protocol's /v2."""

from typing import Any
from urllib.parse import quote

from serving.commandline import installation
from serving.model.engine import LoadedModel
from serving.protocols.oip.examples import request_body
from serving.router import Router
from serving.transports.http1.routing import TIMEOUT_HEADER

Schema = dict[str, Any]

TEXT, INTEGER, YES_NO = ({"type": name} for name in ("string", "integer", "boolean"))
COUNT = {"type": "integer", "minimum": 0}
PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}


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


def _of_the_protocol() -> dict[str, Schema]:
    tensor = object_of(
        "name datatype shape data",
        name=TEXT,
        datatype=text_of("Such as FP32; see the model's metadata."),
        shape=array_of(INTEGER),
        data=array_of({}, description="Row by row; lists of lists are read, too."),
    )
    output = object_of(
        "name datatype shape", name=TEXT, datatype=TEXT, shape=array_of(INTEGER), data=array_of({})
    )
    described = object_of("name datatype shape", name=TEXT, datatype=TEXT, shape=array_of(INTEGER))
    configured = object_of("name data_type dims", name=TEXT, data_type=TEXT, dims=array_of(INTEGER))
    return {
        "Problem": object_of(
            "title status detail", type=TEXT, title=TEXT, status=INTEGER, detail=TEXT
        ),
        "InferRequest": object_of("inputs", id=TEXT, inputs=array_of(tensor)),
        "InferResponse": object_of(
            "model_name model_version outputs",
            model_name=TEXT,
            model_version=TEXT,
            id=TEXT,
            outputs=array_of(output),
        ),
        "Live": object_of("live", live=YES_NO),
        "Ready": object_of("ready", ready=YES_NO),
        "ServerMetadata": object_of(
            "name version extensions", name=TEXT, version=TEXT, extensions=array_of(TEXT)
        ),
        "ModelMetadata": object_of(
            "name versions platform inputs outputs",
            name=TEXT,
            versions=array_of(TEXT),
            platform=TEXT,
            inputs=array_of(described),
            outputs=array_of(described),
        ),
        "ModelConfig": object_of(
            "name platform backend max_batch_size input output parameters",
            name=TEXT,
            platform=TEXT,
            backend=TEXT,
            max_batch_size={**INTEGER, "description": "0 where calls run alone."},
            input=array_of(configured),
            output=array_of(configured),
            parameters={
                "type": "object",
                "description": "Also `batching`, which says why rows are batched or not; `labels`, "
                "`axes` and `pictures` are JSON.",
                "additionalProperties": object_of("string_value", string_value=TEXT),
            },
        ),
        "Statistics": object_of(
            "model_stats",
            model_stats=array_of(
                object_of(
                    "name version inference_count execution_count",
                    name=TEXT,
                    version=TEXT,
                    inference_count={**COUNT, "description": "Rows that were answered."},
                    execution_count={**COUNT, "description": "Runs."},
                )
            ),
        ),
        "Models": object_of("models", models=array_of(_of_a_model())),
    }


def _of_a_model() -> Schema:
    """Return the schema of a version of a model."""
    facts = {"name": TEXT, "datatype": TEXT, "axes": array_of(TEXT)}
    output = object_of(" ".join(facts), **facts)
    input_ = object_of(
        "name datatype axes shape sample",
        **facts,
        shape=array_of(COUNT, description="A shape that works."),
        sample={"description": "Values of this shape; null where they are many."},
    )
    return object_of(
        "name version state reason roles",
        name=TEXT,
        version=TEXT,
        state={"enum": ["READY", "UNAVAILABLE"]},
        reason=text_of("Why it is not ready."),
        roles=array_of(TEXT, description="Its labels, and its share of the calls."),
        device=TEXT,
        precision=TEXT,
        batching=text_of("Whether rows are batched, and why not."),
        inputs=array_of(input_),
        outputs=array_of(output),
        classes=array_of(TEXT),
        takes_pictures=YES_NO,
        requests={
            "type": "object",
            "description": "The same request for each client, as lines to paste.",
            "additionalProperties": TEXT,
        },
    )


PROTOCOL = _of_the_protocol()
"""By name; with the body of errors."""


_PROBLEM = "application/problem+json"
_PROBLEMS = {
    "400": "The request is malformed or does not fit the model; see `detail`.",
    "401": "A valid bearer token is needed.",
    "404": "No such model or version.",
    "413": "The body, or a picture in it, is too large.",
    "429": "Too much waits already: come again after `Retry-After` seconds.",
    "500": "The model failed on this request.",
    "503": "Starting, draining or out of reach: come again after `Retry-After` seconds.",
    "504": "The deadline passed first.",
}


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
        }
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


TIMEOUT = {
    "name": TIMEOUT_HEADER,
    "in": "header",
    "description": "Seconds that the answer may take, such as 0.25.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 1e6},
}
"""The header with the caller's timeout."""
WORK = ("400", "413", "429", "500", "503", "504")
"""The errors of paths that run a model."""


def _infer(model: LoadedModel) -> dict[str, Any]:
    example, num_zeros = request_body(model.tensors, model.sample_shapes)
    body = body_of("InferRequest")
    if not num_zeros:
        body["application/json"]["example"] = example
    return operation(
        f"Run the model on tensors: {model.tensors}",
        "InferResponse",
        "404",
        *WORK,
        description="The binary tensor data extension is supported: the header "
        "`Inference-Header-Content-Length` counts the JSON, and the tensors follow as bytes.",
        parameters=[TIMEOUT],
        body=body,
    )
