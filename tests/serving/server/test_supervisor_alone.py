"""The supervisor beside workers that are no processes: deaths, counts, orders, and its lock."""

import asyncio
import signal
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from serving.batching.spot_check import MOST_BATCHES
from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ConfigurationError, CorruptModel, Unavailable
from serving.processes.end import End
from serving.server import supervisor as module
from serving.server.supervisor import Supervisor
from serving.server.worker import Orders
from serving.system.crash_record import number_of
from serving.system.usage import Usage
from serving.telemetry.metrics import Counts, ModelCounts, QueueUsage, Readiness, Report
from tests.support.guards import is_held

LABEL = ("m", "1")
CONFIGS = ModelConfig(), BatchingConfig(), ServerConfig()


class Held(dict[Any, Any]):
    """A dict that changes only while a lock is held: another thread may read it."""

    def __init__(self, lock):
        super().__init__()
        self.lock = lock

    def __setitem__(self, key, value):
        assert is_held(self.lock)
        super().__setitem__(key, value)

    def pop(self, *args):
        assert is_held(self.lock)
        return super().pop(*args)


def report_of(num_rows=0, *, is_serving=True, **more):
    counts = ModelCounts()
    if num_rows:
        counts.runs.update({num_rows: 1})
    served: Any = (SimpleNamespace(name="m", version="1"),)
    facts = {"models": served, "batching": BatchingConfig(), "queues": {LABEL: QueueUsage()},
             "num_calls": 2, "is_serving": is_serving, "usage": Usage(),
             "counts": Counts({LABEL: counts})}  # fmt: skip
    return Report(**(facts | more))


class Worker:
    """One that ends at once, or when the test says so."""

    made: list["Worker"]
    lives: list[dict[str, Any]]

    def __init__(self, ports, place, configs, on_ready, orders):
        self.configs, self.first_orders, self.on_ready = configs, orders, on_ready
        self.report, self.error, self.culprits, self.lived_s = None, None, frozenset(), 0.0
        self.is_serving = True
        self.signals: list[int] = []
        self.orders: list[Orders] = []
        self.ended = asyncio.get_running_loop().create_future()
        self.made.append(self)
        for name, value in (self.lives.pop(0) if self.lives else {}).items():
            setattr(self, name, value)
        if not hasattr(self, "stays"):
            self.ended.set_result(End(3))

    def is_frozen(self):
        return False

    def order(self, orders):
        self.orders.append(orders)

    def signal(self, number):
        self.signals.append(number)
        if not self.ended.done():
            self.ended.set_result(End(-number))


class Shares:
    """A port whose workers' numbers of connections are noted."""

    def __init__(self):
        self.away, self.socket = [], object()

    def share(self, place):
        return SimpleNamespace(note=lambda: self.away.append(place))


@pytest.fixture
def made(monkeypatch):
    """Supervisors, whose pauses are noted and take no time."""
    pauses: list[float] = []
    refused: list[Any] = []
    sleep = asyncio.sleep

    async def pause(seconds):
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": pause}))
    monkeypatch.setattr(module, "Worker", Worker)
    monkeypatch.setattr(module, "refuse_callers", refused.append)
    monkeypatch.setattr(Worker, "made", [], raising=False)
    monkeypatch.setattr(Worker, "lives", [], raising=False)

    def make(*lives, **options):
        Worker.lives.extend(lives)
        port: Any = Shares()
        found = Supervisor({("h", 1): port}, CONFIGS, ServerConfig(**options), None)
        found._workers = Held(found._lock)
        return SimpleNamespace(
            it=found, port=port, pauses=pauses, refused=refused, workers=Worker.made
        )

    return make


async def test_worker_that_dies_again_and_again_ends_the_server(made, caplog):
    one = made()
    with pytest.raises(Unavailable) as caught:
        await one.it._keep(0)
    assert str(caught.value) == (
        "worker 0 died 5 times in a row (exit code 3), and no other one serves"
    )
    assert one.pauses == [0.1, 0.2, 0.4, 0.8]
    assert caplog.messages == [
        f"worker 0 died (exit code 3), restart in {pause} s" for pause in ("0.1", "0.2", "0.4",
                                                                           "0.8")
    ]  # fmt: skip
    assert len(one.workers) == 5
    assert one.port.away == [0] * 5
    assert one.it._workers == {}
    with one.it._lock:
        assert one.it._dead.restarts == 4


