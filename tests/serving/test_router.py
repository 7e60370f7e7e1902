"""Models by name, versions, the canary's share, models that go, and what versions run on."""

import threading
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

import serving
from digit_classifier.methods import route_of
from serving.batching.batcher import Batcher
from serving.config import BatchingConfig
from serving.errors import ModelNotFound, Unavailable
from serving.handlers.model import with_handler
from serving.handlers.signature import HandlerSignature
from serving.model.loaded import LoadedModel
from serving.model.settings import ModelSettings
from serving.model.verdicts import Verdict
from serving.router import Router, ServedVersion, _record
from serving.system.crash_record import number_of
from serving.system.host import Host
from serving.telemetry.metrics import HandlerUsage
from serving.tensors import Signature, Tensor, TensorSignature
from serving.versions.served import Canary, ModelVersions
from tests.support.fakes import (
    MANIFEST,
    FakeCaller,
    FakeClock,
    FakeModel,
    FakeOwner,
    FakeRequest,
    GatedModel,
    joined,
    versions_of,
)
from tests.support.locks import KeptLock, handed_in, waits


def loaded(version, engine=None, inline_rows=64):
    """A version of digits."""
    manifest = replace(MANIFEST, version=version)
    return LoadedModel(engine or FakeModel(), manifest, "fp32", inline_rows)


def served(*versions, default="", canary=None, **labels):
    """A state of digits."""
    models = {version: loaded(version) for version in versions}
    share = Canary(*canary) if canary else None
    return ModelVersions("digits", models, default or versions[0], labels, share)


def owner_of(versions):
    router = Router(BatchingConfig())
    router.change("digits", versions)
    return router, FakeOwner(router, FakeClock())


def version_of(outcome):
    assert isinstance(outcome, tuple), outcome
    return str(outcome[0])


def test_version_and_label_of_a_request_win():
    router, owner = owner_of(served("4", "3", default="3", newest="4"))
    for asked, version in (("4", "4"), ("3", "3"), ("newest", "4")):
        owner.batcher = router.find("digits").find(asked)
        assert version_of(owner.submit(1).outcome) == version
    with pytest.raises(ModelNotFound, match="no version '9', only 4, 3, newest"):
        router.find("digits").find("9")


@pytest.mark.parametrize("is_stream", [False, True])
def test_canary_gets_its_share(is_stream):
    router, owner = owner_of(served("4", "3", default="3", canary=("4", 0.2)))
    counts: Counter[str] = Counter()
    for _ in range(3000):
        request = owner.submit(1, is_stream=is_stream)
        counts[version_of(request.outcome)] += 1
    assert abs(counts["4"] - 600) < 3 * (3000 * 0.2 * 0.8) ** 0.5 + 1
    for version, number in counts.items():
        assert router.metrics.snapshot().models["digits", version].num_answered == number


def test_rollback_is_one_change_and_loses_no_call():
    first, second = served("4", "3"), served("4", "3", default="3")
    second = replace(second, versions=first.versions)
    router, owner = owner_of(first)
    outcomes = []
    for number in range(20):
        router.change("digits", second if number % 2 else first)
        outcomes.append(version_of(owner.submit(1).outcome))
    assert outcomes == ["4", "3"] * 10
    assert len(router.served) == 2, "the versions keep their batchers"


def test_version_that_goes_finishes_what_it_accepted():
    engine = GatedModel("3")
    old = ModelVersions("digits", {"3": loaded("3", engine, inline_rows=0)}, "3")
    router, owner = owner_of(old)
    request = owner.submit(1)
    engine.wait_until_running()
    router.change("digits", served("4"))
    router.prune()
    assert len(router.served) == 2
    assert version_of(owner.submit(2).outcome) == "4"
    engine.open()
    owner.wait(request)
    assert version_of(request.outcome) == "3"
    router.prune()
    assert [each.model.version for each in router.served] == ["4"]


