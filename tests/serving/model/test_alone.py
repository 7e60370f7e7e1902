"""Which engine runs a call that is alone, and who counts as alone in one's own process."""

import threading
from typing import Any

import numpy as np
import pytest

from serving import Model
from serving.errors import ConfigurationError
from serving.model.loading import load_model
from serving.model.wide import Alone
from tests.serving.model.graphs import two_layers
from tests.support.fakes import TIMEOUT_S

SIZE = 100


def chosen(alone, narrow_s, wide_s, number):
    """How many of these calls run wide, where runs take these times."""
    found = 0
    for _ in range(number):
        is_wide = alone.is_wide(SIZE)
        found += is_wide
        alone.note(SIZE, wide_s if is_wide else narrow_s, is_wide=is_wide)
    return found


def test_faster_engine_runs_nearly_all_calls_and_the_other_is_tried_again():
    for narrow_s, wide_s, wide in ((1.0, 0.5, True), (0.5, 1.0, False)):
        alone = Alone()
        chosen(alone, narrow_s, wide_s, 32)
        number = chosen(alone, narrow_s, wide_s, 320)
        assert number == (310 if wide else 10)


def test_choice_follows_what_changes():
    alone = Alone()
    chosen(alone, 1.0, 0.5, 64)  # another program takes a core now
    chosen(alone, 1.0, 2.0, 256)
    assert chosen(alone, 1.0, 2.0, 320) == 10


def test_each_size_has_a_choice_of_its_own():
    alone = Alone()
    chosen(alone, 1.0, 0.5, 66)
    for _ in range(16):
        is_wide = alone.is_wide(8 * SIZE)
        alone.note(8 * SIZE, 2.0 if is_wide else 1.0, is_wide=is_wide)
    assert alone.is_wide(SIZE)
    assert not alone.is_wide(8 * SIZE)


def test_first_run_of_a_kind_does_not_count():
    """Its threads sleep: it takes longer than the later ones."""
    alone, found = Alone(), []
    before: bool | None = None
    for _ in range(320):
        is_wide = alone.is_wide(SIZE)
        alone.note(SIZE, 2.0 if is_wide != before else 0.5 if is_wide else 1.0, is_wide=is_wide)
        before = is_wide
        found.append(is_wide)
    assert sum(found[-64:]) == 62


class Wide:
    """A gated second session."""

    def __init__(self, engine):
        self.engine, self.num_runs = engine, 0
        self.has_begun, self.may_end = threading.Event(), threading.Event()
        self._pid = engine._pid

    def _run(self, options, feeds):
        self.num_runs += 1
        self.has_begun.set()
        assert self.may_end.wait(TIMEOUT_S)
        return self.engine._run(options, feeds)

    def end_runs(self):
        """Do nothing."""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(two_layers().SerializeToString())
    return path


def test_embedded_call_that_is_alone_takes_all_cores_and_others_share_them(file, monkeypatch):
    loaded = Model.load(file, device="cpu")
    engine: Any = loaded.served.engine
    rows = np.ones((2, 4), np.float32)
    expected = loaded.infer(rows)["y"]
    engine.wide = wide = Wide(engine)
    monkeypatch.setattr(engine._alone, "is_wide", lambda size: True)
    model = Model(loaded.served)
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(model.infer(rows)["y"]))
    first.start()
    assert wide.has_begun.wait(TIMEOUT_S)
    np.testing.assert_array_equal(model.infer(rows)["y"], expected)  # beside it: on one thread
    assert wide.num_runs == 1
    wide.may_end.set()
    first.join(TIMEOUT_S)
    np.testing.assert_array_equal(found[0], expected)
    model.infer(rows)
    assert wide.num_runs == 2


def test_model_asks_for_threads_as_a_server_does(file, monkeypatch):
    asked: list[tuple[int, int]] = []

    def note(*arguments, **options):
        asked.append((options["num_threads"], options["most_threads"]))
        return load_model(*arguments, **options)

    monkeypatch.setattr("serving.embedded.load_model", note)
    monkeypatch.setattr("serving.embedded.usable_cores", lambda: 3)
    for threads in (0, 1, 2):
        with Model.load(file, device="cpu", threads=threads) as model:
            engine: Any = model.served.engine
            assert engine.settings.num_threads == max(1, threads)
    assert asked == [(1, 3), (1, 1), (2, 1)]
    with pytest.raises(ConfigurationError, match="threads must be 0 to"):
        Model.load(file, threads=-1)


def test_call_after_a_fork_takes_the_narrow_session(file, monkeypatch):
    """The threads of the wide one are gone."""
    with Model.load(file, device="cpu") as model:
        engine: Any = model.served.engine
        engine.wide = Wide(engine)
        forked = Model(model.served)
        monkeypatch.setattr("serving.model.engine.os.getpid", lambda: 1)
        assert forked.infer(np.ones((2, 4), np.float32))["y"].shape == (2, 3)
        assert not engine.wide.num_runs


@pytest.mark.parametrize("is_wide", [False, True])
def test_choice_follows_within_some_calls_what_changes(is_wide):
    """Each time counts, and only the last ones."""
    alone = Alone()
    one, other = (0.5, 1.0) if is_wide else (1.0, 0.5)
    chosen(alone, other, one, 64)
    number = chosen(alone, *((0.5, 2.0) if is_wide else (2.0, 0.5)), 64)
    assert number < 16 if is_wide else number > 48
