"""The life of a server whose parts are a test's: what is done, in which order, and how it ends."""

import asyncio
import gc
import logging
import signal
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ConfigurationError, CorruptModel
from serving.server import lifetime
from serving.system import signals


class Ended(Exception):
    """The process has ended, by an exit code."""


class ServerStub:
    """A server that notes what is done with it."""

    def __init__(self, *drained, workers=1):
        self.config = SimpleNamespace(workers=workers)
        self.num_calls = 7
        self.drained = [*drained]

    async def beat(self):
        await asyncio.Event().wait()

    async def drain(self):
        if not self.drained:
            await asyncio.Event().wait()
        self.num_calls = 3
        return self.drained.pop(0)


@pytest.fixture
def notes(monkeypatch):
    """What is done outside of the server, in its order."""
    found: list[Any] = []

    def end(code):
        raise Ended(code)

    monkeypatch.setattr(lifetime, "notify", found.append)
    monkeypatch.setattr(signals, "install", lambda: found.append("install"))
    monkeypatch.setattr(signals, "end_process", end)
    monkeypatch.setattr(gc, "freeze", lambda: found.append("freeze"))
    return found


def life(server, *stops, on_ready=lambda server: None):
    queue: asyncio.Queue[int] = asyncio.Queue()
    for number in stops:
        queue.put_nowait(number)
    return lifetime.drain_when_signalled(server, queue, on_ready)