def other_signature():
    signature = Signature((16, 16), 3)
    manifest = replace(MANIFEST, signature=signature)
    engine = FakeModel()
    engine.tensors = signature.tensors
    return ModelVersions("digits", {"1": LoadedModel(engine, manifest, "fp32", 64)}, "1")


@pytest.mark.parametrize("successor", [None, other_signature()])
def test_calls_recognised_as_ones_for_a_model_that_went_are_told_to_come_again(successor):
    router, owner = owner_of(served("1"))
    router.change("digits", successor)
    owner.work()
    assert owner.num_forgotten == 1, "at the change"
    request = owner.submit(1)
    assert isinstance(request.outcome, Unavailable if successor else ModelNotFound)
    assert owner.num_forgotten == 2, "once more for the calls between"
    assert set(router.routes) == ({"digits"} if successor else set())


def test_classifier_of_digits_is_the_one_of_this_name_or_the_only_one():
    router = Router(BatchingConfig())
    assert route_of(router) is None
    router.change("mnist", served("1"))
    assert route_of(router) is router.find("mnist")
    router.change("letters", other_signature())
    assert route_of(router) is None
    router.change("digits", served("1"))
    assert route_of(router) is router.find("digits")


def test_models_do_not_share_a_queue():
    engine = GatedModel()
    router, owner = owner_of(served("1"))
    slow = {"1": loaded("1", engine, inline_rows=0)}
    router.change("slow", ModelVersions("slow", slow, "1"))
    digits, owner.batcher = owner.batcher, router.find("slow")
    waiting = [owner.submit(number) for number in range(10)]
    engine.wait_until_running()
    owner.batcher = digits
    assert owner.submit(7).digits == [7]
    engine.open(1000)
    owner.wait(*waiting)
    counts = router.metrics.snapshot().models
    rows = {label: each.num_rows for label, each in counts.items()}
    assert rows == {("digits", "1"): 1, ("slow", "1"): 10}
    router.close()


def test_streams_wait_while_the_canary_has_no_room():
    canary = ("4", 1.0)
    router, owner = owner_of(served("4", "3", default="3", canary=canary))
    router.batching = BatchingConfig(queue_capacity=8, max_request_rows=8)
    router.change("digits", served("6", "5", default="5", canary=("6", 1.0)))
    route = router.find("digits")
    for number in range(4):
        assert route.room_for_stream(1)
        route.add(FakeRequest(number).group)
    assert not route.room_for_stream(1)
    owner.work()
    assert route.room_for_stream(1)


def test_layouts_are_read_again_when_another_model_is_the_classifier_of_digits():
    router = Router(BatchingConfig())
    router.change("mnist", served("1"))
    owner = FakeOwner(router.find("mnist").find("1"), FakeClock())
    router.attach(owner)
    router.change("mnist", served("2"))
    owner.work()
    assert owner.num_forgotten == 0
    router.change("digits", served("1"))
    owner.work()
    assert owner.num_forgotten == 1


def test_version_that_was_closed_tells_late_calls_to_come_again():
    router, owner = owner_of(served("3"))
    old = router.find("digits").find("3")
    router.change("digits", served("4"))
    router.prune()
    owner.batcher = old
    assert isinstance(owner.submit(1).outcome, Unavailable)


def test_calls_that_a_full_canary_leaves_to_the_default_are_no_failures():
    engine = GatedModel("4")
    versions = served("4", "3", default="3", canary=("4", 1.0))
    versions = replace(versions, versions=versions.versions | {"4": loaded("4", engine, 0)})
    router = Router(BatchingConfig(max_batch_size=1, queue_capacity=2, max_request_rows=2))
    router.change("digits", versions)
    owner = FakeOwner(router, FakeClock())
    requests = [owner.submit(1)]
    engine.wait_until_running()
    requests += [owner.submit(1) for _ in range(20)]
    engine.open(20)
    owner.wait(*requests)
    answered = Counter(version_of(each.outcome) for each in requests)
    assert answered["3"] > 0
    counted = router.metrics.snapshot().models
    assert counted["digits", "4"].num_failed == 0, "the default took them"
    assert {name: counted["digits", name].num_answered for name in answered} == answered


