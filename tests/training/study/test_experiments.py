"""The study, on recipes of one epoch and a sample of the images."""

import json
import shutil
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from training.config import RECIPES, Distillation
from training.data.mnist import Mnist
from training.fitting.train import train
from training.study import experiments, final_models, report
from training.study.corruptions import CORRUPTIONS
from training.study.final_models import trained
from training.study.outliers import outliers
from training.study.results import Results

TRICKS = experiments.tricks()
TINY = replace(
    RECIPES["best"], distillation=None, epochs=1, batch_size=256, validation_split=1 / 12
)
SMALL = replace(TINY, name="best-small")


@pytest.fixture(autouse=True)
def tiny_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda artifacts, data: None)
    monkeypatch.setattr(experiments, "RECIPES", {"best": TINY})
    monkeypatch.setattr(experiments, "SIZES", {})
    monkeypatch.setattr(experiments, "SEEDS", 1)
    monkeypatch.setattr(experiments, "ABLATION_SEEDS", 1)
    monkeypatch.setattr(experiments, "tricks", lambda: {"all of it": TINY})


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory, mnist_sample: Mnist) -> Path:
    """The artifacts of a study's only final model, trained elsewhere. Shared: copy it."""
    folder = tmp_path_factory.mktemp("final")
    train(TINY, mnist_sample, folder / "study" / "best-0")
    return folder


def test_tricks_lead_from_the_tutorial_to_best() -> None:
    recipes = [asdict(recipe) for recipe in TRICKS.values()]
    assert all(recipe.epochs == experiments.ABLATION_EPOCHS for recipe in TRICKS.values())
    for one, other in pairwise(recipes):
        assert one != other
    best = replace(
        RECIPES["best"],
        epochs=experiments.ABLATION_EPOCHS,
        averaging=RECIPES["default"].averaging,
        validation_split=RECIPES["best"].validation_split or experiments.ABLATION_SPLIT,
    )
    assert recipes[-1] == asdict(best)
    assert all(recipe.validation_split > 0 for recipe in TRICKS.values())


def test_interrupted_study_resumes_with_what_is_missing(
    tmp_path: Path, final: Path, mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And measures the model that is trained already."""

    def interrupt_the_ablation(line: str) -> None:
        if line.startswith("all of it"):
            raise KeyboardInterrupt

    shutil.copytree(final, tmp_path, dirs_exist_ok=True)
    metrics = json.loads((tmp_path / "study" / "best-0" / "metrics.json").read_text())
    monkeypatch.setattr(final_models, "train", lambda *arguments, **options: pytest.fail("trained"))
    results = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        experiments.run(mnist_sample, tmp_path, results, interrupt_the_ablation)
    [run] = Results.load(results).runs
    assert metrics.items() <= run.items()
    assert (run["recipe"], run["seed"], run["parameters"]) == ("best", 0, 241_650)
    assert len(run["wrong"]) == run["errors"]["test"]
    assert run["corrupted"].keys() == CORRUPTIONS.keys()
    assert run["outliers"].keys() == outliers().keys()
    assert run["covered"].keys() == {"0.99", "0.98"}
    assert run["examples"] == {"training": 1_833, "validation": 167}
    assert run["units"] == [256, 128, 56]
    assert run["images_per_s"] > 0

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

    monkeypatch.setattr(experiments, "RECIPES", {"best": replace(TINY, epochs=2)})
    with pytest.raises(KeyboardInterrupt):
        experiments.run(mnist_sample, tmp_path, tmp_path / "results.json", interrupt)
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "study" / "best-0" / "checkpoint.npz").exists()


def test_only_a_complete_model_of_the_same_training_is_taken(tmp_path: Path, final: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(final / "study" / "best-0", tmp_path / name))

    def state(folder: Path, **facts: Any) -> None:
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | facts))

    whole = copy("whole")
    assert trained(whole, TINY, 0)
    assert not trained(whole, TINY, 1)
    assert not trained(whole, SMALL, 0)
    assert not trained(whole, replace(TINY, epochs=2), 0)
    state(whole, extra={"images": 3})  # on someone's own digits, too
    assert not trained(whole, TINY, 0)

    unfinished, damaged, without = copy("unfinished"), copy("damaged"), copy("without")
    (unfinished / "checkpoint.npz").touch()
    (damaged / "metrics.json").write_text("{")
    (without / "model.keras").unlink()
    for folder in (unfinished, damaged, without, tmp_path / "none"):
        assert trained(folder, TINY, 0) is None


def test_teachers_and_sizes_have_rows_of_their_own(
    tmp_path: Path, final: Path, mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(final, tmp_path / "artifacts"))
    shutil.copytree(folder / "study" / "best-0", folder / "study" / "best-small-0")
    metrics = folder / "study" / "best-small-0" / "metrics.json"
    metrics.write_text(metrics.read_text().replace('"best"', '"best-small"'))
    teacher = replace(RECIPES["best"].views()[1].teacher, epochs=1, batch_size=256)
    distillation = Distillation(teacher=teacher, teachers=1, views=1, temperature=1, share=1)
    distilled = replace(TINY, distillation=distillation, mild=0)
    monkeypatch.setattr(experiments, "RECIPES", {"best": distilled})
    monkeypatch.setattr(experiments, "SIZES", {"best-small": SMALL})
    monkeypatch.setattr(experiments, "tricks", dict)
    results = tmp_path / "results.json"
    experiments.run(mnist_sample, folder, results, lambda line: None)
    found = Results.load(results)
    assert [run["recipe"] for run in found.runs] == ["best"]
    assert [run["recipe"] for run in found.sizes] == ["best-small"]
    [row] = found.teachers
    assert (row["recipe"], row["seed"]) == ("teacher", 0)
    assert row["errors"]["test"] == len(row["wrong"])
    assert row["accuracy"]["test"] == pytest.approx(1 - len(row["wrong"]) / 500)
    assert row["corrupted"].keys() == CORRUPTIONS.keys()
    assert (folder / "teachers-ablation" / "teacher-0.npz").exists()  # `best` holds none out
    experiments.run(mnist_sample, folder, results, pytest.fail)  # all is there
