"""The self-test: whether the loop has turns, and each model answers rightly."""

import asyncio
import logging
import math
import time
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from serving.batching.awaited import AsyncCaller, submit
from serving.batching.run import Rows
from serving.errors import Overloaded, ServingError, Unavailable
from serving.model.manifest import GOLDEN_TOLERANCE
from serving.protocols.health import Health
from serving.router import Route, Router
from serving.system.usage import waited_for_cores_s

_log = logging.getLogger(__name__)
_MAX_EXCUSED_S = 60.0
"""How long tests may fail for want of cores."""


class _OpenRuns(NamedTuple):
    """The runs of a model's versions that go on now, as their owner sees them."""

    oldest_s: float
    """When the oldest began, in monotonic seconds; infinite if there is none."""
    max_run_s: float
    """How long one may take until it is ended."""


class SelfTest:
    """Checks at intervals that the loop has turns, and that each model answers rightly."""

    def __init__(self, router: Router, health: Health, interval_s: float) -> None:
        """Prepare; `run` starts it.

        Args:
            router: the models; those with golden samples are sent them.
            health: gets the results.
            interval_s: seconds between tests, and how long an answer may take.
        """
        self._router = router
        self._health = health
        self._interval_s = interval_s
        self._trouble: str | None = None
        """What is wrong with the server as a whole."""
        self._num_tests = 0
        self._waited_s = 0.0
        self._excused_s = 0.0

    async def run(self) -> None:
        """Test forever."""
        while True:
            self._waited_s = waited_for_cores_s()
            await asyncio.sleep(self._interval_s)
            routes = self._router.routes
            answers = await asyncio.gather(*map(self._wrong_answer, routes.values()))
            wrong = {name: text for name, text in zip(routes, answers, strict=True) if text}
            self._note(*await self._look(routes, wrong))

    def _note(self, trouble: str | None, models: Mapping[str, str]) -> None:
        for name in models.keys() - self._health.stuck_models:
            _log.error("model %s is NOT_SERVING: %s", name, models[name])
        for name in self._health.stuck_models - models.keys():
            _log.info("model %s is SERVING again", name)
        if trouble and not self._trouble:
            _log.error("self-test failed, health is NOT_SERVING: %s", trouble)
        elif self._trouble and not trouble:
            _log.info("self-test passed, health is SERVING")
        is_changed = bool(trouble) != bool(self._trouble)
        self._trouble = trouble
        self._health.set_stuck(models)
        if is_changed:
            self._health.set_serving(trouble is None)

    async def _look(
        self, routes: Mapping[str, Route], wrong: dict[str, str]
    ) -> tuple[str | None, dict[str, str]]:
        """Return the trouble of the server, and of each model."""
        if self._router.owner is None:
            return None, {}
        seconds = f"no answer within {self._interval_s:g} s"
        try:
            runs = await asyncio.wait_for(self._runs(routes), self._interval_s)
        except TimeoutError:
            return (None, wrong) if self._is_excused() else (seconds, wrong)
        now_s, models = time.monotonic(), dict(wrong)
        for name, route in routes.items():
            # The golden sample waits for such a run; without one, a run may take as long as it may.
            is_tested = route.signature is not None
            most_s = 0.0 if is_tested else runs[name].max_run_s
            if now_s - runs[name].oldest_s > most_s + self._interval_s:
                models.setdefault(name, seconds if is_tested else f"a run of over {most_s:g} s")
        if models.keys() == wrong.keys():
            self._excused_s = 0.0
        elif self._is_excused():
            models = wrong
        if models and models.keys() == routes.keys():
            return next(iter(models.values())), models
        return None, models

    async def _runs(self, routes: Mapping[str, Route]) -> dict[str, _OpenRuns]:
        """Look at the models' runs on the thread that they belong to: this shows that it lives."""
        loop, owner = asyncio.get_running_loop(), self._router.owner
        assert owner is not None
        found: asyncio.Future[dict[str, _OpenRuns]] = loop.create_future()

        def look() -> None:
            runs = {}
            for name, route in routes.items():
                entries = [each.entry for each in route.served.values()]
                oldest_s = min((each.oldest_run_s for each in entries), default=math.inf)
                max_run_s = max((each.max_run_s for each in entries), default=0.0)
                runs[name] = _OpenRuns(oldest_s, max_run_s)
            loop.call_soon_threadsafe(settle, runs)

        def settle(runs: dict[str, _OpenRuns]) -> None:
            if not found.done():  # else it came too late
                found.set_result(runs)

        owner.post(look)
        return await found

    def _is_excused(self) -> bool:
        """Return whether this process is short of cores, which excuses it for a while.

        It is if its threads have waited for one half of the time.
        """
        waited_s, self._waited_s = self._waited_s, waited_for_cores_s()
        self._excused_s += self._interval_s
        is_starved = self._waited_s - waited_s >= self._interval_s / 2
        return is_starved and self._excused_s <= _MAX_EXCUSED_S

    async def _wrong_answer(self, route: Route) -> str | None:
        """Send a classifier one of its golden samples; return what is wrong with the answer.

        None, too, if there is no answer: the model may only be busy.
        """
        model, owner = route.model, self._router.owner
        served = route.served.get(model.version)
        if route.signature is None or owner is None or served is None:  # a reload came between
            return None
        sample = self._num_tests % len(model.manifest.golden_images)
        self._num_tests += 1
        image = model.manifest.golden_images[sample].tobytes()
        call = submit(owner, AsyncCaller(""), image, Rows(served.entry, None, 1))
        try:
            ((probabilities,), result), _ = await asyncio.wait_for(call, self._interval_s)
        except (Overloaded, TimeoutError, Unavailable):  # or it drains
            return None
        except ServingError as err:
            return str(err)
        if result.version != model.version:  # a reload came between; that version was checked
            return None
        expected = model.manifest.golden_probabilities[model.precision][sample]
        difference = np.abs(probabilities[0] - expected).max()
        if difference <= GOLDEN_TOLERANCE:
            return None
        return f"golden sample {sample} is answered wrongly, off by {difference:.2g}"