async def test_signal_drains_and_the_log_says_how_long_it_took(notes, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(lifetime, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    server = ServerStub(True)
    assert await life(server, signal.SIGTERM, on_ready=notes.append) is True
    assert notes == ["install", "freeze", server, "STOPPING=1"]
    assert caplog.messages == [
        "draining: SIGTERM", "drained in 2.5 s: 7 calls were in progress"]  # fmt: skip


@pytest.mark.parametrize(
    ("drained", "stops", "reason"),
    [
        ([False], [signal.SIGTERM], "accepted calls took longer than --drain; calls cut off: 3"),
        ([], [signal.SIGINT, signal.SIGTERM], "second signal; calls cut off: 7"),
    ],
    ids=["slow", "second signal"],
)
async def test_drain_that_fails_ends_the_process_by_1(drained, stops, reason, notes, caplog):
    with pytest.raises(Ended) as ended:
        await life(ServerStub(*drained), *stops)
    assert ended.value.args == (1,)
    assert caplog.messages[-1] == f"stopped by force: {reason}"


async def test_second_signal_is_not_for_a_worker(notes):
    """It may have the first from a terminal, and the same again from its supervisor."""
    server = ServerStub(workers=2)
    task = asyncio.create_task(life(server, signal.SIGTERM, signal.SIGTERM))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not task.done()
    task.cancel()


def test_metrics_port_is_closed_where_the_start_fails(monkeypatch):
    done = []

    class Port:
        def __init__(self, *args):
            done.append(args)

        def close(self):
            done.append("closed")

    monkeypatch.setattr(lifetime, "MetricsPort", Port)
    config = ServerConfig(metrics_host="::1", metrics_port=9, http_host_names=("a.org",))

    def fail():
        with lifetime.exporting(config) as port:
            assert isinstance(port, Port)
            raise CorruptModel("no")

    with pytest.raises(CorruptModel):
        fail()
    assert done == [("::1", 9, ("a.org",)), "closed"]
    with lifetime.exporting(ServerConfig(metrics_port=None)) as none:
        assert none is None


class Parts:
    """All that `serve` puts together, noted in its order."""

    def __init__(self, monkeypatch, start=None):
        self.done: list[Any] = []
        self.start_error = start
        self.router: Any = None
        self.catalog: Any = None
        parts = self

        class Following:
            def __enter__(self):
                parts.done.append("followed")

            def __exit__(self, *_):
                parts.done.append("not followed")

        class Catalog:
            models: ClassVar = {"m": "versions"}

            def __init__(self, *args):
                parts.done.append(("catalog", *args))

            def following(self, interval_s):
                parts.done.append(("following", interval_s))
                return Following()

            def end_version(self):
                """Called at the end of a version."""

        class Router:
            metrics = SimpleNamespace(count_reload="counts")

            def __init__(self, *args):
                parts.done.append(("router", *args[1:]))

            def __getattr__(self, name):
                return lambda *args: parts.done.append((name, *args))

            def change(self, *args):
                parts.done.append(("change", *args))

        class Server:
            def __init__(self, router, config, exporter, catalog):
                parts.router, parts.catalog = router, catalog

            async def start(self):
                parts.done.append("start")
                if parts.start_error is not None:
                    raise parts.start_error

            async def stop(self, grace_s):
                parts.done.append(("stop", grace_s))

        async def drained(server, stops, on_ready):
            parts.done.append(("drain", stops, on_ready))
            return True

        for name, value in (("Catalog", Catalog), ("Router", Router), ("Server", Server),
                            ("drain_when_signalled", drained), ("usable_cores", lambda: 8),
                            ("limit_free_memory", lambda: self.done.append("limit"))):  # fmt: skip
            monkeypatch.setattr(lifetime, name, value)

        def queue_stops():
            parts.done.append("stops")
            return "queue"

        monkeypatch.setattr(signals, "queue_stops", queue_stops)
        monkeypatch.setattr(signals, "on_hang_up", lambda _: self.done.append("hang up"))


MODEL, BATCHING = ModelConfig(), BatchingConfig(max_batch_size=9)


async def served(**options):
    config = ServerConfig(metrics_port=None, reload_interval_s=2.5, **options)
    more: Any = {"blocked": {1: 2.0}, "alone": frozenset({3}), "on_ready": "ready", "host": "host"}
    return await lifetime.serve(MODEL, BATCHING, config, **more)


@pytest.mark.parametrize(("workers", "num_threads"), [(1, 8), (3, 2), (9, 1)])
async def test_server_is_put_together_in_this_order(workers, num_threads, monkeypatch):
    parts = Parts(monkeypatch)
    assert await served(workers=workers) is True
    assert parts.done == [
        "limit",
        ("catalog", MODEL, 9, num_threads),
        ("router", workers, "host"),
        ("block", {1: 2.0}),
        ("stop_batching", frozenset({3})),
        ("change", "m", "versions"),
        "stops",
        "start",
        ("following", 2.5),
        "followed",
        "hang up",
        ("drain", "queue", "ready"),
        "not followed",
        ("close",),
    ]
    assert parts.catalog.count_reload == "counts"
    assert parts.catalog.on_change == parts.router.change
    assert parts.router.on_end == parts.catalog.end_version


async def test_server_that_cannot_start_is_stopped_and_its_models_are_closed(monkeypatch):
    parts = Parts(monkeypatch, ConfigurationError("the port is taken"))
    with pytest.raises(ConfigurationError, match=r"^the port is taken$"):
        await served()
    assert parts.done[-3:] == ["start", ("stop", 0), ("close",)]


def test_hang_up_is_told_to_systemd_until_all_is_loaded(notes):
    asked = []
    lifetime._reload(SimpleNamespace(request=asked.append))
    assert notes == ["RELOADING=1"]
    (done,) = asked
    done()
    assert notes == ["RELOADING=1", "READY=1"]


@pytest.mark.parametrize(("url", "more"), [(None, {}), ("http://h:1", {"http": "http://h:1"})])
def test_ready_line_has_the_url_of_http(url, more, monkeypatch):
    said: list[Any] = []
    monkeypatch.setattr(lifetime, "announce", lambda *facts, **more: said.append((facts, more)))
    server: Any = SimpleNamespace(
        http_url=url, report=lambda: "report", address="a", metrics_address="m", config="config"
    )
    lifetime._announce(server)
    assert said == [(("report", "a", "m", "config"), more)]
