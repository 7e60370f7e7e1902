"""What systemd is told: that the server is ready, reloads, stops, and is alive."""

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def notify(state: str) -> None:
    """Tell systemd; nothing without it.

    Args:
        state: such as READY=1.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if state == "RELOADING=1":  # systemd takes no READY=1 that is older
        state += f"\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        try:
            sender.sendto(state.encode(), address.replace("@", "\0", 1))
        except OSError:  # systemd is gone, or the path is not reached: no reason to end
            return


async def keep_watchdog_fed(beat: Callable[[], Awaitable[None]]) -> None:
    """Tell systemd that this process lives for as long as `beat` returns; forever, if it watches.

    Args:
        beat: returns once the loop that answers calls has had a turn.
    """
    interval_s = int(os.environ.get("WATCHDOG_USEC", 0)) / 1e6
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return
    while interval_s:
        await beat()
        notify("WATCHDOG=1")
        await asyncio.sleep(interval_s / 3)