# How calls are divided


class Scripted:
    """Random numbers that the test chose."""

    def __init__(self, *numbers):
        self.numbers = [*numbers]

    def random(self):
        return self.numbers.pop(0)


def calls_of(*values):
    """Calls of one caller, and as one group."""
    caller = FakeCaller()
    calls = [FakeRequest(value, caller=caller) for value in values]
    return calls, joined(calls)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([0.2, 0.5, 0.9], {1: "3", 2: "3", 3: "3"}),  # a share of 0.2 is from 0 to it, without it
        ([0.5, 0.19, 0.9], {1: "4", 2: "3", 3: "3"}),
        ([0.0, 0.1, 0.9], {1: "4", 2: "4", 3: "3"}),
        ([0.0, 0.1, 0.19], {1: "4", 2: "4", 3: "4"}),
    ],
)
def test_each_call_of_a_group_is_drawn_and_the_first_are_the_canarys(numbers, expected, is_stream):
    host: Any = Host(clock=FakeClock(), random=Scripted(*numbers))
    router = Router(BatchingConfig(), host=host)
    router.change("digits", served("4", "3", default="3", canary=("4", 0.2)))
    owner, route = FakeOwner(router, FakeClock()), router.find("digits")
    calls, group = calls_of(1, 2, 3)
    assert (route.add if is_stream else route.submit)(group) == (None if is_stream else 3)
    owner.work()
    assert {call.digits[0]: version_of(call.outcome) for call in calls} == expected


@pytest.mark.parametrize(("share", "taken"), [(0.0, 4), (1.0, 8)])
def test_calls_that_find_no_room_are_neither_taken_nor_answered(share, taken):
    """Each takes twice its capacity from a caller that has no others waiting; the default, then,
    what the canary does not."""
    router = Router(BatchingConfig(max_batch_size=1, queue_capacity=2, max_request_rows=2))
    router.change("digits", served("4", "3", default="3", canary=("4", share)))
    owner, (calls, group) = FakeOwner(router, FakeClock()), calls_of(*range(9))
    assert router.find("digits").submit(group) == taken
    assert router.num_waiting == taken
    assert router.is_busy
    owner.work()
    assert [call.outcome is None for call in calls] == [False] * taken + [True] * (9 - taken)
    assert not router.num_waiting
    assert not router.is_busy
    models = router.metrics.snapshot().models
    failed = {label[1]: each.num_failed for label, each in models.items() if each.num_failed}
    assert failed == {"3": 9 - taken}, "the last of them has refused them"


def test_rows_that_wait_for_a_model_that_was_replaced_count_for_its_version():
    router, owner = owner_of(served("4", "3"))
    for values in ((1, 2, 3), (4, 5)):
        router.find("digits").submit(calls_of(*values)[1])
        router.change("digits", served("4", "3"))
    assert router.queues()["digits", "4"].num_rows == 5
    assert router.queues()["digits", "3"].num_rows == 0
    owner.work()
    assert router.queues()["digits", "4"].num_rows == 0


@pytest.mark.parametrize("is_stream", [False, True])
def test_route_kept_by_a_caller_has_no_canary_once_it_has_none(is_stream):
    router, owner = owner_of(served("4", "3", default="3", canary=("4", 1.0)))
    route = router.find("digits")
    kept = route.submit, route.add
    router.change("digits", served("4", "3", default="3"))
    (call,), group = calls_of(1)
    kept[is_stream](group)
    owner.work()
    assert version_of(call.outcome) == "3"
    router.change("digits", None)
    (call,), group = calls_of(1)
    kept[is_stream](group)
    assert isinstance(call.outcome, ModelNotFound)
    assert route.room_for_stream(1) == 1, "its messages are to be told so"


