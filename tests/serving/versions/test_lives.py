"""Versions that come, go, half arrive, are refused and are loaded and unloaded, in any order."""

import json
import os
import shutil
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from serving.config import ModelConfig
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    ModelNotFound,
    ServingError,
    Unavailable,
)
from serving.model.loading import LoadOptions
from serving.model.settings import NO_SETTINGS
from serving.tensors import Tensor, TensorSignature
from serving.versions import catalog as catalog_module
from serving.versions import folder
from serving.versions.catalog import Catalog
from serving.versions.folder import ModelFolder
from serving.versions.served import Canary
from serving.versions.version import State
from tests.support.fakes import TIMEOUT_S
from tests.support.servers import wait_until

NAMES, NUMBERS = ("a", "b"), ("1", "2", "3", "4")
NUM_SEEDS, NUM_EVENTS = 60, 60
SIGNATURE = TensorSignature(
    (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 4)),), is_batchable=True
)
GOOD, DAMAGED, HALF, BUG = "good", "damaged", "half", "bug"


class Model(SimpleNamespace):
    """What serves a version: a model without a handler."""

    uses, files, is_around, is_as_its_graph = (), (), False, True
    tensors, signature, device = SIGNATURE, None, "cpu"
    __hash__, __eq__ = object.__hash__, object.__eq__

    def close(self): ...


class Loading:
    """Loads what a file says that it is."""

    def __init__(self, place, number, options):
        self._file, self._number = place / number / "model.onnx", number
        self.loaded = None

    def read(self):
        try:
            self._text = self._file.read_text()
        except OSError as err:
            raise CorruptModel(f"{self._number}: {err.strerror}") from err
        if self._text.startswith(HALF):
            raise CorruptModel(f"{self._number}: it is not all there")

    def judge(self):
        if self._text.startswith(BUG):
            raise RuntimeError("a bug")
        if self._text.startswith(DAMAGED):
            raise CorruptModel(f"{self._number}: it is damaged")
        self.loaded = Model(version=self._number, text=self._text)

    def build(self):
        """Do nothing, as the next."""

    def check(self): ...


class World:
    """A repository, its catalog, and a ledger of the models that callers have."""

    def __init__(self, root, seed):
        self.root, self.random, self.number = root, Random(seed), 0
        self.publish("a", "1", GOOD)
        self.catalog = Catalog(ModelConfig(models=root, device="cpu"))
        self.in_service = {id(each): each for each in self._models()}

    def publish(self, name, number, kind):
        self.number += 1
        where = self.root / name / number
        where.mkdir(parents=True, exist_ok=True)
        new = where / "model.onnx.new"
        new.write_text(f"{kind} {self.number}")
        os.replace(new, where / "model.onnx")

    def _models(self):
        return [
            each for served in self.catalog.models.values() for each in served.versions.values()
        ]

    def act(self):
        random = self.random
        name, number = random.choice(NAMES), random.choice(NUMBERS)
        event = random.choice(["publish"] * 6 + ["remove", "gone", "label", "unload", "load"])
        if event == "publish":
            self.publish(name, number, random.choice([GOOD, GOOD, DAMAGED, HALF, BUG]))
        elif event == "remove":
            shutil.rmtree(self.root / name / number, ignore_errors=True)
        elif event == "gone":
            shutil.rmtree(self.root / name, ignore_errors=True)
        elif event == "label" and (self.root / name).is_dir():
            file = self.root / name / "labels.json"
            if random.random() < 0.5:
                file.unlink(missing_ok=True)
            else:
                file.write_text(json.dumps({"stable": number}))
        elif event in ("unload", "load"):
            with suppress(ServingError):
                getattr(self.catalog, event)(name)

    def check(self):
        """Every version has one state, and one reason where it is not served."""
        catalog = self.catalog
        now = {id(each): each for each in self._models()}
        left = [each for key, each in self.in_service.items() if key not in now]
        for model in left:  # its last call is answered a while later
            assert catalog._leaving[model].state is State.LEAVING
            catalog.end_version(model)
            assert model not in catalog._leaving
        assert not catalog._leaving, "somebody leaves whom no caller has seen"
        self.in_service = now
        for name, each in catalog._folders.items():
            served = catalog.models.get(name)
            assert (each.served is None) is (served is None) or each.failure
            if served is None:
                assert each.is_unloaded or catalog.failures[name]
                continue
            assert name not in catalog.failures
            self.check_versions(each, served)

    def check_versions(self, each, served):
        for number, model in served.versions.items():
            assert model.text.startswith(GOOD)
            assert served.find(number) is model
            now = each.versions[number]
            holders = [now, each._before.get(number)]
            (holder,) = [one for one in holders if one is not None and one.model is model]
            assert holder.state is State.SERVING
            assert holder is now or now.state is State.REFUSED or each.trouble
        for number, reason in served.reasons.items():
            assert number not in served.versions
            with pytest.raises(ModelNotFound, match="is not served: "):
                served.find(number)
            if not each.trouble:  # else no look has ended since
                version = each.versions[number]
                assert version.state is not State.SERVING
                assert reason == version.reason
        assert served.default_version in served.versions