async def test_worker_that_cannot_start_ends_the_server_at_once(made):
    error = CorruptModel("it is broken")
    one = made({"error": error})
    with pytest.raises(CorruptModel, match=r"^it is broken$"):
        await one.it._keep(0)
    assert (len(one.workers), one.pauses) == (1, [])
    assert (one.it._workers, one.port.away) == ({}, [0])


async def test_counts_of_a_worker_that_died_stay(made):
    lives = [{"report": report_of(4), "lived_s": 5.0}, {"report": report_of(2), "stays": True}]
    one = made(*lives)
    task = asyncio.create_task(one.it._keep(0))
    while len(one.workers) < 2:
        await asyncio.sleep(0)
    found = one.it.report()
    assert found.counts.models[LABEL].runs == Counter({4: 1, 2: 1})
    assert (found.num_calls, found.is_serving, found.counts.restarts) == (2, True, 1)
    assert one.refused == [one.port.socket], "nobody is ready meanwhile"
    task.cancel()


async def test_report_without_a_worker_is_the_last_ones_without_what_has_ended(made):
    one = made({"report": report_of(4), "lived_s": 5.0}, {"stays": True})
    task = asyncio.create_task(one.it._keep(0))
    while len(one.workers) < 2:
        await asyncio.sleep(0)
    found = one.it.report()
    assert found.counts.models[LABEL].runs == Counter({4: 1})
    assert (found.num_calls, found.is_serving) == (0, False)
    assert one.it._state() == Readiness(False, frozenset(), {})
    task.cancel()


async def test_model_that_has_ended_a_worker_rests_in_all_of_them(made, caplog):
    number = number_of(LABEL)
    dead = {"report": report_of(1), "culprits": frozenset({number}), "lived_s": 0.0}
    one = made(dead, {"stays": True}, {"stays": True}, workers=2)
    other = asyncio.create_task(one.it._keep(1))
    task = asyncio.create_task(one.it._keep(0))
    while len(one.workers) < 3:
        await asyncio.sleep(0)
    with one.it._lock:
        assert one.it._dead.crashes == Counter({LABEL: 1})
    assert "model m version 1 has ended worker 1 (exit code 3), crash 1: it is not run for the " \
        "time of a restart" in caplog.messages  # fmt: skip
    beside, again = one.workers[1:]
    assert [each.blocked.keys() for each in beside.orders] == [{number}]
    assert again.first_orders.blocked.keys() == {number}
    for each in other, task:
        each.cancel()


async def test_model_that_has_rested_is_run_again_in_all_workers(made, monkeypatch):
    """Nobody asks for it meanwhile: each worker learns it as the time is over."""
    later: list[Any] = []
    one, number = made(), number_of(LABEL)
    clock = SimpleNamespace(s=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock.s))
    loop = SimpleNamespace(call_later=lambda *facts: later.append(facts))
    monkeypatch.setattr(module.asyncio, "get_running_loop", lambda: loop)  # type: ignore[attr-defined]
    staying, dead = worker_of(report_of()), worker_of(report_of())
    with_workers(one, staying)
    dead.ended.set_result(End(-11))
    dead.culprits = frozenset({number})
    for rest_s in (5.0, 10.0):
        one.it._blame(dead, 1)
        assert staying.orders.pop() == Orders({number: clock.s + rest_s}, frozenset())
        ((seconds, send),) = later
        later.clear()
        clock.s += seconds
        send()
        assert staying.orders.pop() == Orders({}, frozenset())


async def test_worker_whose_models_have_ended_it_is_not_given_up(made):
    """They rest: it is no fault of its own."""
    one = made(*[{"culprits": frozenset({5})} for _ in range(6)], {"stays": True})
    task = asyncio.create_task(one.it._keep(0))
    while len(one.workers) < 7:
        await asyncio.sleep(0)
    assert one.pauses == [0.1] * 6
    task.cancel()


