"""Signals end a server's event loop, whichever thread the kernel delivers them to."""

import signal
import sys

import pytest

from tests.support.servers import ended

SCRIPT = """
import asyncio, signal, threading
from serving.system import signals
from tests.support.servers import ended
async def main():
    signals.install()
    stops = signals.queue_stops()
    print("ready", flush=True)
    threading.Timer(0.2, lambda: signal.pthread_kill(threading.get_ident(), {number})).start()
    print(await stops.get())
{run}(main())
"""


@pytest.mark.parametrize("run", ["asyncio.run", "__import__('uvloop').run"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_that_another_thread_gets_is_handled(run, number):
    script = SCRIPT.format(run=run, number=int(number))
    done = ended([sys.executable, "-c", script], check=True)
    assert done.stdout.split() == ["ready", str(int(number))]