@pytest.fixture
def fakes(monkeypatch):
    monkeypatch.setattr(folder, "Loading", Loading)
    monkeypatch.setattr(folder, "unaccepted", lambda *_: {})


@pytest.mark.parametrize("seed", range(NUM_SEEDS))
def test_lives_go_by_the_table(seed, tmp_path, fakes):
    world = World(tmp_path, seed)
    for _ in range(NUM_EVENTS):
        world.act()
        if world.random.random() < 0.6:
            world.catalog.reload()
        world.check()


def test_newest_good_version_is_served_whatever_came_before(tmp_path, fakes):
    for seed in range(20):
        root = tmp_path / str(seed)
        world = World(root, seed)
        for _ in range(30):
            world.act()
            world.catalog.reload()
        (root / "a" / "labels.json").unlink(missing_ok=True)
        world.publish("a", "4", GOOD)
        world.publish("a", "3", DAMAGED)
        if "a" not in world.catalog.models:
            world.catalog.load("a")
        world.catalog.reload()
        served: Any = world.catalog.models["a"]
        assert served.default_version == "4"
        assert served.default.text == (root / "a" / "4" / "model.onnx").read_text()


def test_files_that_a_handler_imports_are_part_of_its_version(tmp_path, fakes, monkeypatch):
    words = tmp_path / "words.py"
    words.write_text("one")
    monkeypatch.setattr(Model, "files", (words,))
    catalog = World(tmp_path / "models", 0).catalog
    first = catalog.models["a"].default
    assert not catalog.reload()
    assert catalog.models["a"].default is first, "it was loaded again, and nothing has changed"
    words.write_text("another")
    assert catalog.reload()
    assert catalog.models["a"].default is not first


