"""Models by name, versions, the canary's share, and models that go."""

from collections import Counter
from dataclasses import replace

import pytest

from digit_classifier.methods import route_of
from serving.catalog import Canary, ModelVersions
from serving.config import BatchingConfig
from serving.errors import ModelNotFound, Unavailable
from serving.model.loaded import LoadedModel
from serving.router import Router
from serving.tensors import Signature
from tests.support.fakes import MANIFEST, FakeClock, FakeModel, FakeOwner, FakeRequest, GatedModel


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
    assert len(router.batchers) == 2, "the versions keep their batchers"


def test_version_that_goes_finishes_what_it_accepted():
    engine = GatedModel("3")
    old = ModelVersions("digits", {"3": loaded("3", engine, inline_rows=0)}, "3")
    router, owner = owner_of(old)
    request = owner.submit(1)
    engine.wait_until_running()
    router.change("digits", served("4"))
    router.prune()
    assert len(router.batchers) == 2
    assert version_of(owner.submit(2).outcome) == "4"
    engine.open()
    owner.wait(request)
    assert version_of(request.outcome) == "3"
    router.prune()
    assert [batcher.model.version for batcher in router.batchers] == ["4"]


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
