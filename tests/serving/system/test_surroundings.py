"""A system that lacks something: the server serves anyway, or says why not in one line."""

import os
import queue
import signal
import sys
import threading
import weakref
from functools import partial

import numpy as np
import pytest

from digit_classifier import Classifier
from serving.system import systemd
from serving.system.batch_threads import Threads
from tests.support.servers import ended, prepared, running_server, serve_command


def missing(folder):
    return folder / "missing"


def read_only(folder):
    folder.chmod(0o500)
    return folder


def oddly_named(folder):
    path = folder / "a b#c?d%20"
    path.mkdir()
    return path


@pytest.mark.parametrize("make", [missing, read_only, oddly_named])
def test_no_temporary_folder_is_needed(models, tmp_path, images, monkeypatch, make):
    folder = make(tmp_path)
    monkeypatch.setenv("TMPDIR", str(folder))
    with running_server(models, "--workers", "2") as server:
        with Classifier.connect(server.address) as client:
            assert client.classify(images[:1]).model_version == "1"
        assert not folder.exists() or not [*folder.iterdir()], "the folder was not emptied"
        assert server.stop() == 0


OBEY_PERMISSIONS = """
import ctypes
if os.geteuid() == 0:
    for capability in (1, 2):  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
        assert ctypes.CDLL(None).prctl(24, capability, 0, 0, 0) == 0  # PR_CAPBSET_DROP
"""
"""Has file permissions count for root, too, from the next exec on."""


def test_model_directory_without_permission_is_a_clear_line(tmp_path):
    model_dir = tmp_path / "digits"
    model_dir.mkdir()
    (model_dir / "1").mkdir()
    for closed in (tmp_path, model_dir, model_dir / "1"):
        closed.chmod(0)
        result = ended(prepared(OBEY_PERMISSIONS, serve_command(tmp_path)))
        closed.chmod(0o700)
        assert (result.returncode, result.stdout) == (2, "")
        *warnings, line = result.stderr.splitlines()
        assert line.startswith("digit-serving: ")
        assert "Permission denied" in line
        assert all("skipped version 1" in warning for warning in warnings)


@pytest.mark.parametrize(("workers", "number"), [("1", 8), ("2", 32)])
def test_too_few_descriptors_are_one_clear_line(models, workers, number):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({number}, {number}))"
    result = ended(prepared(limit, serve_command(models, "--workers", workers)))
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"digit-serving: ulimit -n is {number}: at least ")


# Signals end a server's event loop, whichever thread the kernel delivers them to


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


def test_runners_stand_back_behind_the_thread_that_answers():
    """Else callers of one model wait for the end of another's run where both share a core."""
    found, threads = queue.SimpleQueue(), Threads(1)

    def work():
        found.put(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
        return lambda: None

    threads.put(work, lambda task: None)
    assert found.get(timeout=10) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
    threads.close()


def test_idle_runner_keeps_nothing_of_its_last_work():
    threads, is_gone, message = Threads(1), threading.Event(), np.zeros(10)
    weakref.finalize(message, is_gone.set)
    threads.put(partial(getattr, message, "tolist"), lambda task: None)
    del message
    assert is_gone.wait(timeout=10)
    threads.close()


async def test_watchdog_is_fed_behind_a_turn_of_the_loop_only(monkeypatch):
    """What is fed before would live on for a third of the time although the loop hangs."""
    happened = []

    async def beat():
        happened.append("turn")
        if len(happened) > 4:
            raise TimeoutError

    monkeypatch.setenv("WATCHDOG_USEC", "3")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setattr(systemd, "notify", happened.append)
    with pytest.raises(TimeoutError):
        await systemd.keep_watchdog_fed(beat)
    assert happened == ["turn", "WATCHDOG=1", "turn", "WATCHDOG=1", "turn"]
