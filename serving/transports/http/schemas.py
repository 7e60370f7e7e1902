"""The schemas of the OpenAPI document."""

from typing import Any

from serving.signature import Signature


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required}


def _array(items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "array", "items": items, **more}


def schemas_of(signature: Signature) -> dict[str, Any]:
    """Return the schemas by name; those of digits are of this signature."""
    size, num_classes = signature.image_bytes, signature.num_classes
    text, integer = {"type": "string"}, {"type": "integer"}
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    row = _array(pixel, minItems=size, maxItems=size)
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    digit = _object(
        [],
        name={**text, "description": "The file's name, where it has one."},
        digit={"type": "integer", "minimum": 0, "maximum": num_classes - 1},
        label={**text, "description": "The name of that class; for digits, the digit."},
        probability=probability,
        probabilities=_array(probability, minItems=num_classes, maxItems=num_classes),
        rejected={"type": "boolean"},
        image={**text, "description": f"{size} bytes in base64: the network's input."},
        error=text,
    )
    side = {"type": "integer", "minimum": 0}
    box = _object(["left", "top", "right", "bottom"], left=side, top=side, right=side, bottom=side)
    part = {name: digit["properties"][name] for name in ("digit", "probability", "probabilities")}
    number = _object(
        ["text", "probability", "rejected", "box", "turned", "fields", "digits"],
        text={**text, "description": "Its digits and marks, such as 90210 or -3,14."},
        probability=probability,
        rejected={"type": "boolean"},
        box=box,
        turned={
            "enum": [0, 90, 180, 270],
            "description": "Degrees by which it is turned clockwise in the picture.",
        },
        fields=_array(
            _object(["text", "box"], text=text, box=box),
            minItems=1,
            description="The digits between marks, and the marks: . , - / :",
        ),
        digits=_array(
            _object([*part, "box"], **part, box=box, image=digit["properties"]["image"]),
            minItems=1,
        ),
    )
    of_picture = _object([], name=digit["properties"]["name"], numbers=_array(number), error=text)
    share = _object(["label", "probability"], label=text, probability=probability)
    of_any = ("name", "label", "probability", "rejected", "error")
    classified = _object([], **{name: digit["properties"][name] for name in of_any})
    classified["properties"] |= {"class": side, "probabilities": _array(share, minItems=1)}
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
        "Classes": _object(
            ["model_name", "model_version", "pictures"],
            model_name=text,
            model_version=text,
            pictures=_array(classified, minItems=1),
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