async def test_frozen_worker_is_ended_once_and_the_log_says_so(made, monkeypatch, caplog):
    one = made()
    worker, signals, wait = worker_of(report_of()), [], asyncio.wait

    async def hurried(tasks, *, timeout=None, **options):
        return await wait(tasks, timeout=timeout and 0.0, **options)

    async def end(number):
        for _ in range(20):
            await asyncio.tasks.sleep(0)
        worker.ended.set_result(End(-number))

    def signalled(number):
        signals.append((number, [*caplog.messages]))
        ending.append(asyncio.create_task(end(number)))

    monkeypatch.setattr(module.asyncio, "wait", hurried)  # type: ignore[attr-defined]
    ending: list[Any] = []
    worker.signal, worker.is_frozen = signalled, lambda: True
    assert await one.it._end_of(worker, 3) == End(-signal.SIGKILL)
    assert signals == [(signal.SIGKILL, ["worker 3 is frozen, it is ended and restarted"])], (
        "before its end, which has a line of its own"
    )
    assert len(caplog.messages) == 1


async def test_worker_that_starts_again_serves_what_it_can(made):
    one = made()
    assert one.it._configs_now() == CONFIGS
    one.it._all_ready.set()
    model, *others = one.it._configs_now()
    assert (model, others) == (ModelConfig(allow_missing=True), [*CONFIGS[1:]])


async def test_state_is_that_of_all_that_are_ready(made):
    one = made()
    reports = [
        report_of(stuck_models=frozenset({"a"}), waiting={"m/2": "why"}, missing={"b": "no file"}),
        report_of(stuck_models=frozenset({"c"})), None,
    ]  # fmt: skip
    workers = [SimpleNamespace(report=each, is_serving=True) for each in reports]
    with one.it._lock:
        for place, worker in enumerate(workers):
            one.it._workers[place] = worker
    reasons = {"m/2": "why", "b": "no file"}
    assert one.it._state() == Readiness(True, frozenset({"a", "c"}), reasons)
    workers[1].is_serving = False
    assert one.it._state() == Readiness(False, frozenset({"a", "c"}), reasons)
    workers[1].is_serving, one.it._is_draining = True, True
    assert one.it._state() == Readiness(False, frozenset({"a", "c"}), reasons)


@pytest.mark.parametrize(("fewer", "is_alone"), [(1, False), (0, True)])
async def test_version_whose_rows_depend_on_one_another_runs_alone(made, fewer, is_alone):
    counts = ModelCounts()
    counts.num_mismatches = MOST_BATCHES - fewer
    one = made()
    worker = SimpleNamespace(report=report_of(counts=Counts({LABEL: counts})), orders=[])
    worker.order = worker.orders.append
    with one.it._lock:
        one.it._workers[0] = worker
    for _ in range(3):
        one.it._follow_mismatches()
    alone = frozenset({number_of(LABEL)}) if is_alone else frozenset()
    assert worker.orders == [Orders({}, alone)] * bool(alone), "said once"


def worker_of(report=None):
    found = SimpleNamespace(report=report, signals=[], orders=[], is_serving=True)
    found.ended = asyncio.get_running_loop().create_future()
    found.signal, found.order = found.signals.append, found.orders.append
    return found


def with_workers(one, *workers):
    with one.it._lock:
        for place, worker in enumerate(workers):
            one.it._workers[place] = worker


async def test_hang_up_is_passed_on_between_two_notices(made, monkeypatch):
    told: list[Any] = []
    monkeypatch.setattr(module, "notify", told.append)
    one = made()
    worker = worker_of()
    worker.signal = told.append
    with_workers(one, worker)
    one.it._reload()
    assert told == ["RELOADING=1", signal.SIGHUP, "READY=1"]