def test_versions_are_loaded_with_the_limits_of_the_server(tmp_path, fakes, monkeypatch):
    """A server that says nothing more: 512 rows, and one thread of a run that is alone."""
    asked = []

    class Noting(Loading):
        def __init__(self, place, number, options):
            asked.append((place.name, number, options))
            super().__init__(place, number, options)

    monkeypatch.setattr(folder, "Loading", Noting)
    World(tmp_path, 0)
    usual = LoadOptions(
        device="cpu", precision="fp32", settings=replace(NO_SETTINGS, num_threads=1),
        max_batch_size=512, limit_factor=1.0, is_described=False, max_bytes=2 << 30,
        most_threads=1, tries_file=True, name="a",
    )  # fmt: skip
    assert asked.pop() == ("a", "1", usual)
    config = ModelConfig(models=tmp_path, device="cpu", max_model_bytes=5000)
    Catalog(config, 7, 3)
    other = replace(usual, max_batch_size=7, max_bytes=5000, most_threads=3)
    assert asked.pop() == ("a", "1", other)
    Catalog(replace(config, threads=2, batch=("a=never",), precision="int8"), 7, 3)
    settings = replace(NO_SETTINGS, num_threads=2, batching="never")
    assert asked.pop() == (
        "a", "1", replace(other, most_threads=1, settings=settings, precision="int8"),
    )  # fmt: skip
    assert asked == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_look_that_is_ended_by_what_it_loads_is_not_the_last_of_its_model(
    tmp_path, fakes, monkeypatch
):
    """A library may end the thread, which is no error as others are."""
    world = World(tmp_path, 0)
    catalog = world.catalog
    catalog.patience_s = 0.01

    def leave(self):
        raise SystemExit

    world.publish("a", "2", GOOD)
    with monkeypatch.context() as patch:
        patch.setattr(Loading, "read", leave)
        assert not catalog.reload()
        wait_until(lambda: not named("catalog-look"))
    catalog.patience_s = TIMEOUT_S
    assert catalog.reload()
    assert catalog.models["a"].default_version == "2"


def named(name):
    return {each for each in threading.enumerate() if each.name == name}


def fail(threads):
    assert threads
    raise RuntimeError("the server fails")


def test_following_ends_with_its_block_however_that_ends(tmp_path, fakes):
    world, before = World(tmp_path, 0), named("catalog")
    with pytest.raises(RuntimeError, match="the server fails"), world.catalog.following():
        fail(threads := named("catalog") - before)
    (thread,) = threads
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    world.publish("a", "2", GOOD)
    assert not world.catalog.reload()
    assert world.catalog.models["a"].default_version == "1"


def test_repository_is_looked_at_by_itself_and_when_asked(tmp_path, fakes):
    world = World(tmp_path, 0)
    with world.catalog.following(0.001):
        world.publish("a", "2", GOOD)
        wait_until(lambda: world.catalog.models["a"].default_version == "2")
    world = World(tmp_path / "other", 0)
    with world.catalog.following():
        world.publish("a", "2", GOOD)
        requested(world.catalog)
        assert world.catalog.models["a"].default_version == "2"


def requested(catalog):
    """Ask for a look, and wait until it is done."""
    done = threading.Event()
    catalog.request(done.set)
    assert done.wait(TIMEOUT_S)


def test_trouble_is_logged_once_and_again_if_somebody_asks_for_a_look(
    tmp_path, fakes, caplog, monkeypatch
):
    world = World(tmp_path, 0)
    catalog, counts = world.catalog, Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    caplog.set_level("INFO", "serving.versions.catalog")

    def unread():
        raise OSError(5, "Input/output error")

    line = "reload failed, every version stays in service: OSError: [Errno 5] Input/output error"
    nothing = "nothing new: every version stays in service"
    with catalog.following():
        with monkeypatch.context() as patch:
            patch.setattr(catalog, "_paths", unread)
            assert not catalog.reload()
            assert not catalog.reload()
            assert caplog.messages == [line]
            for _ in range(2):
                requested(catalog)
        assert caplog.messages == [line, line, nothing, line, nothing]
        assert counts == {"unread": 3}
        caplog.clear()
        assert not catalog.reload()
        assert caplog.messages == ["the repository can be read again"]
        assert not catalog.reload()
        assert len(caplog.messages) == 1


