import json
import re

import pytest
from PIL import Image

from training import report, runs
from training.__main__ import main
from training.data.mnist import Mnist
from training.errors import DataError, Diverged


@pytest.fixture(autouse=True)
def sample_for_mnist(monkeypatch, mnist_sample):
    monkeypatch.setattr(Mnist, "load", lambda data_dir: mnist_sample)


@pytest.mark.parametrize("command", ["", "data", "label", "train", "export", "report", "runs"])
def test_help_explains(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([*command.split(), "--help"])
    text = capsys.readouterr().out
    assert f"usage: python -m training {command}".strip() in text
    assert command in ("", "label", "runs") or "--data-dir PATH" in text


@pytest.mark.parametrize(
    "arguments",
    ["", "fly", "train --recipe none-such", "train --seed -1", "train --seed x",
     "train --seed 4294967296", "train --epochs 0", "train --epochs 1.5", "data --artifacts x"],
)  # fmt: skip
def test_bad_usage_exits_with_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        main(arguments.split())


def test_data_says_where_it_is(tmp_path, capsys):
    assert main(["data", "--data-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("can't get MNIST"), 2, "can't get MNIST"),
        (OSError(28, "No space left on device", "a/b"), 1, "No space left on device: 'a/b'"),
        (KeyboardInterrupt(), 1, "interrupted"),
    ],
)
def test_failure_is_one_line_and_an_exit_code(error, code, words, monkeypatch, capsys):
    def fail(data_dir):
        raise error

    monkeypatch.setattr(Mnist, "load", fail)
    assert main(["train"]) == code
    line = capsys.readouterr().err
    assert (line.endswith(f"{words}\n"), line.count("\n")) == (True, 1)


@pytest.mark.slow
def test_train_shows_device_epochs_and_outcome_also_of_own_digits(tmp_path, mnist_sample, capsys):
    for number, (image, label) in enumerate(
        zip(mnist_sample.test_images[:60], mnist_sample.test_labels, strict=False)
    ):
        path = tmp_path / "own" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28)).save(path)
    arguments = ["train", "--recipe", "seed", "--epochs", "2", "--artifacts", str(tmp_path / "out")]
    assert main([*arguments, "--extra", str(tmp_path / "own")]) == 0
    extra, first, *epochs, outcome, own, advice = capsys.readouterr().out.splitlines()
    num_training, num_held_out = map(int, re.findall(r"\d+", extra))
    assert num_training + num_held_out == 60
    assert num_held_out > 0
    settings = "recipe seed, epochs 2, seed 0, device (cpu|cuda)"
    assert re.fullmatch(rf"training: {settings}; run seed_epochs=2_extra=[0-9a-f]{{8}}", first)
    assert [line[:9] for line in epochs] == ["epoch 1/2", "epoch 2/2"]
    assert re.match(r"test accuracy \d\d\.\d\d% \(\d+ errors\)", outcome)
    assert re.match(rf"your own digits, held out: \d+\.\d\d% \(\d+ errors in {num_held_out}\)", own)
    report = tmp_path / "out" / "report.html"
    assert advice == f"look at {report}; `make export` comes next"
    html = report.read_text()
    assert f"your own, held out ({num_held_out})" in html
    assert f"{num_training} images of your own" in html


def test_own_digits_that_are_missing_exit_with_2(tmp_path, capsys):
    (tmp_path / "own" / "3").mkdir(parents=True)
    (tmp_path / "own" / "3" / "\x1b[2J.png").touch()
    assert main(["train", "--extra", str(tmp_path / "own")]) == 2
    line = capsys.readouterr().err
    assert "no readable pictures in" in line
    assert r"3/\x1b[2J.png: " in line  # no terminal obeys it


