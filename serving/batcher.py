"""Runs what waits: batch while busy, never wait while idle.

A free runner takes everything queued at once, up to `max_batch_size`, but what other free runners
can share; what arrives meanwhile forms the next batch. So batches grow with the load and an idle
server adds no delay.
"""

import threading
import time
from collections.abc import Callable, Iterable

from serving.backlog import Backlog
from serving.config import BatchingConfig
from serving.errors import DigitsError, Overloaded, Unavailable
from serving.execution import Execution
from serving.requests import Batch, Model, Observe, Request

_ENOUGH_ROWS = 128
"""Images that are worth a run of their own, where another one could share them: more are hardly
cheaper each."""


class Batcher:
    """Accepts requests from any thread and answers each exactly once."""

    def __init__(
        self,
        model: Model,
        config: BatchingConfig,
        *,
        num_runners: int = 1,
        clock: Callable[[], float] = time.monotonic,
        observe: Observe = lambda *_: None,
    ) -> None:
        """Prepare; the threads start with the first request that is queued.

        Args:
            model: what to run until `swap`.
            config: sizes and delays.
            num_runners: runs that go on at once: as many as there are cores, since ONNX Runtime
                runs outside the GIL.
            clock: seconds, monotonic; deadlines are on it.
            observe: told of each run that succeeded; see `Observe`.
        """
        self._config = config
        self._clock = clock
        self._lock = threading.Lock()  # entering it is cheaper than entering the condition
        self._execution = Execution(self._lock, clock, observe)
        self._wake = threading.Condition(self._lock)
        self._backlog = Backlog(model, config.queue_capacity)
        self._retiring: list[Backlog] = []
        self._free = self._num_runners = num_runners
        self._refusal: str | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []

    @property
    def model(self) -> Model:
        """What new requests run on."""
        return self._backlog.model

    def submit(self, request: Request) -> None:
        """Queue a request, and `wake` a runner for it.

        Raises:
            Overloaded: the queue is full.
            Unavailable: draining or closed.
        """
        self.admit(request)
        self.wake()

    def admit(self, request: Request) -> None:
        """Queue a request without waking anyone: busy runners see it, idle ones need `wake`.

        Raises: what `submit` raises.
        """
        with self._lock:
            self._admit(request, self._clock())

    def wake(self) -> None:
        """Wake a runner thread, if one is idle, to run what waits."""
        with self._lock:
            self._wake.notify()

    def submit_all(self, requests: Iterable[Request]) -> None:
        """Queue requests from a thread that will `help`; what can't be queued is rejected."""
        now_s = self._clock()
        with self._lock:
            for request in requests:
                if request.settled:  # cancelled before it was queued
                    continue
                try:
                    self._admit(request, now_s)
                except Unavailable as err:
                    _reject(request, err)
                except Overloaded as err:
                    rest = request.split(self._backlog.room)
                    if rest is not request:
                        self._admit(request, now_s)
                    _reject(rest, err)

    def help(self) -> bool:
        """Run the next batch on the calling thread, if there is one and a place is free.

        An idle engine is reached without a change of thread this way.

        Returns:
            True if more waits; the caller calls again, or leaves it to the runner threads.
        """
        with self._lock:
            batch = self._take()
            if self.num_waiting and self._free:
                self._wake.notify()  # another batch, or one that waits for its delay
        if batch is None:
            return False
        self._run(batch)
        if delay_s := self._delay_s():
            self.wake()  # a runner keeps the time: this thread may not come back
        return delay_s == 0

    def run_at_once(self, request: Request) -> bool:
        """Run a request on the calling thread, past the queue, if the engine is idle.

        Returns:
            False if it has to be submitted, and nothing has happened: something waits, no place is
            free, requests are refused or to be delayed, its deadline has passed, it is larger than
            a run, or so large that other free runners should share it.
        """
        with self._lock:
            now_s = self._clock()
            if (
                not self._free
                or self.num_waiting
                or self._refusal is not None
                or request.num_rows > self._config.max_batch_size
                or (request.num_rows > _ENOUGH_ROWS and self._free > 1)
                or self._config.max_queue_delay_s
                or request.deadline_s <= now_s
            ):
                return False
            self._free -= 1
            batch = self._backlog.pass_through(request, now_s)
        self._run(batch)
        if self.num_waiting:  # it came meanwhile and found no place free
            self.wake()
        return True

    def cancel(self, request: Request) -> bool:
        """Forget a request whose caller left: its waiting rows never run.

        Returns:
            False if it had its outcome already.
        """
        with self._lock:
            if request.home is not None:
                return request.home.cancel(request)
            was_settled, request.settled = request.settled, True
            return not was_settled

    def withdraw(self, request: Request, key: int) -> None:
        """Forget one call of a request that holds many: if its row still waits, it never runs."""
        with self._lock:
            if request.home is not None:
                request.home.withdraw(request, key)
            else:
                request.withdraw(key)

    def swap(self, model: Model) -> None:
        """Run new requests on `model`; those accepted before finish on the old one."""
        with self._lock:
            self._retiring.append(self._backlog)
            self._backlog = Backlog(model, self._config.queue_capacity)

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait until every accepted one has its outcome.

        Returns:
            False if `timeout_s` seconds passed first.
        """
        with self._lock:
            self._refusal = "the server is shutting down"
            return self._wake.wait_for(lambda: not self.num_waiting and self._is_idle, timeout_s)

    def close(self) -> None:
        """Reject what waits as Unavailable, let the runs that go on finish, end the threads."""
        with self._lock:
            self._refusal = "the classifier is closed"
            self._closed = True
            for backlog in (*self._retiring, self._backlog):
                backlog.fail_all(Unavailable("the server was stopped"))
            self._wake.notify_all()
        for thread in self._threads:
            thread.join()

    @property
    def max_batch_size(self) -> int:
        """The most images in one run."""
        return self._config.max_batch_size

    @property
    def num_waiting(self) -> int:
        """How many images wait for a run."""
        if not self._retiring:
            return self._backlog.num_rows
        return self._backlog.num_rows + sum(backlog.num_rows for backlog in self._retiring)

    @property
    def expected_wait_s(self) -> float:
        """How long a request that came now would wait, at the usual length of a run."""
        return self.num_waiting / self._config.max_batch_size * self._execution.usual_s

    @property
    def _is_idle(self) -> bool:
        return self._free == self._num_runners

    def _admit(self, request: Request, now_s: float) -> None:
        if self._refusal is not None:
            raise Unavailable(self._refusal)
        self._backlog.admit(request, now_s)
        if not self._threads:
            self._start()

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._serve, name=f"runner-{n}", daemon=True)
            for n in range(self._num_runners)
        ]
        for thread in self._threads:
            thread.start()

    def _serve(self) -> None:
        while (batch := self._next()) is not None:
            self._run(batch)

    def _next(self) -> Batch | None:
        with self._lock:
            while not self._closed:
                delay_s = self._delay_s()
                if delay_s == 0 and (batch := self._take()) is not None:
                    if self.num_waiting and self._free:
                        self._wake.notify()  # the next runner takes the next batch
                    return batch
                self._wake.wait(delay_s or None)
            return None

    def _delay_s(self) -> float | None:
        """Seconds until a batch may start; None while there is nothing to run, or no place free."""
        if not self._free or not self.num_waiting:
            return None
        delay_s = self._config.max_queue_delay_s
        if delay_s == 0 or self.num_waiting >= self._config.max_batch_size:
            return 0.0
        return max(0.0, self._backlog.waiting_since_s + delay_s - self._clock())

    def _take(self) -> Batch | None:
        if self._delay_s() != 0:
            return None
        while self._retiring and not self._retiring[0].num_rows:
            self._retiring.pop(0)
        backlog = self._retiring[0] if self._retiring else self._backlog
        batch = backlog.take(self._most_rows, self._clock(), self._margin_s)
        if batch is not None:
            self._free -= 1
        return batch

    @property
    def _most_rows(self) -> int:
        """How many images the next run takes: the free runners share what waits."""
        share = max(-(-self.num_waiting // self._free), _ENOUGH_ROWS)
        waits_for_more = self._config.max_queue_delay_s > 0
        return self._config.max_batch_size if waits_for_more else min(share, self.max_batch_size)

    @property
    def _margin_s(self) -> float:
        """How far off a deadline must be to be worth a run.

        A queue whose wait is longer than its callers' patience would else serve only those whose
        deadline passes during the run. Without a queue every request gets its chance.
        """
        is_backed_up = self.num_waiting > self._config.max_batch_size
        return 2 * self._execution.usual_s if is_backed_up else 0.0

    def _run(self, batch: Batch) -> None:
        self._execution.run(batch)
        with self._lock:
            self._free += 1
            if self._refusal is not None:
                self._wake.notify_all()  # drain waits for this


def _reject(request: Request, error: DigitsError) -> None:
    request.settled = True
    request.reject(error)
