"""The detector's fit lowers both losses, and the saved network judges as the trained one did."""

from pathlib import Path

import numpy as np
import pytest

from digit_classifier import Classifier
from digit_reader import detector
from digit_reader.text.candidates import NUM_MEASURES, Candidates
from experiments.handwriting import onnx_file
from experiments.handwriting.examples import LabelledRow, of_picture
from experiments.handwriting.fitting import RAISED, Fit
from experiments.synthetic.pages import any_paper, without_digits
from experiments.synthetic.strings import random_string
from training.data.mnist import Mnist


@pytest.fixture(scope="module")
def rows(mnist_sample: Mnist) -> list[LabelledRow]:
    rng = np.random.default_rng(3)
    made = []
    with Classifier.pretrained(device="cpu") as classifier:
        for _ in range(3):
            composed = random_string(mnist_sample.test, rng, -2, 6)
            made += of_picture(any_paper(composed.ink, rng), composed, classifier)
        made += of_picture(without_digits("scribbles", rng), None, classifier)
    return made


@pytest.mark.slow
def test_a_fit_lowers_the_loss_of_labels_then_of_paths(
    rows: list[LabelledRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = Fit(NUM_MEASURES, seed=0)
    with_text = [row for row in rows if row.text]
    at_first = fit.path_loss(with_text)
    fit.by_labels(rows, epochs=4)
    by_labels = fit.path_loss(with_text)
    assert by_labels < 0.7 * at_first
    fit.by_paths(rows, epochs=5)
    assert fit.path_loss(with_text) < 0.9 * by_labels

    fit.save(tmp_path / "detector.onnx")
    monkeypatch.setattr(detector, "NETWORK", tmp_path / "detector.onnx")
    detector._session.cache_clear()
    row = rows[0]
    nothing = np.zeros((len(row.labels), 4), np.intp)
    logits = detector.logits(Candidates(
        row.spans, nothing, row.images, row.surroundings, row.measures, nothing[:, 0] > 0,
        row.images[:0],
    ))  # fmt: skip
    trained = fit._logits(row.images, row.surroundings, row.measures, with_dropout=False)
    assert np.allclose(logits, trained.numpy(), atol=0.05)

    fit.start_from(tmp_path / "detector.onnx")
    fit.blend(tmp_path / "detector.onnx")  # the same weights: only the log odds change
    raised = fit._logits(row.images, row.surroundings, row.measures, with_dropout=False)
    change = detector.odds(raised.numpy()) - detector.odds(logits)
    assert np.allclose(change, RAISED, atol=0.01)
    detector._session.cache_clear()


def test_network_of_the_package_is_as_the_fit_writes_it(tmp_path: Path) -> None:
    onnx_file.save(onnx_file.load(detector.NETWORK), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == detector.NETWORK.read_bytes()


def test_no_candidates_have_no_logits() -> None:
    none = np.zeros((0, 784), np.uint8)
    empty = np.zeros((0, 4), np.intp)
    measures = np.zeros((0, NUM_MEASURES), np.float32)
    logits = detector.logits(Candidates(empty, empty, none, none, measures, empty[:, 0] > 0, none))
    assert logits.shape == (0, 11)
