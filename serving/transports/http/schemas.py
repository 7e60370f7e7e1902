"""The schemas of the OpenAPI document: their parts, and those of the Open Inference Protocol."""

from typing import Any

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
        "ServerMetadata": object_of("name version extensions"),
        "ModelMetadata": object_of("name versions platform inputs outputs"),
        "ModelConfig": object_of("name"),
        "Statistics": object_of("model_stats"),
    }


PROTOCOL = _of_the_protocol()
"""By name; with the body of errors."""