def test_trouble_of_a_model_is_logged_once_and_again_if_somebody_asks_for_a_look(
    tmp_path, fakes, caplog
):
    world = World(tmp_path, 0)
    catalog, counts = world.catalog, Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    (tmp_path / "a" / "labels.json").write_text('{"stable": "9"}')
    caplog.set_level("WARNING", "serving.versions")
    with catalog.following():
        assert not catalog.reload()
        assert not catalog.reload()
        for _ in range(2):
            requested(catalog)
        assert caplog.messages == [
            "reload failed, version 1 of a stays in service: labels.json: stable can't be version "
            "9: it is not there"
        ] * 3  # fmt: skip
        assert counts == {"unread": 3}
        world.publish("a", "3", DAMAGED)
        (tmp_path / "a" / "labels.json").unlink()
        caplog.clear()
        for _ in range(2):
            requested(catalog)
    refused = "model a: refused version 3, version 1 stays in service: 3: it is damaged"
    assert caplog.messages == [refused] * 2, "what was refused is tried again"
    assert counts == {"unread": 3, "failed": 2}


# What is left behind


class Busy(threading.Thread):
    """A thread that is noted, and never started."""

    made: ClassVar[list["Busy"]] = []

    def start(self):
        self.made.append(self)


def test_catalogs_threads_end_with_the_program(tmp_path, fakes, monkeypatch):
    """And one that follows nothing by itself waits for a request for as long as it takes."""
    world = World(tmp_path, 0)
    monkeypatch.setattr(Busy, "made", [])
    monkeypatch.setattr(threading, "Thread", Busy)
    waits = []
    monkeypatch.setattr(Catalog, "_follow", lambda self, interval_s: waits.append(interval_s))
    assert world.catalog.patience_s == 5.0, "as long as a look may take before others begin"
    world.catalog.patience_s = 0.0
    assert not world.catalog.reload(), "nobody has looked"
    for options in ((), (2.5,)):
        with world.catalog.following(*options):
            Busy.made[-1].run()
    assert waits == [None, 2.5]
    assert [(each.name, each.daemon) for each in Busy.made] == [
        ("catalog-look", True), ("catalog", True), ("catalog", True)]  # fmt: skip


class Lock:
    """A folder's lock, which somebody has or not; it can't be waited for."""

    def __init__(self, *, is_free):
        self.is_free, self.noted = is_free, []

    def acquire(self, blocking=True):
        assert not blocking
        self.noted.append("acquire")
        return self.is_free

    def release(self):
        self.noted.append("release")


@pytest.mark.parametrize("is_free", [True, False], ids=["idle", "looked at"])
def test_model_is_unloaded_though_a_look_goes_on(is_free, tmp_path, fakes):
    """Nobody waits for it: what it finds, it drops itself."""
    catalog = World(tmp_path, 0).catalog
    lock = catalog._folders["a"].lock = Lock(is_free=is_free)
    catalog.unload("a")
    assert lock.noted == ["acquire", "release"][: 1 + is_free]
    assert (catalog.models, catalog.failures) == ({}, {"a": "unloaded"})


def test_model_whose_versions_can_not_leave_is_not_locked_for_ever(tmp_path, fakes, monkeypatch):
    def fail(self):
        raise MemoryError

    catalog = World(tmp_path, 0).catalog
    looked_at = catalog._folders["a"]
    monkeypatch.setattr(ModelFolder, "leave", fail)
    with pytest.raises(MemoryError):
        catalog.unload("a")
    assert not looked_at.lock.locked()


def test_catalog_keeps_no_error_of_its_first_look(tmp_path, fakes, monkeypatch):
    """It has what its step has read."""
    world = World(tmp_path, 0)
    world.publish("b", "1", DAMAGED)
    world.publish("a", "2", GOOD)
    read = Loading.read

    def fail(self):
        if self._number == "2":
            raise CorruptModel("2: it can't be read now") from MemoryError()
        read(self)

    monkeypatch.setattr(Loading, "read", fail)
    catalog = Catalog(ModelConfig(models=tmp_path, device="cpu"))
    assert catalog.failures == {"b": "no version of b is good: 1 (1: it is damaged)"}
    assert catalog.models["a"].reasons == {"2": "2: it can't be read now"}
    for each in catalog._folders.values():
        assert (each.error, each.leaving) == (None, [])
    assert catalog._folders["a"]._passing is None


