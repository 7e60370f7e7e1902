"""/v1/numbers: pictures in, the numbers on them out."""

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from digit_reader.facts import number_facts
from digit_reader.text.pattern import of_rows
from serving.digits.http import classify
from serving.digits.pictures.reader import find_candidates
from serving.errors import DigitsError
from serving.predictions import Predictions
from serving.router import Router
from serving.transports.http.pictures import MAX_BODY_BYTES, read_pictures, share_of
from serving.transports.http1.exchange import Exchange
from serving.transports.http1.problems import Answer
from serving.transports.http1.routing import Endpoint

if TYPE_CHECKING:
    from digit_reader.numbers import Reading


MAX_CANDIDATES = 4000
"""Of a picture: some 400 digits, and a second of work."""
_FIND = partial(find_candidates, most=MAX_CANDIDATES)


class Numbers:
    """Answers /v1/numbers."""

    def __init__(self, router: Router) -> None:
        """Classify by a model of `router`."""
        self._router = router

    def routes(self) -> list[Endpoint]:
        """Return the routes."""
        return [Endpoint("POST", "/v1/numbers", self._answer, MAX_BODY_BYTES, is_work=True)]

    async def _answer(self, call: Exchange) -> Answer:
        query = call.plan.query
        pattern = query["pattern"][-1] if "pattern" in query else None
        if pattern is not None:
            await call.work(of_rows, pattern)
        options = share_of(call.plan, "reject_below"), "image" in query, "drawing" in query, pattern
        items, version = [], None
        async for name, reading in read_pictures(call, _FIND):
            answer = None
            if not isinstance(reading, DigitsError) and len(reading.images):
                answer = await classify(self._router, reading.images, call)
                version = answer.model_version
            items.append(await call.work(write_item, name, reading, answer, *options))
        head = json.dumps({"model_version": version}, separators=(",", ":"))
        return Answer(f'{head[:-1]},"pictures":[{",".join(items)}]}}'.encode())


def write_item(
    name: str, reading: "Reading | DigitsError", answer: Predictions | None, reject_below: float,
    with_images: bool, is_drawing: bool, pattern: str | None,
) -> str:  # fmt: skip
    """Write the numbers of a picture as JSON."""
    item: dict[str, Any] = {"name": name} if name else {}
    if isinstance(reading, DigitsError):
        item["error"] = str(reading)
    else:
        find = reading.drawn_numbers if is_drawing else reading.numbers
        if pattern is not None:
            find = partial(reading.fitting_numbers, pattern=pattern)
        numbers = [] if answer is None else find(answer.probabilities)
        item["numbers"] = [number_facts(n, reject_below, with_images=with_images) for n in numbers]
    return json.dumps(item, separators=(",", ":"))
