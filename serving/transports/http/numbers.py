"""/v1/numbers: pictures in, the numbers on them out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serving.errors import DigitsError
from serving.images import as_images
from serving.pictures.facts import number_facts
from serving.pictures.reader import find_candidates
from serving.predictions import Predictions
from serving.protocols.digits_v1.methods import PredictionsEncoder, find_classifier
from serving.router import Router
from serving.transports.http.pictures import MAX_BODY_BYTES, read_pictures, share_of
from serving.transports.http1.answers import Answer, as_json
from serving.transports.http1.exchange import Exchange
from serving.transports.http1.plan import Route

if TYPE_CHECKING:
    from serving.pictures.numbers import Reading

Read = "Sequence[tuple[str, Reading | DigitsError]]"


class Numbers:
    """Answers /v1/numbers."""

    def __init__(self, router: Router) -> None:
        """Classify by a model of `router`."""
        self._router = router

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route("POST", "/v1/numbers", self._answer, MAX_BODY_BYTES, is_work=True)]

    async def _answer(self, call: Exchange) -> Answer:
        reject_below, query = share_of(call.plan, "reject_below"), call.plan.query
        kind = call.plan.get("content-type")
        read = await call.work(read_pictures, find_candidates, call.body, kind, call.deadline_s)
        call.body = b""
        rows = [
            None
            if isinstance(reading, DigitsError) or not len(reading.images)
            else await self._classified(reading, call)
            for _, reading in read
        ]
        options = reject_below, "image" in query, "drawing" in query
        return await call.work(write_report, read, rows, *options)

    async def _classified(self, reading: "Reading", call: Exchange) -> Predictions:
        """Classify the candidates, in as many calls as a request's limit needs."""
        route = find_classifier(self._router)
        images = as_images(reading.images, route.image_signature)
        limit = self._router.batching.max_request_images
        answers: list[Predictions] = []
        for start in range(0, len(images), limit):
            part = images[start : start + limit]
            encoder = PredictionsEncoder(route, None, len(part))
            answers.append(await call.run(part.tobytes(), encoder, call.deadline_s))
        return Predictions.concatenate(answers)


def write_report(
    read: "Sequence[tuple[str, Reading | DigitsError]]", rows: Sequence[Predictions | None],
    reject_below: float, with_images: bool, is_drawing: bool,
) -> Answer:  # fmt: skip
    """Write the numbers of each picture, in order."""
    items: list[dict[str, Any]] = []
    for (name, reading), answer in zip(read, rows, strict=True):
        item: dict[str, Any] = {"name": name} if name else {}
        if isinstance(reading, DigitsError):
            items.append(item | {"error": str(reading)})
            continue
        find = reading.drawn_numbers if is_drawing else reading.numbers
        numbers = [] if answer is None else find(answer.probabilities)
        facts = [number_facts(n, reject_below, with_images=with_images) for n in numbers]
        items.append(item | {"numbers": facts})
    versions = [answer.model_version for answer in rows if answer is not None]
    return as_json({"model_version": versions[-1] if versions else None, "pictures": items})