def test_version_that_has_left_is_noted_once(tmp_path, fakes):
    world = World(tmp_path, 0)
    first = world.catalog.models["a"].default
    for number in ("2", "3"):
        world.publish("a", number, GOOD)
        assert world.catalog.reload()
        assert world.catalog._folders["a"].leaving == []
    assert len(world.catalog._leaving) == 2
    world.catalog.end_version(first)
    world.publish("a", "4", GOOD)
    assert world.catalog.reload()
    assert first not in world.catalog._leaving


def test_model_that_is_found_damaged_is_a_failed_reload(tmp_path, fakes, caplog):
    world = World(tmp_path, 0)
    catalog, counts = world.catalog, Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    world.publish("b", "1", DAMAGED)
    (tmp_path / "b" / "labels.json").write_text('{"stable": "1"}')
    for _ in range(2):
        assert not catalog.reload()
    reason = "labels.json: stable can't be version 1: 1: it is damaged"
    assert catalog.failures == {"b": reason}, "the label is at fault, since somebody wrote it"
    assert counts == {"failed": 1}
    assert caplog.messages[-1] == f"model b is not served: {reason}"


def test_trouble_ends_with_a_look_though_nobody_serves_any_more(tmp_path, fakes, caplog):
    world = World(tmp_path, 0)
    (tmp_path / "a" / "labels.json").write_text('{"stable": "9"}')
    assert not world.catalog.reload()
    with world.catalog.following():
        pass
    (tmp_path / "a" / "labels.json").unlink()
    caplog.set_level("INFO", "serving.versions.catalog")
    caplog.clear()
    for _ in range(2):
        assert not world.catalog.reload()
    assert caplog.messages == ["model a can be read again"]


@pytest.mark.parametrize(
    ("options", "served", "reasons"),
    [
        ({}, ["12"], dict.fromkeys(("9", "2"), "only the newest good version is served: 12")),
        ({"versions": "2,12,9,2"}, ["12", "9", "2"], {}),
        ({"versions": "all"}, ["12", "9", "2"], {}),
        ({"version": "9"}, ["9"], {}),
        ({"versions": "9,2"}, ["9", "2"], {}),
    ],
    ids=["latest", "numbers", "all", "one", "two"],
)
def test_versions_are_in_the_order_of_their_numbers(options, served, reasons, tmp_path, fakes):
    """And each that is not served has its reason."""
    world = World(tmp_path, 0)
    shutil.rmtree(tmp_path / "a")
    for number in ("9", "2", "12"):
        world.publish("a", number, GOOD)
    config = ModelConfig(models=tmp_path, device="cpu", **options)
    found = Catalog(config).models["a"]
    assert ([*found.versions], found.default_version) == (served, served[0])
    assert found.reasons == reasons


def test_batching_says_that_a_handler_may_not_run(tmp_path, fakes, monkeypatch, caplog):
    catalog = World(tmp_path, 0).catalog
    looked_at = catalog._folders["a"]
    model: Any = SimpleNamespace(batching="batching on")
    assert looked_at.with_handler("1", model) is model
    (tmp_path / "a" / "1" / "handler.py").touch()
    monkeypatch.setattr(folder, "replace", lambda model, **changes: changes)
    for _ in range(2):
        looked_at.require_handler("1")
    assert caplog.messages == [
        "model a version 1 is served without its handler.py, which does not run: "
        "--allow-handlers lets it, as it is code"
    ]
    found: Any = looked_at.with_handler("1", model)
    assert found == {"batching": "without its handler.py; batching on"}


def test_model_whose_handler_is_no_file_is_not_even_read(tmp_path, fakes, monkeypatch):
    """It may be large, or elsewhere."""
    read: list[str] = []
    monkeypatch.setattr(Loading, "read", lambda own: read.append(own._number))
    version = tmp_path / "a" / "1"
    (version / "handler.py").mkdir(parents=True)
    (version / "model.onnx").write_text(GOOD)
    config = ModelConfig(models=tmp_path, device="cpu", allow_handlers=True)
    with pytest.raises(ConfigurationError, match="is no file"):
        Catalog(config)
    assert read == []


