"""Pictures of any classifier over HTTP: /v1/models/NAME/classify, and what such paths share."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from serving.config import ServerConfig
from serving.errors import InvalidRequest, ServingError
from serving.http_api import openapi
from serving.http_api.files_path import (
    MAX_BODY_BYTES,
    Answered,
    Chosen,
    FilesPath,
    Parameters,
)
from serving.http_api.http_application import Document
from serving.model.picture_inputs import PictureInputs
from serving.pictures.classifier import PROBABILITIES, steps_of
from serving.pictures.reader import modules
from serving.router import Router
from serving.tensors import Probabilities
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint, RoutedRequest, as_json

TOP = 5
"""The most probable classes that an answer has, unless `top` says another number."""
_NUM_DECIMALS = 6
MODULES = ("serving.pictures.classifier", *modules())
PAGES: dict[str, tuple[str, str]] = {}
FILES = Path(__file__).parent / "files"
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


def share_of(plan: RoutedRequest, name: str) -> float:
    """Return a query's number from 0 to 1; 0 if it is not given.

    Raises:
        InvalidRequest: it is no such number.
    """
    text = plan.query.get(name, ["0"])[-1]
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InvalidRequest(f"expected {name} from 0 to 1, got {text[:40]!r}")
    return share


class Classes(FilesPath):
    """Answers /v1/models/NAME/classify."""

    def __init__(self, router: Router, inputs: PictureInputs) -> None:
        super().__init__(router)
        self._inputs = inputs

    def routes(self) -> list[Endpoint]:
        """Return the routes, with and without a version."""
        paths = ("/v1/models/{name}/classify", "/v1/models/{name}/versions/{version}/classify")
        return [
            Endpoint("POST", path, self.answer, MAX_BODY_BYTES, True, "HttpClassify")
            for path in paths
        ]

    def find(self, plan: RoutedRequest, share: float) -> Chosen:
        """Choose the steps of a version: others take pictures of other sizes."""
        name, asked = plan.params["name"], plan.params.get("version")
        route = self.router.find(name)
        model = route.versions.find(asked) if asked else route.versions.choose(share)
        pictures = self._inputs.find(model)
        if pictures is None:
            raise InvalidRequest(f"model {name!r} is not known to classify pictures")
        return Chosen(steps_of(pictures), pictures, route, model)

    async def parameters(self, call: Exchange) -> Parameters:
        """Return the options of the query."""
        return {"reject_below": share_of(call.plan, "reject_below"), "top": _top_of(call.plan)}

    async def write(self, call: Exchange, answered: Answered, parameters: Parameters) -> Answer:
        """Write the most probable classes of each picture."""
        chosen = answered.chosen
        items: list[dict[str, Any]] = []
        for name, found in answered.files:
            item: dict[str, Any] = {"name": name} if name else {}
            if isinstance(found, ServingError):
                items.append(item | {"error": str(found)})
                continue
            labels = chosen.about.labels
            items.append(item | _facts(found[PROBABILITIES][0], labels, **parameters))
        name = call.plan.params["name"]
        version = chosen.model.version
        return as_json({"model_name": name, "model_version": version, "pictures": items})


def _facts(
    found: Probabilities, names: Sequence[str], top: int, reject_below: float
) -> dict[str, Any]:
    shares = [round(float(share), _NUM_DECIMALS) for share in found]
    numbers = sorted(range(len(shares)), key=lambda number: -found[number])
    first, labels = numbers[0], names or list(map(str, range(len(shares))))
    return {
        "class": first,
        "label": labels[first],
        "probability": shares[first],
        "probabilities": [{"label": labels[n], "probability": shares[n]} for n in numbers[:top]],
        "rejected": shares[first] < reject_below,
    }


def _top_of(plan: RoutedRequest) -> int:
    text = plan.query.get("top", [str(TOP)])[-1]
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:9]) < 10**6:
        raise InvalidRequest(f"expected top as a number from 1, got {text[:40]!r}")
    return int(text)


def routes(router: Router, config: ServerConfig) -> Iterator[Endpoint]:
    """Return the paths that classify pictures; none if no model takes any."""
    inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
    inputs.require_one({each.name: each.model for each in router.routes.values()})
    yield from Classes(router, inputs).routes()


def describe(router: Router, config: ServerConfig) -> tuple[Document, Document]:
    """Describe these paths and their schemas."""
    inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
    paths: Document = {}
    for name, route in router.routes.items():
        if inputs.find(route.model) is not None:
            paths[f"/v1/models/{quote(name)}/classify"] = {"post": _classes()}
    answer = openapi.object_of(
        "model_name model_version pictures",
        model_name=openapi.TEXT,
        model_version=openapi.TEXT,
        pictures=openapi.some_of(_classified()),
    )
    return paths, {"Classes": answer}


def option(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """Describe a parameter of the query."""
    return {"name": name, "in": "query", "description": description, "schema": schema}


REJECT_BELOW = option(
    "reject_below",
    "Less probable answers are marked `rejected`.",
    type="number",
    minimum=0,
    maximum=1,
    default=0,
)
_TOP = option(
    "top",
    "How many of the most probable classes the answer has.",
    type="integer",
    minimum=1,
    maximum=999_999,
    default=5,
)


def _classes() -> dict[str, Any]:
    return openapi.operation(
        "Classify pictures",
        "Classes",
        "404",
        *openapi.WORK,
        description="One picture as the body, or several as files of a form. Each is made the "
        "model's input as its manifest or classifier.json says. Of a form's pictures, one that "
        "can't be read has an `error` instead of a class.",
        parameters=[REJECT_BELOW, _TOP, openapi.TIMEOUT],
        body=PICTURES,
    )


def _classified() -> openapi.Schema:
    share = openapi.object_of(
        "label probability", label=openapi.TEXT, probability=openapi.PROBABILITY
    )
    return openapi.object_of(
        "",
        name=openapi.text_of("The file's name, where it has one."),
        label=openapi.text_of("The name of the most probable class."),
        probability=openapi.PROBABILITY,
        probabilities=openapi.some_of(share),
        rejected=openapi.YES_NO,
        error=openapi.TEXT,
        **{"class": openapi.COUNT},
    )
