"""The workers that are alive, and what all workers so far have counted."""

import asyncio

from serving.server.worker import Arguments, Worker
from serving.telemetry.metrics import Counts
from serving.telemetry.report import Report, total

_REPORT_TIMEOUT_S = 1.0
"""How long a report waits for a worker that may hang; then its last one counts."""


class Workers:
    """The workers of one supervisor, by place; used on its event loop."""

    def __init__(self, arguments: Arguments) -> None:
        """Start with none; `arguments` are those of each."""
        self._arguments = arguments
        self._alive: dict[int, Worker] = {}
        self.dead = Counts()
        """The counts of the workers that died."""
        self._last: Report | None = None

    def start(self, place: int) -> Worker:
        """Start a worker in a place that is empty."""
        sockets, model, batching, config = self._arguments
        own_first = {name: each[place:] + each[:place] for name, each in sockets.items()}
        worker = self._alive[place] = Worker((own_first, model, batching, config))
        return worker

    def remove(self, place: int) -> None:
        """Empty the place of a worker that died, and keep its counts."""
        if report := self._alive.pop(place).report:
            self.dead += report.counts
            self._last = report

    @property
    def alive(self) -> list[Worker]:
        """Those that run, ready or not."""
        return list(self._alive.values())

    @property
    def num_ready(self) -> int:
        """How many are ready to answer calls."""
        return len(self._reports())

    @property
    def is_serving(self) -> bool:
        """Whether at least one worker has the port, and all that have it are well."""
        states = [worker.is_serving for worker in self.alive]
        listening = [state for state in states if state is not None]
        return bool(listening) and all(listening)

    def signal(self, number: int) -> None:
        """Send a signal to all; one that is starting keeps a SIGHUP."""
        for worker in self.alive:
            worker.signal(number)

    async def report(self) -> Report:
        """Add up the reports of all workers; without any, use the last report there was."""
        asked = [asyncio.create_task(worker.refresh()) for worker in self.alive]
        if asked:
            await asyncio.wait(asked, timeout=_REPORT_TIMEOUT_S)
        reports = self._reports()
        if not reports:
            assert self._last is not None, "no worker has been ready yet"
            reports = [self._last.ended()]
        return total(reports, self.dead)

    def report_from_thread(self, loop: asyncio.AbstractEventLoop) -> Report:
        """Return a report, on any thread but the loop's."""
        report = asyncio.run_coroutine_threadsafe(self.report(), loop)
        return report.result(2 * _REPORT_TIMEOUT_S)  # the loop may have ended

    def _reports(self) -> list[Report]:
        return [worker.report for worker in self.alive if worker.report]
