"""The schemas of the OpenAPI document."""

from typing import Any

from serving.signature import Signature

Schema = dict[str, Any]

_TEXT, _INTEGER, _YES_NO = ({"type": name} for name in ("string", "integer", "boolean"))
_COUNT = {"type": "integer", "minimum": 0}
_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_VERSION = {"type": ["string", "null"]}


def _object(required: str = "", **properties: Any) -> Schema:
    return {"type": "object", "properties": properties, "required": required.split()}


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _some(items: Schema, **more: Any) -> Schema:
    return _array(items, minItems=1, **more)


def _text(description: str) -> Schema:
    return {**_TEXT, "description": description}


def schemas_of(signature: Signature) -> dict[str, Schema]:
    """Return the schemas by name; those of digits are of this signature."""
    digit = _digit(signature)
    answer = digit["properties"]
    of_picture = _object("", name=answer["name"], numbers=_array(_number(answer)), error=_TEXT)
    pixel = {"type": "integer", "minimum": 0, "maximum": 255}
    size = signature.image_bytes
    row = _array(pixel, minItems=size, maxItems=size)
    return {
        "Images": _object("images", images=_some(row)),
        "Digits": _object("model_version digits", model_version=_VERSION, digits=_some(digit)),
        "Classes": _object(
            "model_name model_version pictures",
            model_name=_TEXT,
            model_version=_TEXT,
            pictures=_some(_classified(answer)),
        ),
        "NumbersOfPictures": _object(
            "model_version pictures", model_version=_VERSION, pictures=_some(of_picture)
        ),
        "Problem": _object(
            "title status detail", type=_TEXT, title=_TEXT, status=_INTEGER, detail=_TEXT
        ),
    } | _of_the_protocol()


def _digit(signature: Signature) -> Schema:
    """Return the schema of the answer to a picture of a digit."""
    num_classes = signature.num_classes
    return _object(
        "",
        name=_text("The file's name, where it has one."),
        digit={"type": "integer", "minimum": 0, "maximum": num_classes - 1},
        label=_text("The name of that class; for digits, the digit."),
        probability=_PROBABILITY,
        probabilities=_array(_PROBABILITY, minItems=num_classes, maxItems=num_classes),
        rejected=_YES_NO,
        image=_text(f"{signature.image_bytes} bytes in base64: the network's input."),
        error=_TEXT,
    )


def _number(of_digit: Schema) -> Schema:
    """Return the schema of a number in a picture; `of_digit` are the fields of a digit's answer."""
    names = "left top right bottom"
    box = _object(names, **dict.fromkeys(names.split(), _COUNT))
    part = {name: of_digit[name] for name in ("digit", "probability", "probabilities")}
    return _object(
        "text probability rejected box turned sheet fields digits",
        text=_text("Its digits and marks, such as 90210 or -3,14."),
        probability=_PROBABILITY,
        rejected=_YES_NO,
        box=box,
        turned={
            "enum": [0, 90, 180, 270],
            "description": "Degrees by which it is turned clockwise in the picture.",
        },
        sheet=_array(
            _array(_INTEGER, minItems=2, maxItems=2),
            description="The corners of the photographed sheet that it lies on, or none: x, y.",
        ),
        fields=_some(
            _object("text box", text=_TEXT, box=box),
            description="The digits between marks, and the marks: . , - / :",
        ),
        digits=_some(
            _object(" ".join([*part, "box"]), **part, box=box, image=of_digit["image"]),
        ),
    )


def _classified(of_digit: Schema) -> Schema:
    """Return the schema of the answer to a picture by any classifier."""
    share = _object("label probability", label=_TEXT, probability=_PROBABILITY)
    same = ("name", "label", "probability", "rejected", "error")
    return _object(
        "",
        **{name: of_digit[name] for name in same},
        **{"class": _COUNT, "probabilities": _some(share)},
    )


def _of_the_protocol() -> dict[str, Schema]:
    """Return the schemas of the Open Inference Protocol."""
    tensor = _object(
        "name datatype shape data",
        name=_TEXT,
        datatype=_text("Such as FP32; see the model's metadata."),
        shape=_array(_INTEGER),
        data=_array({}, description="Row by row; lists of lists are read, too."),
    )
    output = _object(
        "name datatype shape", name=_TEXT, datatype=_TEXT, shape=_array(_INTEGER), data=_array({})
    )
    return {
        "InferRequest": _object("inputs", id=_TEXT, inputs=_array(tensor)),
        "InferResponse": _object(
            "model_name model_version outputs",
            model_name=_TEXT,
            model_version=_TEXT,
            id=_TEXT,
            outputs=_array(output),
        ),
        "Live": _object("live", live=_YES_NO),
        "Ready": _object("ready", ready=_YES_NO),
        "ServerMetadata": _object("name version extensions"),
        "ModelMetadata": _object("name versions platform inputs outputs"),
        "ModelConfig": _object("name"),
        "Statistics": _object("model_stats"),
    }
