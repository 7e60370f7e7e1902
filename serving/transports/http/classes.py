"""/v1/models/NAME/classify: pictures in, the classes of any classifier out."""

import random
from concurrent.futures import Executor
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.errors import DigitsError, InvalidRequest
from serving.model.loaded_model import LoadedModel
from serving.model.pictures import PictureInputs
from serving.pictures.reader import picture_row
from serving.predictions import Predictions
from serving.preprocessing import Preprocessing, predictions_of
from serving.protocols.encoding import Rows
from serving.router import Router
from serving.tensors import Array
from serving.transports.http.bodies import Bodies
from serving.transports.http.calls import Calls, deadline_of
from serving.transports.http.pictures import Pictures, read_picture, share_of

TOP = 5
"""The most probable classes that an answer has, unless `top` says another number."""
_NUM_DECIMALS = 6


class Classes(Pictures):
    """Answers /v1/models/NAME/classify."""

    def __init__(
        self, router: Router, calls: Calls, bodies: Bodies, pictures: Executor,
        inputs: PictureInputs,
    ) -> None:  # fmt: skip
        """Classify through `calls`; `inputs` knows models that have no manifest."""
        super().__init__(router, calls, bodies, pictures)
        self._inputs = inputs

    def routes(self) -> list[Route]:
        """Return the routes, with and without a version."""
        paths = ("/v1/models/{name}/classify", "/v1/models/{name}/versions/{version}/classify")
        return [Route(path, self._answer, methods=["POST"]) for path in paths]

    async def _answer(self, request: Request) -> Response:
        deadline_s = deadline_of(request)
        reject_below, top = share_of(request, "reject_below"), _top_of(request)
        share, version = random.random(), ""  # a canary has all of a form's pictures, or none

        async def answer(content: bytes) -> dict[str, Any] | DigitsError:
            nonlocal version
            model, pictures, row = await self._read(request, share, content)
            version = model.version
            if isinstance(row, DigitsError):
                return row
            found = await self._classified(model, pictures, row, request, deadline_s)
            return _facts(found, top, reject_below)

        items = await self._answer_each(request, answer)
        name = request.path_params["name"]
        return JSONResponse({"model_name": name, "model_version": version, "pictures": items})

    async def _read(
        self, request: Request, share: float, content: bytes
    ) -> tuple[LoadedModel, Preprocessing, Array | DigitsError]:
        """Read a picture for the version that will classify it: others may take other sizes."""
        name, asked = request.path_params["name"], request.path_params.get("version")
        while True:
            versions = self._router.find(name).versions
            model = versions.find(asked) if asked else versions.choose(share)
            pictures = self._inputs.find(model.manifest, model.tensors)
            if pictures is None:
                raise InvalidRequest(f"model {name!r} is not known to classify pictures")
            read = partial(picture_row, pictures)
            row = await read_picture(request, self._pictures, read, content)
            if self._router.find(name).versions.versions.get(model.version) is model:
                return model, pictures, row  # else another one took over meanwhile

    async def _classified(
        self, model: LoadedModel, pictures: Preprocessing, row: Array, request: Request,
        deadline_s: float,
    ) -> Predictions:  # fmt: skip
        target = self._router.find(request.path_params["name"]).find(model.version)
        message = row.tobytes() if model.tensors.row_bytes else (row,)
        rows = Rows(target, None, 1)
        outputs, result = await self._calls.run(message, rows, request, deadline_s)
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


def _top_of(request: Request) -> int:
    text = request.query_params.get("top", str(TOP))
    if not text.isascii() or not text.isdecimal() or not 0 < int(text[:9]) < 10**6:
        raise InvalidRequest(f"expected top as a number from 1, got {text[:40]!r}")
    return int(text)
