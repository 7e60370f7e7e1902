"""The loop as callbacks of an asyncio event loop, where grpcio answers gRPC."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

from serving.protocols.method import Method
from serving.router import Router
from serving.system.host import Host
from serving.transports.loop import Loop, LoopPhase
from serving.transports.port import Port

_log = logging.getLogger(__name__)


class AsyncioLoop(Loop):
    """Takes its turns as callbacks of the running event loop, and is used on its thread."""

    def __init__(self, router: Router, methods: Iterable[Method] = ()) -> None:
        super().__init__(router, methods, poll=False, host=Host())
        self._event_loop = asyncio.get_running_loop()
        self._context = copy_context()  # else turns log the fields of the call that woke them
        self._planned_s = 0.0
        self._planned: asyncio.Handle | None = None
        """The only turn that is planned, if any, and when."""
        self._is_followed = False
        """Whether sockets take turns: those of HTTP, and of handlers' processes."""

    def start(self) -> None:
        self._take_turn()

    def add(self, port: Port) -> None:
        super().add(port)
        self._follow_selector()

    def watch(self, sock: Any, mask: int, watcher: Any) -> None:
        super().watch(sock, mask, watcher)
        self._follow_selector()

    def _follow_selector(self) -> None:
        if not self._is_followed:
            self._is_followed = True
            selector: Any = self.selector  # epoll and kqueue have a descriptor; HTTP is on Unix
            self._event_loop.add_reader(selector.fileno(), self._take_turn)

    def call(self, task: Callable[[], None]) -> None:
        task()

    def _wake(self) -> None:
        self._event_loop.call_soon_threadsafe(self._take_turn, context=self._context)

    def _take_turn(self) -> None:
        if self.phase >= LoopPhase.CLOSING:
            return
        try:
            self.turn(self.selector.select(0.0) if self._is_followed else [])
        except Exception:  # a bug of ours: it ends this round, and never the loop
            _log.exception("a turn of the loop failed")
        self._plan(self.timeout_s())

    def _plan(self, wait_s: float) -> None:
        """Take the next turn in time; one that is planned for earlier may stay."""
        at_s = self._event_loop.time() + wait_s
        if self._planned is not None:
            if self._planned_s <= at_s:
                return
            self._planned.cancel()
        self._planned_s = at_s
        self._planned = self._event_loop.call_later(
            wait_s, self._take_planned_turn, context=self._context
        )

    def _take_planned_turn(self) -> None:
        self._planned = None  # uvloop's timers may be early
        self._take_turn()

    def stop(self) -> None:
        if self.phase >= LoopPhase.CLOSING:  # again
            return
        if self._planned is not None:
            self._planned.cancel()
        if self._is_followed:
            self._event_loop.remove_reader(self.selector.fileno())  # type: ignore[attr-defined]
        self._begin_closing()
        self._run()
        self._is_awake = True  # a run that ends later wakes nobody
        self._close()
