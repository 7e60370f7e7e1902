"""Sends golden samples through the server at intervals, the way every request goes.

A server whose engine hangs or answers wrongly still accepts connections; health then says
NOT_SERVING, so that load balancers avoid it.
"""

import asyncio
import logging
from collections.abc import Callable

import numpy as np

from serving.batching.awaited_call import Peer, submit
from serving.errors import DigitsError, Overloaded, Unavailable
from serving.model.acceptance import GOLDEN_TOLERANCE
from serving.protocols.encoding import Rows
from serving.router import Router
from serving.system.process import waited_for_cores_s

_MAX_EXCUSED_S = 60.0
"""How long tests may fail for want of cores."""
_log = logging.getLogger(__name__)


class SelfTest:
    """Checks at intervals that a golden sample is answered correctly."""

    def __init__(
        self,
        router: Router,
        set_serving: Callable[[bool], None],
        interval_s: float,
    ) -> None:
        """Prepare; `run` starts it.

        Args:
            router: the models; the classifier's samples are sent.
            set_serving: called with True or False when the state changes.
            interval_s: seconds between tests, and how long an answer may take.
        """
        self._router = router
        self._set_serving = set_serving
        self._interval_s = interval_s
        self._is_well = True
        self._num_tests = 0
        self._images_run = 0.0
        self._waited_s = 0.0
        self._excused_s = 0.0

    async def run(self) -> None:
        """Test forever."""
        while True:
            self._waited_s = waited_for_cores_s()
            await asyncio.sleep(self._interval_s)
            self._note(await self._trouble())

    def _note(self, trouble: str | None) -> None:
        is_well = trouble is None
        if is_well == self._is_well:
            return
        self._is_well = is_well
        if is_well:
            _log.info("self-test passed, health is SERVING")
        else:
            _log.error("self-test failed, health is NOT_SERVING: %s", trouble)
        self._set_serving(is_well)

    async def _trouble(self) -> str | None:
        """Classify one golden sample; return the error, or None."""
        router, route = self._router, self._router.classifier
        if route is None or router.owner is None:
            return None
        model = route.model
        sample = self._num_tests % len(model.manifest.golden_images)
        self._num_tests += 1
        target = route.batchers.get(model.version)
        if target is None:  # a reload came between
            return None
        image = model.manifest.golden_images[sample].tobytes()
        call = submit(router.owner, Peer(""), image, Rows(target, None, 1))
        try:
            ((probabilities,), result), _ = await asyncio.wait_for(call, self._interval_s)
        except Overloaded:
            return self._stall("the queue is full and nothing runs")
        except TimeoutError:
            return self._stall(f"no answer within {self._interval_s:g} s")
        except Unavailable:  # draining: health is NOT_SERVING already
            return None
        except DigitsError as err:
            return str(err)
        if result.version != model.version:  # a reload came between; that version was checked
            return None
        expected = model.manifest.golden_probabilities[model.precision][sample]
        difference = np.abs(probabilities[0] - expected).max()
        if difference <= GOLDEN_TOLERANCE:
            return None
        return f"golden sample {sample} is answered wrongly, off by {difference:.2g}"

    def _stall(self, trouble: str) -> str | None:
        """Return the error, but None if the server is only busy, or short of cores.

        It is busy if images were run since the last look, and short of cores if its threads have
        waited for one half of the time. That excuses it for a while only.
        """
        before, self._images_run = self._images_run, self._router.metrics.num_images
        if self._images_run != before:
            self._excused_s = 0.0
            return None
        waited_s, self._waited_s = self._waited_s, waited_for_cores_s()
        self._excused_s += self._interval_s
        is_starved = self._waited_s - waited_s >= self._interval_s / 2
        return None if is_starved and self._excused_s <= _MAX_EXCUSED_S else trouble
