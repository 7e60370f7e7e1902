"""/v1/digits: pictures in, digits out; also images as MNIST has them, as JSON."""

import base64
import json
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.errors import DigitsError, InvalidRequest
from serving.images import Images, as_images
from serving.pictures.reader import from_picture
from serving.predictions import Predictions
from serving.protocols.digits_v1.methods import PredictionsEncoder, find_classifier
from serving.transports.http.calls import deadline_of
from serving.transports.http.pictures import (
    FORM,
    MAX_BODY_BYTES,
    Pictures,
    media_type,
    pictures_of,
    read_picture,
    share_of,
)

_JSON_BYTES = 4 << 20
_NUM_DECIMALS = 6


class Digits(Pictures):
    """Answers /v1/digits."""

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/v1/digits", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        deadline_s = deadline_of(request)
        reject_below = share_of(request, "reject_below")
        is_json = media_type(request) == "application/json"
        async with self._bodies.read(request, _JSON_BYTES if is_json else MAX_BODY_BYTES) as body:
            read: list[tuple[str, Images | DigitsError]]
            if is_json:
                read = [("", image[None]) for image in self._json_images(body)]
            else:
                read = [
                    (name, await read_picture(request, self._pictures, from_picture, content))
                    for name, content in await pictures_of(request, body)
                ]
        images = [image for _, image in read if not isinstance(image, DigitsError)]
        if media_type(request) != FORM and isinstance(read[0][1], DigitsError):
            raise read[0][1]
        rows = None
        if images:
            route = find_classifier(self._router)
            checked = as_images(np.concatenate(images), route.image_signature)
            encoder = PredictionsEncoder(route, None, len(checked))
            rows = await self._calls.run(checked.tobytes(), encoder, request, deadline_s)
        with_image = "image" in request.query_params
        return JSONResponse(_report(read, rows, reject_below, with_image=with_image))

    def _json_images(self, body: bytes) -> Images:
        signature = find_classifier(self._router).image_signature
        limit = self._router.batching.max_request_images
        try:
            images = np.asarray(json.loads(body)["images"], np.uint8)
            return as_images(images, signature, limit)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as err:
            raise InvalidRequest(
                'expected JSON such as {"images": [[0, ..., 255], ...]}: N lists of '
                f"{signature.image_bytes} integers from 0 to 255"
            ) from err


def _report(
    read: list[tuple[str, Images | DigitsError]],
    rows: Predictions | None,
    reject_below: float,
    *,
    with_image: bool,
) -> dict[str, Any]:
    """Return the result for each picture, in order."""
    items: list[dict[str, Any]] = []
    answers = iter(
        [] if rows is None else zip(rows.digits, rows.labels, rows.probabilities, strict=True)
    )
    for name, image in read:
        item: dict[str, Any] = {"name": name} if name else {}
        if isinstance(image, DigitsError):
            item["error"] = str(image)
        else:
            digit, label, probabilities = next(answers)
            item["digit"] = int(digit)
            item["label"] = label
            item["probability"] = round(float(probabilities[digit]), _NUM_DECIMALS)
            item["probabilities"] = [round(float(p), _NUM_DECIMALS) for p in probabilities]
            item["rejected"] = item["probability"] < reject_below
            if with_image:
                item["image"] = base64.b64encode(image.tobytes()).decode()
        items.append(item)
    return {"model_version": None if rows is None else rows.model_version, "digits": items}
