import keras
import numpy as np
import pytest

from training.errors import ResumeError
from training.fitting.artifacts import Checkpoint, Progress

IDENTITY = {"seed": 3, "dropout": (0.4, 0.3), "deformation": {"scale": 0.1}}
PROGRESS = Progress(
    rows=[{"loss": 0.5, "val_accuracy": 0.9}, {"loss": 0.25, "val_accuracy": 0.95}],
    best=[np.full((2, 2), 7, np.float32), np.zeros(3, np.float32)],
    seconds=12.5,
)


def variables(value):
    return [
        keras.Variable(np.full((3, 2), value, np.float32)),
        keras.Variable(np.full(2, value), dtype="int64"),
    ]


def test_checkpoint_gives_back_what_was_saved(tmp_path):
    restored = variables(0)
    PROGRESS.save(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), variables(4))
    progress = Progress.restore(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), restored)
    assert [variable.numpy().tolist() for variable in restored] == [[[4, 4]] * 3, [4, 4]]
    assert (progress.rows, progress.seconds) == (PROGRESS.rows, PROGRESS.seconds)
    assert [weights.tolist() for weights in progress.best] == [[[7, 7]] * 2, [0, 0, 0]]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"seed": 4}, "seed 3, not 4"),
        ({"dropout": (0.4, 0.2)}, r"dropout \[0.4, 0.3\], not \[0.4, 0.2\]"),
        ({"deformation": None}, "deformation {'scale': 0.1}, not None"),
        ({"new": 1}, "new None, not 1"),
    ],
)
def test_checkpoint_of_another_training_is_refused_untouched(tmp_path, change, reason):
    untouched = variables(0)
    PROGRESS.save(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), variables(4))
    with pytest.raises(ResumeError, match=f"another training: {reason}"):
        Progress.restore(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY | change), untouched)
    assert untouched[1].numpy().tolist() == [0, 0]


@pytest.mark.parametrize("keep", [0, 10, -30])
def test_damaged_checkpoint_is_refused(tmp_path, keep):
    path = tmp_path / "checkpoint.npz"
    PROGRESS.save(Checkpoint(path, IDENTITY), variables(4))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ResumeError, match=r"cannot read .*checkpoint\.npz"):
        Progress.restore(Checkpoint(path, IDENTITY), variables(0))


def test_missing_checkpoint_is_refused(tmp_path):
    with pytest.raises(ResumeError, match=r"checkpoint\.npz is missing"):
        Progress.restore(Checkpoint(tmp_path / "checkpoint.npz", IDENTITY), variables(0))