def test_interrupted_training_says_what_it_kept(tmp_path, monkeypatch, capsys):
    metrics = {
        "epochs": 7, "train_seconds": 9, "accuracy": {"test": 0.9, "validation": 0.9},
        "errors": {"test": 50},
    }  # fmt: skip

    def train(recipe, data, folder, **options):
        (folder / "metrics.json").write_text("{}")
        return metrics

    monkeypatch.setattr("training.fitting.train.train", train)
    monkeypatch.setattr(report, "write", lambda *arguments: None)
    assert main(["train", "--artifacts", str(tmp_path)]) == 1
    assert (tmp_path / "metrics.json").exists()
    error = capsys.readouterr().err
    assert (
        error == "python -m training: interrupted: kept the best of 7 epochs; --resume continues\n"
    )


def test_export_after_a_failed_training_names_the_one_before(tmp_path, monkeypatch, capsys):
    outcomes = [None, Diverged("the loss is no longer a number in epoch 1"), None]
    metrics = {"epochs": 9, "train_seconds": 9, "accuracy": {"test": 0.9}, "errors": {"test": 50}}

    def train(recipe, data, folder, **options):
        if (error := outcomes.pop(0)) is not None:
            raise error
        (folder / "metrics.json").write_text(json.dumps({"of": folder.name}))
        return metrics

    monkeypatch.setattr("training.fitting.train.train", train)
    monkeypatch.setattr(report, "write", lambda *arguments: None)
    command = ["train", "--recipe", "seed", "--epochs", "9", "--artifacts", str(tmp_path)]
    assert [main(command), main(command)] == [0, 1]
    capsys.readouterr()
    assert main(["export", "--artifacts", str(tmp_path), "--models", str(tmp_path / "models")]) == 2
    before = tmp_path / "runs" / "seed_epochs=9"
    assert capsys.readouterr().err == (
        "python -m training: the latest training, seed_epochs=9_2, failed: the loss is no longer a "
        f"number in epoch 1; `--artifacts {before}` takes the one before it\n"
    )
    assert main(command) == 0
    runs.require_latest(tmp_path)
    assert runs.published(tmp_path) == "seed_epochs=9_2"
    assert runs.published(before) == "seed_epochs=9"


def test_resume_of_nothing_exits_with_2(tmp_path, capsys):
    assert main(["train", "--resume", "--artifacts", str(tmp_path)]) == 2
    assert "nothing to resume" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["export", "report"])
def test_command_on_nothing_trained_names_what_to_run(command, tmp_path, capsys):
    assert main([command, "--artifacts", str(tmp_path)]) == 1
    assert "make train" in capsys.readouterr().err


def test_export_and_report_get_their_folders(tmp_path, mnist_sample, monkeypatch):
    calls: list[tuple[object, ...]] = []
    flags: list[dict[str, bool]] = []

    def export(*values, **options):
        calls.append(values)
        flags.append(options)

    monkeypatch.setattr("training.export.digits.export", export)
    monkeypatch.setattr(report, "write", lambda *values: calls.append(values))
    models = ["--models", str(tmp_path / "models"), "--name", "mine"]
    assert main(["report", "--artifacts", str(tmp_path)]) == 0
    assert main(["export", "--artifacts", str(tmp_path), *models]) == 0
    assert calls == [
        (tmp_path, mnist_sample),
        (tmp_path, tmp_path / "models", mnist_sample, "mine"),
    ]
    assert main(["export", "--artifacts", str(tmp_path), *models, "--new-signature"]) == 0
    assert flags == [{"is_new_signature": False}, {"is_new_signature": True}]


def test_terminal_sees_one_live_line(tmp_path, monkeypatch, capsys):
    def train(*arguments, log, **options):
        for number in (1, 2):
            log(f"epoch {number}/9")
        raise KeyboardInterrupt

    monkeypatch.setattr("training.fitting.train.train", train)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    main(["train", "--epochs", "9", "--artifacts", str(tmp_path)])
    _, blank, *epochs = capsys.readouterr().out.splitlines()
    assert blank == ""
    assert epochs == ["\033[A\033[Kepoch 1/9", "\033[A\033[Kepoch 2/9"]