def test_route_has_the_facts_of_its_default():
    router, _ = owner_of(served("4", "3", default="3", canary=("4", 0.5), old="3"))
    route = router.find("digits")
    model = route.versions.versions["3"]
    assert (route.name, route.label, route.model) == ("digits", ("digits", "3"), model)
    assert (route.tensors, route.signature) == (model.tensors, model.signature)
    assert [*route.served] == ["4", "3"]
    facts = route.describe()
    assert (facts.name, facts.version, facts.versions) == ("digits", "3", ("4", "3"))
    assert (facts.default_version, facts.canary_version) == ("3", "4")
    assert [route.describe(each).version for each in ("4", "old")] == ["4", "3"]
    newest = route.describe("4")
    assert (newest.default_version, newest.canary_version, newest.not_served) == ("3", "4", {})
    reasons = {"5": "corrupt"}
    router.change("digits", replace(route.versions, reasons=reasons))
    assert route.describe("4").not_served == reasons
    router.change("digits", replace(route.versions, canary=None))
    assert route.describe().canary_version is None
    with pytest.raises(ModelNotFound):
        route.describe("9")


@pytest.mark.parametrize(
    ("there", "name", "text"),
    [
        ("", "x", "no model 'x': this server serves none"),
        ("ab", "x", "no model 'x': this server serves 'a', 'b'"),
        ("abcdefghij", "a" * 80, f"no model '{'a' * 80}': this server serves 'a', 'b', 'c', 'd', "
                                 "'e', 'f', 'g', 'h'"),
        ("a", "b" * 81, f"no model '{'b' * 80}'...: this server serves 'a'"),
    ],
)  # fmt: skip
def test_unknown_name_is_shown_with_those_that_there_are(there, name, text):
    router = Router()
    for each in there:
        router.change(each, versions_of(loaded("1"), each))
    with pytest.raises(ModelNotFound) as refused:
        router.find(name)
    assert str(refused.value) == text


# Versions whose runs have ended processes


def test_blocked_version_is_refused_until_it_is_not():
    clock = FakeClock()
    router = Router(BatchingConfig(), host=Host(clock=clock))
    router.change("digits", served("4", "3"))
    router.change("letters", served("4"))
    owner = FakeOwner(router, clock)
    numbers = {each: number_of(("digits", each)) for each in "43"}
    clock.advance(100.0)

    def outcomes():
        found = []
        for name, version in (("digits", ""), ("digits", "3"), ("letters", "")):
            owner.batcher = router.find(name).find(version)
            outcome = owner.submit(1).outcome
            found.append(str(outcome) if isinstance(outcome, Unavailable) else version_of(outcome))
        return found

    text = "model digits version {} has ended a server process: it is not run for {} s"
    router.block({numbers["3"]: 107.4, number_of(("nobody", "4")): 107.4})
    assert outcomes() == ["4", text.format(3, 7), "4"]
    assert router.blocked_models == frozenset(), "only of the default"
    router.block({numbers["4"]: 100.2})
    assert outcomes() == [text.format(4, 1), "3", "4"]
    assert router.blocked_models == {"digits"}
    assert [router.find(name).is_blocked for name in ("digits", "letters")] == [True, False]
    router.change("digits", served("4"))  # loaded again, as another object
    assert router.blocked_models == {"digits"}
    router.block({})
    router.change("digits", served("4", "3"))
    assert outcomes() == ["4", "3", "4"]
    assert router.blocked_models == frozenset()
    route = router.find("digits")
    router.change("digits", None)
    assert not route.is_blocked


def test_route_that_is_gone_takes_messages_though_its_canary_was_full(monkeypatch):
    """Each is to be told so: a stream that waits for room would wait for ever."""
    router, _ = owner_of(served("4", "3", default="3", canary=("4", 1.0)))
    route = router.find("digits")
    monkeypatch.setattr(Batcher, "room_for_stream", lambda batcher, num_rows: 0)
    assert route.room_for_stream(1) == 0
    router.change("digits", None)
    assert route.room_for_stream(1) == 1