def test_model_that_is_loaded_again_is_followed_again(tmp_path, fakes):
    catalog = (world := World(tmp_path, 0)).catalog
    catalog.unload("a")
    assert not catalog.reload()
    assert catalog.failures == {"a": "unloaded"}
    catalog.load("a")
    assert ([*catalog.models], catalog.failures) == (["a"], {})
    world.publish("a", "2", GOOD)
    assert catalog.reload()
    assert catalog.models["a"].default_version == "2"


def test_what_was_refused_is_tried_again_once_for_a_request(tmp_path, fakes, caplog):
    world = World(tmp_path, 0)
    world.publish("a", "2", DAMAGED)
    refused = "model a: refused version 2, version 1 stays in service: 2: it is damaged"
    with world.catalog.following():
        requested(world.catalog)
        requested(world.catalog)
        for _ in range(2):
            assert not world.catalog.reload()
    assert caplog.messages == [refused] * 2


def test_version_that_would_call_itself_is_refused(tmp_path, fakes, monkeypatch):
    class Circular(Loading):
        def judge(self):
            super().judge()
            self.loaded.uses = ("a",)

    world = World(tmp_path, 0)
    monkeypatch.setattr(folder, "Loading", Circular)
    world.publish("a", "2", GOOD)
    assert not world.catalog.reload()
    assert [*world.catalog.models["a"].reasons] == ["2"]
    assert world.catalog.models["a"].default_version == "1"


def test_canary_and_its_base_have_labels(tmp_path, fakes):
    world = World(tmp_path, 0)
    for number in ("2", "3"):
        world.publish("a", number, GOOD)
    found = Catalog(ModelConfig(models=tmp_path, device="cpu", canary=0.25)).models["a"]
    assert found.labels == {"canary": "3", "stable": "2"}
    assert (found.default_version, found.canary) == ("2", Canary("3", 0.25))
    assert found.reasons == {"1": "only the newest 2 good versions are served: 3, 2"}


def test_versions_are_loaded_with_the_settings_beside_them(tmp_path, fakes, monkeypatch):
    asked = []

    class Noting(Loading):
        def __init__(self, place, number, options):
            asked.append(options.settings)
            super().__init__(place, number, options)

    monkeypatch.setattr(folder, "Loading", Noting)
    world = World(tmp_path, 0)
    (tmp_path / "a" / "config.pbtxt").write_text("max_batch_size: 5\n")
    world.publish("a", "2", GOOD)
    assert world.catalog.reload()
    assert [each.max_batch_size for each in asked] == [NO_SETTINGS.max_batch_size, 5]


@pytest.mark.parametrize(
    ("cause", "kind"), [(None, CorruptModel), (MemoryError(), Unavailable)], ids=["lasts", "passes"]
)
def test_start_of_the_only_model_fails_by_its_own_reason(cause, kind, tmp_path, fakes, monkeypatch):
    def fail(self):
        raise CorruptModel("1: it can't be read") from cause

    World(tmp_path, 0)
    monkeypatch.setattr(Loading, "read", fail)
    with pytest.raises(kind) as caught:
        Catalog(ModelConfig(models=tmp_path, device="cpu"))
    assert str(caught.value) == "no version of a is good: 1 (1: it can't be read)"


def test_batching_is_of_a_model_that_is_there(tmp_path, fakes):
    World(tmp_path, 0)
    with pytest.raises(ConfigurationError, match=r"^batch must be about a model: a, got 'x=never'"):
        Catalog(ModelConfig(models=tmp_path, device="cpu", batch=("x=never",)))


