import json
import os
import re

import pytest

from training import runs
from training.__main__ import main
from training.config import RECIPES
from training.data.mnist import Mnist
from training.errors import ResumeError

SEED = RECIPES["seed"]


def add_run(artifacts, name, *, accuracy=0.9, seed=0, **settings):
    """Write the files of a run of two epochs."""
    recipe = SEED.changed({"epochs": 2, **settings})
    metrics = {
        "recipe": "seed", "seed": seed, "settings": recipe.as_json(), "epochs": 2,
        "train_seconds": 3.0, "accuracy": {"test": accuracy, "validation": 0.8},
        "loss": {"test": 0.5, "validation": 0.6}, "errors": {"test": 1000}, "parameters": 25_450,
        "calibration": {"ece": {"after": 0.01}},
    }  # fmt: skip
    history = {
        "loss": [1, 0.7], "accuracy": [0.5, 0.7], "val_loss": [0.9, 0.6],
        "val_accuracy": [0.6, 0.8], "learning_rate": [1e-3, 1e-3],
    }  # fmt: skip
    folder = artifacts / "runs" / name
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "history.json").write_text(json.dumps(history))
    os.utime(folder / "metrics.json", (0, len(os.listdir(folder.parent))))


@pytest.mark.parametrize(
    ("settings", "seed", "extra", "name"),
    [
        ({}, 0, None, "seed"),
        ({"units": (128, 64), "dropout": (0.2,)}, 1, None,
         "seed_units=128-64_dropout=0.2-0.2_seed=1"),
        ({"augment": "affine", "optimizer": "sgd"}, 0, "ab" * 32,
         "seed_optimizer=sgd_augment=affine_extra=abababab"),
    ],
)  # fmt: skip
def test_name_has_the_settings_that_differ(settings, seed, extra, name):
    assert runs.base_name(SEED.changed(settings), seed, extra=extra) == name


def test_name_of_many_settings_is_short_and_its_own():
    changed = [SEED.changed({"units": (u,) * 60, "dropout": (0.25,)}) for u in (100, 101)]
    names = [runs.base_name(recipe, 0) for recipe in changed]
    assert {len(name) for name in names} == {100}
    assert names[0] != names[1]


def test_second_run_of_the_same_settings_gets_a_number(tmp_path):
    names = [runs.begin(tmp_path, "seed").name for _ in range(3)]
    assert names == ["seed", "seed_2", "seed_3"]


def test_newest_interrupted_run_of_the_settings_is_resumed(tmp_path):
    for time, name in enumerate(("seed_2", "seed", "seed_3", "seed_units=8_2")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if name != "seed_3":
            (folder / "checkpoint.npz").touch()
            os.utime(folder / "checkpoint.npz", (time, time))
    assert runs.interrupted(tmp_path, "seed").name == "seed"
    with pytest.raises(ResumeError, match="nothing to resume"):
        runs.interrupted(tmp_path, "default")


def test_published_files_are_those_of_the_run_but_its_checkpoint(tmp_path):
    folder = runs.begin(tmp_path, "seed")
    for name in ("model.keras", "checkpoint.npz"):
        (folder / name).write_text(name)
    runs.publish(folder, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "model.keras"}


def test_runs_are_listed_in_their_order_with_what_differs(tmp_path, capsys):
    add_run(tmp_path, "seed_epochs=2")
    add_run(tmp_path, "b", accuracy=0.95, seed=1, units=(32,), dropout=(0.1,))
    (tmp_path / "runs" / "unfinished").mkdir()
    add_run(tmp_path, "damaged")
    (tmp_path / "runs" / "damaged" / "history.json").write_text("{")
    assert main(["runs", "--artifacts", str(tmp_path)]) == 0
    heading, *rows = capsys.readouterr().out.splitlines()
    assert heading.startswith("run ")
    assert [re.split("  +", row) for row in rows] == [
        ["seed_epochs=2", "90.00%", "1,000", "2", "3", "epochs 2"],
        ["b", "95.00%", "1,000", "2", "3", "units 32, dropout 0.1, epochs 2, seed 1"],
    ]


def test_compared_runs_have_a_picture_and_what_differs(tmp_path, capsys):
    add_run(tmp_path, "one")
    add_run(tmp_path, "two", accuracy=0.95, units=(32,), dropout=(0.1,))
    paths = [str(tmp_path / "runs" / name) for name in ("one", "two")]
    assert main(["runs", "compare", "--artifacts", str(tmp_path), *paths]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^a +one$", text, re.M)
    assert re.search(r"^setting +a +b$", text, re.M)
    assert re.search(r"^units +256,128,56 +32$", text, re.M)
    assert re.search(r"^test accuracy +90.00% +95.00%$", text, re.M)
    assert not re.search("^batch_size", text, re.M)
    html = (tmp_path / "compare.html").read_text()
    assert "<td>256,128,56</td><td>32</td>" in html
    svg = (tmp_path / "compare.svg").read_text()
    assert all(f">{text}<" in svg for text in ("a", "b", "accuracy"))


def test_runs_of_equal_settings_say_so(tmp_path, capsys):
    for name in ("one", "two"):
        add_run(tmp_path, name)
    assert main(["runs", "compare", "--artifacts", str(tmp_path), "one", "two"]) == 0
    text = capsys.readouterr().out
    assert "The runs do not differ in any setting." in text
    assert "The runs do not differ in any setting." in (tmp_path / "compare.html").read_text()
    assert not re.search("^setting", text, re.M)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("compare one", "expected 2 to 8 runs, got 1"),
        ("compare one one", "expected 2 to 8 runs, got 1"),
        ("compare one three", "no run is called 'three': there are one"),
        ("list one", "takes no names"),
        ("fly", "expected runs list or runs compare, got 'fly'"),
    ],
)
def test_unknown_or_too_few_runs_exit_with_2(tmp_path, capsys, arguments, reason):
    add_run(tmp_path, "one")
    assert main(["runs", *arguments.split(), "--artifacts", str(tmp_path)]) == 2
    assert reason in capsys.readouterr().err


def test_no_runs_name_the_command_to_run(tmp_path, capsys):
    assert main(["runs", "--artifacts", str(tmp_path)]) == 2
    assert "make train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--units 64,32", "set dropout, too"),
        ("--dropout 1", "dropout: expected 0 to 0.9999"),
        ("--recipe best --augment none", "distillation: expected a deformation"),
        ("--batch-size 4000", "batch_size: expected at most 1,600"),
    ],
)
def test_settings_that_can_not_be_trained_leave_no_run(
    tmp_path, capsys, monkeypatch, mnist_sample, options, reason
):
    monkeypatch.setattr(Mnist, "load", lambda data_dir: mnist_sample)
    recipe = [] if "--recipe" in options else ["--recipe", "seed"]
    command = ["train", "--artifacts", str(tmp_path), *recipe, *options.split()]
    assert main(command) == 2
    assert reason in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("*"))


def test_latest_run_is_where_export_looks(tmp_path, monkeypatch, mnist_sample, capsys):
    monkeypatch.setattr(Mnist, "load", lambda data_dir: mnist_sample)
    monkeypatch.setattr("training.report.write", lambda folder, data: None)
    command = ["train", "--recipe", "seed", "--epochs", "1", "--artifacts", str(tmp_path)]
    for units in ("16", "24"):
        assert main([*command, "--units", units, "--dropout", "0"]) == 0
    names = {path.name for path in (tmp_path / "runs").iterdir()}
    assert names == {f"seed_units={units}_dropout=0_epochs=1" for units in (16, 24)}
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["settings"]["units"] == [24]
    assert (tmp_path / "model.keras").is_file()
