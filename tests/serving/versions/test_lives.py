"""Versions that come, go, half arrive, are refused and are loaded and unloaded, in any order."""

import json
import os
import shutil
from contextlib import suppress
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ModelConfig
from serving.errors import CorruptModel, ModelNotFound, ServingError
from serving.tensors import Tensor, TensorSignature
from serving.versions import folder
from serving.versions.catalog import Catalog
from serving.versions.version import State

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