@pytest.mark.parametrize(("options", "expected"), [({}, True), ({"counts_calls": False}, False)])
def test_calls_of_a_model_inside_a_handler_are_not_counted_twice(options, expected, monkeypatch):
    found = []
    monkeypatch.setattr("serving.router.Batcher", lambda *facts, **more: found.append(more))
    Router().batcher_of("m", loaded("1"), **options)
    assert found == [{"counts_calls": expected}]


# What versions run on


@pytest.mark.parametrize(
    ("cores", "num_servers", "most_runs", "settings", "num_runners"),
    [
        (8, 1, None, {}, 8), (8, 2, None, {}, 4), (8, 1, None, {"num_threads": 3}, 2),
        (8, 2, None, {"num_threads": 2}, 2), (2, 4, None, {}, 1), (1, 1, None, {}, 1),
        (8, 1, 1, {}, 1), (8, 1, 3, {"instances": 5}, 3), (8, 1, None, {"instances": 5}, 5),
    ],
)  # fmt: skip
def test_version_has_as_many_runners_as_cores_are_its_own(
    cores, num_servers, most_runs, settings, num_runners, monkeypatch
):
    made = []

    class Noted(Batcher):
        def __init__(self, *arguments, **options):
            made.append(arguments)
            super().__init__(*arguments, **options)

    monkeypatch.setattr("serving.router.usable_cores", lambda: cores)
    monkeypatch.setattr("serving.router.Batcher", Noted)
    engine = FakeModel()
    engine.max_concurrent_runs = most_runs
    router = Router(num_processes=num_servers)
    model = replace(loaded("1", engine), settings=ModelSettings(max_batch_size=7, **settings))
    router.change("digits", versions_of(model))
    sizes = replace(BatchingConfig(), max_batch_size=7)
    (arguments,) = made
    assert arguments[:-1] == (model, sizes, router.metrics, num_runners, "digits", router.host)


class Handled:
    """A handler whose processes never come; it counts how many were wanted."""

    line, files = "", ()
    first_bytes = 1 << 30

    def __init__(self, *methods, **facts):
        kinds = {
            "inputs": {"x": facts.pop("kind", serving.Text())},
            "outputs": {"x": serving.Text()},
        }
        self.signature = HandlerSignature(name="H", methods=methods, **{**kinds, **facts})
        text = (Tensor("x", "BYTES", (-1,)),)
        self.tensors = TensorSignature(text, text, is_batchable=True)
        self.num_launched = self.num_closed = 0

    def take_first(self):
        return ()

    def launch(self, post, done):
        self.num_launched += 1

    def model(self, version="1"):
        found = with_handler(loaded(version), self)
        return found if self.signature.needs_model else replace(found, engine=None, inside=None)


@pytest.mark.parametrize(
    ("cores", "asked", "num_servers", "number"),
    [(8, 0, 1, 7), (1, 0, 1, 1), (8, 3, 1, 3), (8, 0, 2, 3), (8, 1, 4, 1), (2, 0, 16, 1),
     (2, 0, 1, 1), (2, 0, 2, 1), (2, 4, 1, 4)],
)  # fmt: skip
def test_handler_has_a_process_for_each_core_but_one(
    cores, asked, num_servers, number, monkeypatch
):
    monkeypatch.setattr("serving.router.usable_cores", lambda: cores)
    router = Router(BatchingConfig(handler_processes=asked), num_servers)
    handler = Handled("predict")
    router.change("digits", versions_of(handler.model()))
    FakeOwner(router, FakeClock()).work()
    assert handler.num_launched == number


