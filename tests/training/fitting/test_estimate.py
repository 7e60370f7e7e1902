from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.support.fakes import FakeClock
from training.config import RECIPES, TEACHER, Distillation
from training.fitting import epochs
from training.fitting.epochs import Estimate

DISTILLATION = Distillation(
    teacher=replace(TEACHER, epochs=10), teachers=2, views=4, temperature=2.0, share=0.9
)
RECIPE = replace(
    RECIPES["best"], distillation=DISTILLATION, fine_tune_share=0, epochs=100, optimizer="adamw"
)


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(epochs, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(epochs, "TEACHER_EPOCH", 10)
    monkeypatch.setattr(epochs, "TEACHER_VIEW", 5)
    monkeypatch.setattr(epochs, "EPOCH", 1)
    return clock


def test_what_is_left_goes_down_over_all_parts(clock):
    lines: list[str] = []
    log = Estimate(RECIPE, lines.append)  # costs 200 + 40 + 100
    for seconds, line in (
        (20, "teacher 1/2  epoch  1/10  loss 0.1"),
        (400, "teacher 2/2  epoch 10/10  loss 0.1"),
        (420, "teacher logits  view 1/4"),
        (480, "teacher logits  view 4/4"),
        (660, "epoch  90/100  loss 0.1"),
        (680, "epoch 100/100  loss 0.1"),
        (680, "training this teacher again: it is missing"),
    ):
        clock.now_s = seconds
        log(line)
    assert [line.rpartition("  ")[2] for line in lines] == [
        "11 min left", "5 min left", "4 min left", "3 min left", "20 s left", "0 s left",
        "training this teacher again: it is missing",
    ]  # fmt: skip


def test_what_an_earlier_run_did_does_not_count(clock):
    lines: list[str] = []
    log = Estimate(RECIPE, lines.append)
    clock.now_s = 3
    log("epoch  51/100  loss 0.1")
    assert lines == ["epoch  51/100  loss 0.1  2 min left"]


def test_muon_takes_longer(clock):
    lines: list[str] = []
    log = Estimate(replace(RECIPE, optimizer="muon"), lines.append)  # costs 200 + 40 + 200
    clock.now_s = 440
    log("teacher logits  view 4/4")  # its step: 10
    clock.now_s = 460
    log("epoch  10/100  loss 0.1")
    assert lines[1].endswith("  46 min left")
