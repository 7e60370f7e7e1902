"""/v1/numbers: pictures in, the numbers on them out."""

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
from serving.transports.http.calls import deadline_of
from serving.transports.http.pictures import Pictures, read_picture, share_of

if TYPE_CHECKING:
    from serving.pictures.numbers import Reading


class Numbers(Pictures):
    """Answers /v1/numbers."""

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("/v1/numbers", self._answer, methods=["POST"])]

    async def _answer(self, request: Request) -> Response:
        deadline_s = deadline_of(request)
        reject_below = share_of(request, "reject_below")
        with_images = "image" in request.query_params
        is_drawing = "drawing" in request.query_params
        version: str | None = None

        async def answer(content: bytes) -> dict[str, Any] | DigitsError:
            nonlocal version
            reading = await read_picture(request, self._pictures, find_candidates, content)
            if isinstance(reading, DigitsError):
                return reading
            rows = await self._classified(reading, request, deadline_s)
            find = reading.drawn_numbers if is_drawing else reading.numbers
            numbers = [] if rows is None else find(rows.probabilities)
            version = version if rows is None else rows.model_version
            facts = [number_facts(n, reject_below, with_images=with_images) for n in numbers]
            return {"numbers": facts}

        items = await self._answer_each(request, answer)
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