@pytest.mark.parametrize(("mebibytes", "number"), [(256, 2), (257, 1)])
def test_handler_has_a_second_process_on_two_cores_if_it_is_small(
    mebibytes, number, monkeypatch, caplog
):
    caplog.set_level("INFO")
    monkeypatch.setattr("serving.router.usable_cores", lambda: 2)
    router, handler = Router(), Handled("predict")
    handler.first_bytes = mebibytes << 20
    router.change("digits", versions_of(handler.model()))
    FakeOwner(router, FakeClock()).work()
    assert handler.num_launched == number
    expected = "model digits: its handler has one process, which takes 257 MiB after setup; "
    assert (expected in caplog.text) == (number == 1)


@pytest.mark.parametrize(
    ("methods", "has_network"), [(("predict",), False), (("preprocess", "postprocess"), True)]
)
def test_handler_has_the_model_between_its_methods_and_no_other(methods, has_network, monkeypatch):
    made = []
    counted = []

    def batcher(*arguments, counts_calls):
        made.append(arguments)
        counted.append(counts_calls)

    monkeypatch.setattr("serving.router.Batcher", batcher)
    router, handler = Router(), Handled(*methods)
    router.change("digits", versions_of(handler.model()))
    assert [type(model) for model, *_ in made] == [LoadedModel] * has_network
    assert counted == [False] * has_network, "the handler's calls are counted"
    assert [label for label, _ in router.handlers().items()] == [("digits", "1")]


def test_usage_is_that_of_handlers_alone():
    router = Router()
    router.change("plain", versions_of(loaded("1"), "plain"))
    router.change("handled", versions_of(Handled("predict").model("2"), "handled"))
    router.attach(FakeOwner(router.find("plain").find("1"), FakeClock()))
    assert router.handlers() == {("handled", "2"): HandlerUsage()}


@pytest.mark.parametrize(
    ("options", "keeps"), [((), False), (("parameters",), False), (("metadata", "state"), True)]
)
def test_headers_are_kept_while_a_handler_wants_them(options, keeps):
    router = Router()
    assert not router.keeps_headers
    router.change("plain", versions_of(loaded("1"), "plain"))
    assert not router.keeps_headers
    router.change("handled", versions_of(Handled("predict", options=options).model(), "handled"))
    assert router.keeps_headers == keeps
    router.change("handled", None)
    assert not router.keeps_headers


class Decoders:
    """Notes how the processes are made, and what they are asked to do."""

    def __init__(self, number):
        self.number, self.modules = number, []
        self.jobs = []
        self.is_closed = False

    def prepare(self, modules):
        self.modules += modules

    def submit(self, *job, limits):
        self.jobs.append((job, limits))

    def close(self):
        self.is_closed = True


def test_handlers_share_the_processes_that_read_what_strangers_send(monkeypatch):
    made = []

    def new(*arguments):
        made.append(Decoders(*arguments))
        return made[-1]

    monkeypatch.setattr("serving.router.ProcessPool", new)
    router = Router()
    (decoders,) = made
    router.change("digits", versions_of(Handled("predict").model(), "digits"))
    for name in ("a", "b"):
        handler = Handled("predict", kind=serving.Picture())
        router.change(name, versions_of(handler.model(), name))
    assert decoders.number == 3
    assert not decoders.jobs, "it would not import what others need"
    FakeOwner(router, FakeClock())
    assert {"serving.handlers.pictures", "serving.pictures.decoder"} <= {*decoders.modules}
    assert decoders.jobs == [(("", int), (1280 << 20, 10.0))], "it starts before the first call"
    assert not decoders.is_closed
    router.close()
    assert decoders.is_closed


def test_handler_finds_the_models_of_its_server_by_name():
    router = Router()
    router.change("digits", versions_of(loaded("1")))
    route, tensors = router._receiver("digits")
    assert route is router.find("digits")
    assert tensors == route.tensors
    with pytest.raises(ModelNotFound):
        router._receiver("nobody")


# Those that end


class Closing:
    """A version that is gone, and its entry."""

    num_closed = 0

    def __init__(self, *, is_busy):
        self.entry, self.model, self.is_busy = self, self, is_busy

    def close(self):
        self.num_closed += 1