def test_repository_of_a_url_is_copied_at_each_look(tmp_path, fakes, monkeypatch):
    world, copied = World(tmp_path / "1", 0), []

    class Remote:
        def __init__(self, *facts):
            copied.append(facts)

        def fetch(self):
            copied.append("fetched")
            return tmp_path / str(copied.count("fetched"))

    monkeypatch.setattr(catalog_module, "RemoteRepository", Remote)
    config = ModelConfig(url="memory://it", model_cache=tmp_path, device="cpu", allow_handlers=True)
    catalog = Catalog(config)
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    world.root = tmp_path / "2"
    world.publish("a", "2", GOOD)
    assert catalog.reload()
    assert catalog.models["a"].default_version == "2"
    assert copied == [("memory://it", tmp_path), "fetched", "fetched"]
    assert not catalog._folders["a"].may_have_handlers, "code from elsewhere does not run"


@pytest.fixture
def closed(monkeypatch):
    """The models that were closed: their handlers have processes."""
    found: list[Any] = []
    monkeypatch.setattr(Model, "close", lambda self: found.append(self.text.split()[1]))
    return found


@pytest.mark.parametrize("has_other", [True, False])
def test_models_that_call_one_another_are_not_served(
    has_other, tmp_path, fakes, monkeypatch, closed
):
    class Circular(Loading):
        def __init__(self, place, number, options):
            super().__init__(place, number, options)
            self.uses = {"a": ("b",), "b": ("a",)}.get(place.name, ())

        def judge(self):
            super().judge()
            self.loaded.uses = self.uses

    world = World(tmp_path, 0)
    world.publish("b", "1", GOOD)
    if has_other:
        world.publish("c", "1", GOOD)
    monkeypatch.setattr(folder, "Loading", Circular)
    config = ModelConfig(models=tmp_path, device="cpu")
    if has_other:
        catalog = Catalog(config)
        assert ([*catalog.models], [*catalog.failures]) == (["c"], ["a", "b"])
    else:
        with pytest.raises(CorruptModel, match=r"^no model can be served: a \(.*; b \("):
            Catalog(config)
    assert sorted(closed) == ["1", "2"]


@pytest.mark.parametrize("may_be_missing", [True, False])
def test_models_that_are_named_are_all_served_or_none(may_be_missing, tmp_path, fakes, closed):
    world = World(tmp_path, 0)
    world.publish("b", "1", DAMAGED)
    config = ModelConfig(
        models=tmp_path, device="cpu", names=("a", "b"), allow_missing=may_be_missing
    )
    reason = "no version of b is good: 1 (1: it is damaged)"
    if may_be_missing:
        catalog = Catalog(config)
        assert ([*catalog.models], catalog.missing, closed) == (["a"], {"b": reason}, [])
        return
    with pytest.raises(CorruptModel) as caught:
        Catalog(config)
    assert str(caught.value) == (
        f"can't be served, although named: b ({reason}); --allow-missing serves the others"
    )
    assert closed == ["1"]


def test_trouble_of_the_start_is_not_logged_again(tmp_path, fakes, caplog):
    world = World(tmp_path, 0)
    world.publish("b", "1", DAMAGED)
    catalog, counts = Catalog(ModelConfig(models=tmp_path, device="cpu")), Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    assert caplog.messages[-1].startswith("model b is not served: ")
    caplog.clear()
    assert not catalog.reload()
    assert (caplog.messages, counts) == ([], {})


def test_model_that_is_gone_is_dropped_and_named(tmp_path, fakes, caplog):
    world = World(tmp_path, 0)
    world.publish("b", "1", GOOD)
    assert world.catalog.reload()
    shutil.rmtree(tmp_path / "a")
    changes: list[Any] = []
    world.catalog.on_change = lambda *change: changes.append(change)
    assert world.catalog.reload()
    assert caplog.messages == ["model a is gone from the repository: it is dropped"]
    assert ([*world.catalog.models], changes) == (["b"], [("a", None)])
    assert "a" not in world.catalog._folders
