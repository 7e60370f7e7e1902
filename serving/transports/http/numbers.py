"""/v1/numbers: pictures in, the numbers on them out."""

from concurrent.futures import Executor
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.errors import DigitsError
from serving.images import as_images
from serving.pictures.facts import number_facts
from serving.pictures.reader import find_candidates
from serving.predictions import Predictions
from serving.protocols.digits_v1.methods import PredictionsEncoder, find_classifier
from serving.router import Router
from serving.transports.http.bodies import Bodies
from serving.transports.http.calls import Calls, deadline_of
from serving.transports.http.pictures import (
    FORM,
    MAX_BODY_BYTES,
    media_type,
    pictures_of,
    read_picture,
    share_of,
)

if TYPE_CHECKING:
    from serving.pictures.numbers import Reading


class Numbers:
    """Answers /v1/numbers."""

    def __init__(self, router: Router, calls: Calls, bodies: Bodies, pictures: Executor) -> None:
        """Classify through `calls`; find the candidates on `pictures`."""
        self._router = router
        self._calls = calls
        self._bodies = bodies
        self._pictures = pictures

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/v1/numbers", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        deadline_s = deadline_of(request)
        reject_below = share_of(request, "reject_below")
        with_images = "image" in request.query_params
        is_drawing = "drawing" in request.query_params
        items, version = [], None
        async with self._bodies.read(request, MAX_BODY_BYTES) as body:
            for name, content in await pictures_of(request, body):
                item: dict[str, Any] = {"name": name} if name else {}
                reading = await read_picture(request, self._pictures, find_candidates, content)
                if isinstance(reading, DigitsError):
                    if media_type(request) != FORM:
                        raise reading
                    items.append(item | {"error": str(reading)})
                    continue
                rows = await self._classified(reading, request, deadline_s)
                find = reading.drawn_numbers if is_drawing else reading.numbers
                numbers = [] if rows is None else find(rows.probabilities)
                version = version if rows is None else rows.model_version
                facts = [number_facts(n, reject_below, with_images=with_images) for n in numbers]
                items.append(item | {"numbers": facts})
        return JSONResponse({"model_version": version, "pictures": items})

    async def _classified(
        self, reading: "Reading", request: Request, deadline_s: float
    ) -> Predictions | None:
        """Classify the candidates, in as many calls as a request's limit needs."""
        if not len(reading.images):
            return None
        route = find_classifier(self._router)
        images = as_images(reading.images, route.image_signature)
        limit = self._router.batching.max_request_images
        parts = [images[start : start + limit] for start in range(0, len(images), limit)]
        answers: list[Predictions] = []
        for part in parts:
            encoder = PredictionsEncoder(route, None, len(part))
            answers.append(await self._calls.run(part.tobytes(), encoder, request, deadline_s))
        return Predictions.concatenate(answers)
