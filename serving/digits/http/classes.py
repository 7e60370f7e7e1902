"""/v1/models/NAME/classify: pictures in, the classes of any classifier out."""

import random
from collections.abc import Sequence
from functools import partial
from typing import Any

from serving.digits.http.pictures import MAX_BODY_BYTES, read_pictures, share_of
from serving.digits.pictures.reader import picture_row
from serving.errors import DigitsError, InvalidRequest
from serving.model.engine import LoadedModel
from serving.model.preprocessing import Preprocessing, predictions_of
from serving.model.repository import PictureInputs
from serving.predictions import Predictions
from serving.protocols.method import Rows
from serving.router import Router
from serving.tensors import Array
from serving.transports.http1.port import Exchange
from serving.transports.http1.routing import Answer, Endpoint, RoutedRequest, as_json

TOP = 5
"""The most probable classes that an answer has, unless `top` says another number."""
_NUM_DECIMALS = 6


class Classes:
    """Answers /v1/models/NAME/classify."""

    def __init__(self, router: Router, inputs: PictureInputs) -> None:
        self._router = router
        self._inputs = inputs

    def routes(self) -> list[Endpoint]:
        """Return the routes, with and without a version."""
        paths = ("/v1/models/{name}/classify", "/v1/models/{name}/versions/{version}/classify")
        return [
            Endpoint("POST", path, self._answer, MAX_BODY_BYTES, True, "HttpClassify")
            for path in paths
        ]

    async def _answer(self, call: Exchange) -> Answer:
        reject_below, top = share_of(call.plan, "reject_below"), _top_of(call.plan)
        share = random.random()  # a canary has all of a form's pictures, or none
        model, pictures, read = await self._read(call, share)
        items: list[dict[str, Any]] = []
        for name, picture in read:
            item: dict[str, Any] = {"name": name} if name else {}
            if isinstance(picture, DigitsError):
                items.append(item | {"error": str(picture)})
                continue
            row, factor = picture
            found = await self._classified(model, pictures, row, call)
            items.append(item | _facts(found.times(factor), top, reject_below))
        name = call.plan.params["name"]
        return as_json({"model_name": name, "model_version": model.version, "pictures": items})

    async def _read(
        self, call: Exchange, share: float
    ) -> tuple[LoadedModel, Preprocessing, Sequence[tuple[str, tuple[Array, float] | DigitsError]]]:
        """Read the pictures for the version that will classify them: others take other sizes."""
        name, asked = call.plan.params["name"], call.plan.params.get("version")
        while True:
            versions = self._router.find(name).versions
            model = versions.find(asked) if asked else versions.choose(share)
            pictures = self._inputs.find(model.manifest, model.tensors)
            if pictures is None:
                raise InvalidRequest(f"model {name!r} is not known to classify pictures")
            read = partial(picture_row, pictures)
            rows = [each async for each in read_pictures(call, read)]
            if self._router.find(name).versions.versions.get(model.version) is model:
                call.body = b""
                return model, pictures, rows  # else another one took over meanwhile

    async def _classified(
        self, model: LoadedModel, pictures: Preprocessing, row: Array, call: Exchange
    ) -> Predictions:
        target = self._router.find(call.plan.params["name"]).find(model.version)
        message = row.tobytes() if model.tensors.row_bytes else (row,)
        outputs, result = await call.run(message, Rows(target, None, 1), call.deadline_s)
        return predictions_of(pictures, model.tensors, outputs, result.version)


def _facts(found: Predictions, top: int, reject_below: float) -> dict[str, Any]:
    """Return the answer for one picture."""
    shares = [round(float(share), _NUM_DECIMALS) for share in found.probabilities[0]]
    numbers = sorted(range(len(shares)), key=lambda number: -found.probabilities[0, number])
    first, labels = numbers[0], found.class_labels or list(map(str, range(len(shares))))
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