@pytest.mark.parametrize(
    ("codes", "is_drained"),
    [((0, 0), True), ((0, -15), True), ((0, 1), False), ((-9, 0), False)],
)
async def test_drain_waits_for_all_workers(codes, is_drained, made, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(module, "notify", told.append)
    one = made(workers=2)
    closed: list[str] = []
    one.port.socket = SimpleNamespace(close=lambda: closed.append("port"))
    workers = [worker_of(), worker_of()]
    with_workers(one, *workers)
    draining = asyncio.create_task(one.it._drain(asyncio.Queue()))
    for _ in range(5):
        await asyncio.sleep(0)
    assert [each.signals for each in workers] == [[signal.SIGTERM]] * 2
    assert (told, closed, one.it._is_draining) == (["STOPPING=1"], ["port"], True)
    workers[0].ended.set_result(End(codes[0]))
    await asyncio.sleep(0)
    assert not draining.done()
    workers[1].ended.set_result(End(codes[1]))
    assert await draining is is_drained


@pytest.mark.parametrize("why", ["second signal", "a worker hangs"])
async def test_drain_that_lasts_too_long_is_ended_by_force(why, made, monkeypatch, caplog):
    waits: list[float] = []
    one = made(drain_s=7.0)
    one.port.socket = SimpleNamespace(close=lambda: None)
    with_workers(one, worker_of())
    stops: asyncio.Queue[int] = asyncio.Queue()
    wait = asyncio.wait

    async def hurried(tasks, *, timeout, **options):
        waits.append(timeout)
        return await wait(tasks, timeout=20.0 if why == "second signal" else 0.0, **options)

    monkeypatch.setattr(module.asyncio, "wait", hurried)  # type: ignore[attr-defined]
    if why == "second signal":
        stops.put_nowait(signal.SIGTERM)
    assert await one.it._drain(stops) is False
    assert caplog.messages == [f"stopped by force: {why}"]
    assert waits == [12.0], "five seconds more than workers have"


async def test_worker_that_is_ready_ends_pauses_once_all_are(made, caplog):
    caplog.set_level("INFO")
    one = made(workers=2)
    number = number_of(LABEL)
    one.it._crashes.note(number, time.monotonic())
    workers = [worker_of(report_of()), worker_of()]
    with_workers(one, *workers)
    one.it._count_ready()
    assert (one.it._all_ready.is_set(), workers[0].orders) == (False, [])
    workers[1].report = report_of()
    one.it._count_ready()
    assert one.it._all_ready.is_set()
    assert [each.orders for each in workers] == [[Orders({}, frozenset())]] * 2
    assert caplog.messages == []
    one.it._count_ready()
    assert caplog.messages == ["worker restarted, 2 serving"]


@pytest.mark.parametrize("way", ["fails", "drains", "hangs"])
async def test_no_worker_outlives_its_supervisor(way, made, monkeypatch):
    stops: asyncio.Queue[int] = asyncio.Queue()
    handled: list[Any] = []
    monkeypatch.setattr(module, "signals", SimpleNamespace(
        install=lambda: handled.append("install"), queue_stops=lambda: stops,
        on_hang_up=handled.append,
    ))  # fmt: skip
    one = made()
    worker = worker_of()
    with_workers(one, worker)

    async def serve():
        if way == "fails":
            raise Unavailable("it fails")
        await asyncio.Event().wait()

    async def drain(given):
        assert given is stops
        handled.append("drain")
        return way == "drains"

    monkeypatch.setattr(one.it, "_serve", serve)
    monkeypatch.setattr(one.it, "_drain", drain)
    if way == "fails":
        with pytest.raises(Unavailable, match=r"^it fails$"):
            await one.it.run()
    else:
        stops.put_nowait(signal.SIGTERM)
        assert await one.it.run() is (way == "drains")
    assert handled == ["install", one.it._reload, *["drain"] * (way != "fails")]
    assert worker.signals == [signal.SIGKILL]


async def test_all_places_end_with_the_first_that_fails(made, monkeypatch):
    async def keep(place):
        kept.append(place)
        if place == 1:
            raise Unavailable("it fails")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            kept.append(("ended", place))
            raise

    async def fed(beat):
        await beat()
        await keep("watchdog")

    async def announced():
        await keep("announced")

    kept: list[Any] = []
    monkeypatch.setattr(module, "keep_watchdog_fed", fed)
    one = made(workers=3)
    monkeypatch.setattr(one.it, "_keep", keep)
    monkeypatch.setattr(one.it, "_announce", announced)
    with pytest.raises(Unavailable, match=r"^it fails$"):
        await one.it._serve()
    for _ in range(5):
        await asyncio.sleep(0)
    begun = [each for each in kept if each != 1 and not isinstance(each, tuple)]
    assert {*begun} >= {"announced", 0, 2}
    assert {each for each in kept if isinstance(each, tuple)} == {("ended", each) for each in begun}


@pytest.mark.parametrize(("has_http", "has_metrics"), [(True, True), (False, False)])
async def test_ready_line_says_how_many_workers_there_are(has_http, has_metrics, made, monkeypatch):
    said: list[Any] = []
    monkeypatch.setattr(module, "announce", lambda *args, **more: said.append((args, more)))
    one = made(workers=2, port=7, http_host="::1", http_port=8 if has_http else None)
    with_workers(one, worker_of(report_of()), worker_of(report_of()))
    served: list[Any] = []
    if has_metrics:
        one.it._exporter = SimpleNamespace(address="m:9", serve=lambda *args: served.append(args))
    one.it._all_ready.set()
    await one.it._announce()
    (((report, *facts), more),) = said
    assert report.num_calls == 4
    assert facts == ["127.0.0.1:7", "m:9" if has_metrics else "off", one.it._config]
    assert more == {"workers": 2} | ({"http": "http://[::1]:8"} if has_http else {})
    assert served == [(one.it.report, one.it._state)] * has_metrics


@pytest.mark.parametrize("has_http", [True, False])
async def test_workers_have_the_ports_that_are_reserved(has_http, monkeypatch):
    """Nobody else chooses another one, and the page is the supervisor's."""
    reserved: list[Any] = []
    opened: list[Any] = []
    given: list[Any] = []

    @contextmanager
    def reserved_port(host, port, number):
        reserved.append((host, port, number))
        name = host, 5000 + len(reserved)
        yield SimpleNamespace(socket=SimpleNamespace(getsockname=lambda: name))
        reserved.append("freed")

    @contextmanager
    def exporting(config):
        opened.append(config)
        yield "exporter"
        opened.append("closed")

    class Stub:
        def __init__(self, *args):
            given.extend(args)

        async def run(self):
            assert opened[1:] == reserved[1 + has_http :] == []
            return True

    for name, value in (("reserved_port", reserved_port), ("exporting", exporting),
                        ("Supervisor", Stub), ("is_activated", lambda: False)):  # fmt: skip
        monkeypatch.setattr(module, name, value)
    config = ServerConfig(
        host="::1", port=0, http_host="::2", http_port=8080 if has_http else None, metrics_port=9,
        usual_ports=("http_port",), workers=3,
    )  # fmt: skip
    model, batching, _ = CONFIGS
    assert await module.supervise(model, batching, config) is True
    asked = [("::1", 0, 3), *[("::2", 8080, 3)] * has_http]
    assert reserved == [*asked, *["freed"] * len(asked)]
    assert opened == [config, "closed"]
    ports, configs, own, exporter = given
    assert own == replace(config, port=5001, http_port=5002 if has_http else None, usual_ports=())
    assert [*ports] == [("::1", 5001), *[("::2", 5002)] * has_http]
    assert configs == (model, batching, replace(own, metrics_port=None))
    assert exporter == "exporter"


async def test_socket_of_systemd_is_for_one_process(monkeypatch):
    monkeypatch.setattr(module, "is_activated", lambda: True)
    text = "^a socket of systemd's serves one process: leave out --workers$"
    with pytest.raises(ConfigurationError, match=text):
        await module.supervise(*CONFIGS)


async def test_workers_that_have_served_have_a_minute_to_come_back(made, monkeypatch):
    """Such as on a machine that has no memory for them now; at a start they are given up early."""
    one = made({"report": report_of()})
    clock = SimpleNamespace(monotonic=lambda: 1000.0 + 10.0 * len(one.pauses))
    monkeypatch.setattr(module, "time", clock)
    one.it._all_ready.set()
    one.it._outage_since_s = 0.0  # of its start, long ago
    with pytest.raises(Unavailable, match="worker 0 died 7 times in a row"):
        await one.it._keep(0)
    assert len(one.workers) == 7
