"""`label` in a terminal: the keys, and where the pictures are afterwards."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.data import extra


@pytest.fixture
def own(tmp_path, mnist_sample):
    """Four pictures, guessed 1, 3, 3 and 3, and a file that is no picture."""
    for name, image in zip(("1/a", "3/a", "3/b", "3/c"), mnist_sample.test_images, strict=False):
        path = tmp_path / "unsure" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.reshape(28, 28)).save(path)
    (tmp_path / "unsure" / "3" / "notes.txt").write_text("no picture")
    return tmp_path


def labels(own):
    return sorted(str(path.relative_to(own)) for path in own.rglob("*.png"))


def run_label(own, keys, *, interrupt_at=""):
    """Press keys in a terminal; return the exit code, the last line and all of the output."""
    here, terminal = os.openpty()
    command = [sys.executable, "-m", "training", "label", str(own)]
    process = subprocess.Popen(command, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    shown = ""
    try:
        while chunk := os.read(here, 65536):
            shown += chunk.decode("utf-8", "replace")
            if keys and "q: quit" in shown:
                os.write(here, keys)
                keys = b""
            if interrupt_at and interrupt_at in shown:
                process.send_signal(signal.SIGINT)
                interrupt_at = ""
    except OSError:  # the other end is closed
        os.close(here)
    return process.wait(), shown.splitlines()[-1], shown


def test_keys_move_pictures_and_undo_moves_them_back(own):
    code, last, shown = run_label(own, b"x8\nu5nq")
    assert (code, last) == (0, "3 labelled; the same command continues")
    assert labels(own) == ["5/a.png", "8/a.png", "none/b.png", "unsure/3/c.png"]
    assert "Enter for 1" in shown
    assert "4 of 5" in shown
    code, last, shown = run_label(own, b"\n")
    assert (code, last.partition("--")[0]) == (0, "1 labelled; `digit-serving train ")
    assert "notes.txt" in shown
    assert labels(own) == ["3/c.png", "5/a.png", "8/a.png", "none/b.png"]


def test_undo_never_replaces_a_file(own):
    old = own / "unsure" / "1" / "a.png"
    new = extra._move(old, own / "1" / "a.png")
    old.write_bytes(b"another")
    assert extra._move(new, old) == old.with_name("a-2.png")
    assert old.read_bytes() == b"another"


def test_interrupt_keeps_labels(own):
    (own / "1").mkdir()
    (own / "1" / "a.png").write_bytes(b"another one")
    code, last, _ = run_label(own, b"1", interrupt_at="2 of 5")
    message = "interrupted: 1 labelled; the same command continues"
    assert (code, last) == (1, f"python -m training: {message}")
    assert labels(own)[:3] == ["1/a-2.png", "1/a.png", "unsure/3/a.png"]


def test_missing_folder_or_terminal_is_one_line(own, capsys):
    for folder, words in ((own, "in a terminal"), (own / "x", "no folder")):
        assert main(["label", str(folder)]) == 2
        error = capsys.readouterr().err
        assert (words in error, error.count("\n")) == (True, 1)
    (own / "x").mkdir()
    assert main(["label", str(own / "x")]) == 0
    assert capsys.readouterr().out.startswith("nothing to label")


def test_drawing_has_two_rows_a_line():
    image = np.repeat(np.array([0, 255, 0], np.uint8), (28, 28, 728))
    first, *others = extra.draw(image).splitlines()
    assert first == "\x1b[38;5;232;48;5;255m▀" * 28 + "\x1b[m"
    assert others == ["\x1b[38;5;232;48;5;232m▀" * 28 + "\x1b[m"] * 13
