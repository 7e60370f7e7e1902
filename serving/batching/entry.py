"""Where a version's calls come in: the rules of room, turns, refusal, failure and account.

Calls wait here, in one queue or some, until the runners of the first stage take them: those of a
`Batcher` run its session, those of a `Pipeline` are a handler's processes. Room, turns and arrival
count here alone; what has begun to run asks for no room at a later stage. An entry knows nothing of
its version's life: it refuses calls while it has a reason.
"""

import math
from collections.abc import Iterable

from serving.batching.queue import Queue
from serving.batching.run import Caller, Group, Owner, open_calls
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, ServerError, ServingError
from serving.telemetry.metrics import HandlerUsage, Metrics
from serving.tensors import TensorSignature

_LATE = DeadlineExceeded()


class Entry:
    """Takes the calls of one version, and gives each exactly one outcome; of the owner's thread.

    Everything but `num_waiting` and `usage` happens on one thread, its owner's, which reads from
    callers and answers them.
    """

    max_delay_s = 0.0
    """How long to wait for more rows before a run; see `delay_s`."""

    def __init__(
        self,
        label: tuple[str, str],
        tensors: TensorSignature,
        config: BatchingConfig,
        metrics: Metrics,
        queues: tuple[Queue, ...],
        *,
        counts_calls: bool = True,
    ) -> None:
        """Prepare; `attach` comes before the first call.

        Args:
            label: the name and the version, as metrics have them.
            tensors: the calls' inputs and outputs.
            config: sizes and limits.
            metrics: counts.
            queues: where calls wait; the first one, unless `_queue_of` names another.
            counts_calls: whether the calls are callers', not those of a stage that counts them.
        """
        self.label = label
        """The name and the version, as metrics have them."""
        self.tensors = tensors
        """The calls' inputs and outputs."""
        self.owner: Owner
        self._config, self._metrics, self._counts_calls = config, metrics, counts_calls
        self._queue, self._queues = queues[0], queues
        self._always_rows = math.inf
        """The largest call that waits in the first queue, however busy it is."""
        self._refusal: ServingError | None = None
        """Why no call is taken."""
        self._is_scheduled = False

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on."""
        self.owner = owner

    # Calls come in

    def submit(self, group: Group, *, is_final: bool = True) -> int:
        """Let calls wait for a run, as far as there is room; return how many, the first ones.

        Args:
            group: the calls.
            is_final: whether nobody else takes the others.
        """
        if self._refusal is not None:
            self.fail(group, self._refusal)
            return len(group.streams)
        rows, number = group.encoder.num_rows, len(group.streams)
        # As `place` says; without a call, for this is the way of most.
        queue = self._queue if rows <= self._always_rows else self._queue_of(rows)
        if queue.num_rows + group.num_rows <= queue.run_rows:  # likewise
            self.schedule()
            queue.put(group)
            return number
        taken = queue.offer(group, self.owner.clock, self._config.slo_s)
        if taken < number and is_final:
            self._metrics.count_failure(self.label, 0.0, number - taken)
        if taken:
            self.schedule()
        return taken

    def add(self, group: Group) -> None:
        """Let calls wait for a run, even if there is no room."""
        if self._refusal is not None:
            self.fail(group, self._refusal)
            return
        self._queue_of(group.encoder.num_rows).put(group)
        self.schedule()

    def _queue_of(self, num_rows: int) -> Queue:
        """Return where a request waits: others may come before its turn."""
        return self._queue

    def schedule(self) -> None:
        """Have a turn taken soon."""
        if not self._is_scheduled:
            self._is_scheduled = True
            self.owner.schedule(self)

    def room_for_stream(self, num_rows: int) -> int:
        """Return how many messages a stream may add; streams wait where unary calls are refused."""
        return -(-self._queue_of(num_rows).room_for_streams // max(num_rows, 1))

    @property
    def capacity(self) -> int:
        """The most rows that wait in a queue, but for those of callers with few."""
        return self._queue.capacity

    @property
    def num_waiting(self) -> int:
        """The rows that wait for a run; a moment old on other threads."""
        return sum([queue.num_rows for queue in self._queues])

    def delay_s(self, now_s: float) -> float:
        """Return how long to wait for more rows before `turn`."""
        waiting = [each for each in self._queues if each.num_rows]
        # Nothing waits if callers have left: then the turn has nothing to do, and is over. Streams
        # add no more to a queue that has no room for them, so it would never fill.
        if not waiting or any(
            each.num_rows >= each.run_rows or each.room_for_streams <= 0 for each in waiting
        ):
            return 0.0
        return max(0.0, min(each.oldest_s for each in waiting) + self.max_delay_s - now_s)

    # Callers leave

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that wait or run."""
        running = (group for group in self._running() if group.caller is caller)
        found = {stream for group in running for stream in group.streams}
        return found.union(*(each.streams_of(caller) for each in self._queues))

    def forget(self, caller: Caller) -> None:
        """Drop the calls of a caller that has left."""
        for each in self._queues:
            each.forget(caller)

    # Calls end without an answer

    @property
    def is_refusing(self) -> bool:
        """Whether it takes no calls for now."""
        return self._refusal is not None

    def refuse(self, reason: ServingError | None) -> None:
        """Refuse all calls that have not begun to run, and later ones; None takes them again."""
        self._refusal = reason
        if reason is not None:
            self._fail_waiting(reason)

    def _fail_waiting(self, error: ServingError) -> None:
        for queue in self._queues:
            for group in open_calls(queue.clear()):
                self.fail(group, error)

    def fail(self, group: Group, error: ServingError) -> None:
        """End calls with an error, which is counted."""
        if self._counts_calls:
            duration_s = self.owner.clock() - group.arrived_s
            self._metrics.count_failure(self.label, duration_s, len(group.streams))
        own = type(error)(str(error))  # others may have the same one
        if isinstance(own, ServerError) and isinstance(error, ServerError):
            own.retry_after_s = error.retry_after_s
        own.model = self.label
        group.sink.fail(group, own)

    def end_late(self, groups: Iterable[Group]) -> None:
        """Fail calls whose deadline has passed."""
        for group in groups:
            self.fail(group, _LATE)

    # The runners

    def turn(self, now_s: float) -> bool:
        """Have runners take calls; return whether calls wait for a runner, or have one."""
        raise NotImplementedError

    def tick(self, now_s: float) -> None:
        """End the runs and calls that are late, and forget cancelled calls."""
        raise NotImplementedError

    def _running(self) -> Iterable[Group]:
        """Return the calls that have begun to run."""
        raise NotImplementedError

    @property
    def is_busy(self) -> bool:
        """Whether calls wait or run."""
        raise NotImplementedError

    @property
    def oldest_run_s(self) -> float:
        """When the oldest run beside the owner began, in monotonic seconds; infinite without."""
        raise NotImplementedError

    @property
    def max_run_s(self) -> float:
        """The longest run, in seconds: it is ended then."""
        raise NotImplementedError

    def usage(self) -> HandlerUsage | None:
        """Return the use of processes of its own, None if it has none; from any thread."""
        return None

    def stop_batching(self) -> None:
        """Run each call of the model alone from now on: rows were found to depend on others."""
        raise NotImplementedError

    def close(self) -> None:
        """End the runners once they are idle; `refuse` comes before."""
        raise NotImplementedError
