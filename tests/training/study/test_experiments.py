"""The study, on recipes of one epoch and a sample of the images."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import pytest

from training.config import RECIPES
from training.data.mnist import Mnist
from training.study import experiments, report
from training.study.corruptions import CORRUPTIONS
from training.study.results import Results

TRICKS = experiments.tricks()
TINY = dataclasses.replace(RECIPES["default"], epochs=1, batch_size=256)


@pytest.fixture(autouse=True)
def tiny_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda artifacts, data: None)
    monkeypatch.setattr(experiments, "RECIPES", {"default": TINY})
    monkeypatch.setattr(experiments, "SEEDS", {"default": 1})
    monkeypatch.setattr(experiments, "ABLATION_SEEDS", 1)
    monkeypatch.setattr(experiments, "tricks", lambda: {"all of it": TINY})


def test_tricks_lead_from_the_tutorial_to_best() -> None:
    recipes = [dataclasses.asdict(recipe) for recipe in TRICKS.values()]
    assert all(recipe.epochs == experiments.ABLATION_EPOCHS for recipe in TRICKS.values())
    for one, other in pairwise(recipes):
        assert one != other
    best = dataclasses.replace(
        RECIPES["best"], epochs=experiments.ABLATION_EPOCHS, averaging=RECIPES["default"].averaging
    )
    assert recipes[-1] == dataclasses.asdict(best)


def test_interrupted_study_resumes_with_what_is_missing(
    tmp_path: Path, mnist_sample: Mnist
) -> None:
    def interrupt_the_ablation(line: str) -> None:
        if line.startswith("all of it"):
            raise KeyboardInterrupt

    results = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        experiments.run(mnist_sample, tmp_path, results, interrupt_the_ablation)
    [run] = Results.load(results).runs
    assert (run["recipe"], run["seed"], run["parameters"]) == ("default", 0, 241_650)
    assert len(run["wrong"]) == run["errors"]["test"]
    assert run["corrupted"].keys() == CORRUPTIONS.keys()

    lines: list[str] = []
    experiments.run(mnist_sample, tmp_path, results, lines.append)
    assert [line.partition("  loss")[0] for line in lines] == ["all of it, seed 0  epoch  1/1"]
    complete = Results.load(results)
    assert complete.runs == [run]
    assert [(row["trick"], row["seed"]) for row in complete.ablation] == [("all of it", 0)]
    experiments.run(mnist_sample, tmp_path, results, pytest.fail)


def test_final_model_that_was_interrupted_is_no_result(
    tmp_path: Path, mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    two = {"default": dataclasses.replace(TINY, epochs=2)}
    monkeypatch.setattr(experiments, "RECIPES", two)
    with pytest.raises(KeyboardInterrupt):
        experiments.run(mnist_sample, tmp_path, tmp_path / "results.json", interrupt)
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "study" / "default-0" / "checkpoint.npz").exists()