def test_batchers_are_closed_once_their_calls_are_answered_and_no_others():
    router, _ = owner_of(served("1"))
    (serves,) = router.served
    busy, idle, stays = (
        Closing(is_busy=True),
        Closing(is_busy=False),
        router.find("digits").served["1"],
    )
    ended: list[Closing] = []
    router.on_end = ended.append
    router.served = (*router.served, busy, idle)
    router.prune()
    assert ended == [idle], "its last call is answered"
    assert router.served == (serves, busy)
    assert (busy.num_closed, idle.num_closed) == (0, 1)
    assert not stays.is_blocked
    busy.is_busy = False
    router.prune()
    assert (router.served, busy.num_closed) == ((serves,), 1)
    router.close()
    (call,), group = calls_of(1)
    router.find("digits").submit(group)
    assert isinstance(call.outcome, Unavailable)


def test_layouts_are_forgotten_where_the_model_is_another_one_and_not_for_a_version():
    router, owner = owner_of(served("1"))
    for versions, number in ((served("2"), 0), (other_signature(), 1), (None, 2), (None, 2)):
        router.change("digits", versions)
        owner.work()
        assert owner.num_forgotten == number


def test_batchers_belong_to_the_thread_that_is_attached_and_later_ones_too():
    router, owner = owner_of(served("1"))
    router.change("letters", served("2"))
    assert [each.entry.owner for each in router.served] == [owner, owner]


def test_looks_and_the_loop_wait_for_one_another():
    """A look changes the versions on its thread, and the loop closes those that are gone."""
    lock = KeptLock()
    with handed_in(lock):
        router = Router(BatchingConfig())
    router.change("digits", served("4"))
    assert waits(lock, lambda: router.change("digits", served("5")))
    assert waits(lock, router.prune)
    assert [each.model.version for each in router.served] == ["4"]


def test_version_that_ends_asks_its_callers_to_try_again_before_its_runners_end():
    """Calls that wait when its entry is closed would get an error that is not retried."""
    happened: list[str] = []
    entry: Any = SimpleNamespace(
        refuse=lambda reason: happened.append("refused"), close=lambda: happened.append("closed")
    )
    model: Any = None
    served = ServedVersion(model, entry)
    served.close()
    assert happened == ["refused", "closed"]
    served.block(None)
    assert happened == ["refused", "closed"], "it is not opened again"


@pytest.mark.parametrize(
    ("device", "relative"),
    [("cpu", {2: 1e-2, 4: 1e-4, 8: 1e-6}), ("cuda", {2: 1e-2, 4: 1e-2, 8: 1e-3})],
)
def test_answers_of_batches_are_compared_as_closely_as_the_device_rounds(device, relative):
    engine: Any = FakeModel()
    engine.device = device
    host = Host()
    model, router = loaded("1", engine), Router(host=host)
    found = router._net(model, BatchingConfig())
    assert found is not None
    assert (found.random, found.is_proved) == (host.checks_random, model.is_proved)
    assert found.digest == model.manifest.digests["model.onnx"]
    assert (dict(found.closeness.relative), found.closeness.step) == (relative, model.output_step)
    assert router._net(model, BatchingConfig(spot_checks="off")) is None


def test_verdict_of_a_server_is_kept_for_the_next_start(monkeypatch):
    """On a thread that holds up neither calls nor the end of the program."""
    done: list[Any] = []

    class Thread(threading.Thread):
        def start(self):
            done.append(self.daemon)
            self.run()

    monkeypatch.setattr("serving.router.verdicts.keep", lambda *facts: done.append(facts))
    monkeypatch.setattr(threading, "Thread", Thread)
    _record("", "rows depend on others")
    assert done == [], "a model without a key has no place there"
    _record("key", "rows depend on others")
    is_daemon, (key, verdict) = done
    assert (is_daemon, key, verdict) == (True, "key", Verdict("rows depend on others"))
