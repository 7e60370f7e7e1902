"""Exports of Keras, scikit-learn and boosters: rows that are independent are proved so.

Each network is labelled by ONNX Runtime itself: rows in a batch against rows alone.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from serving.model.judging import judge
from serving.model.onnx_runtime import ON_CPU, inputs_of, new_session
from serving.proof.drawn_inputs import draws, relative_error, take
from serving.proof.onnx_file import cut_zip_maps, parse_model
from tests.proof import keras_exports

TOLERANCE = 1e-3
"""Sums of a batch are added in another order than those of a row."""
REFUSED = {
    "category-encoding": "over rows",  # as many columns as the largest number of the batch says
    "resizing-cropped": "takes some of the rows",
}
"""Networks of Keras whose rows are independent and not proved, by a part of the reason."""
NOT_EXPORTED = {
    "integer-lookup", "string-lookup", "gru-open", "conv-lstm", "conv2d-groups", "masking",
    "argmax", "discretization", "fft", "hashing", "mel-spectrogram",
}  # fmt: skip
"""Networks that tf2onnx or ONNX Runtime refuse."""
LEAST_SHARE = 0.95


def are_independent(onnx: bytes) -> bool | None:
    """Whether rows in a batch are those alone; None if no drawn input can be run."""
    session = new_session(onnx, ON_CPU)
    for feeds in draws(inputs_of(session), 8):
        quiet = take(feeds, range(5))
        try:
            alone = [session.run(None, take(quiet, [row])) for row in range(5)]
        except Exception:  # ONNX Runtime's have no common base
            continue
        batch = session.run(None, quiet)
        return all(
            all(each.shape[:1] == (1,) for each in rows)
            and relative_error(np.concatenate(rows), together) <= TOLERANCE
            for together, rows in zip(batch, zip(*alone, strict=True), strict=True)
        )
    return None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_networks_of_keras_are_proved_where_rows_are_independent():
    wrong, num_proved = {}, 0
    for name in keras_exports.NETWORKS.keys() - NOT_EXPORTED:
        onnx = keras_exports.export(name).SerializeToString()
        reason = judge(onnx).obstacle
        num_proved += reason is None
        if name in keras_exports.MIXING:
            assert reason is not None
            assert are_independent(onnx) is False
        elif (reason or "").find(REFUSED.get(name, "")) < 0 or (reason and name not in REFUSED):
            wrong[name] = reason
        else:
            assert are_independent(onnx)
    assert not wrong
    assert num_proved >= LEAST_SHARE * (num_proved + len(REFUSED))


@pytest.mark.slow
@pytest.mark.skipif("EXPORTS" not in os.environ, reason="scikit_exports.py says how to make some")
def test_models_of_converters_are_proved_where_rows_are_independent():
    refused, num_proved = {}, 0
    for path in sorted(Path(os.environ["EXPORTS"]).glob("*.onnx")):
        graph = parse_model(path.read_bytes())
        cut_zip_maps(graph)
        onnx = graph.SerializeToString()
        reason = judge(onnx).obstacle
        try:
            are_free = are_independent(onnx)
        except Exception as err:  # ONNX Runtime does not load some of them
            print(f"{path.stem}: {str(err)[:100]}")
            continue
        assert are_free is not False or reason is not None, path.stem
        num_proved += reason is None
        if are_free and reason is not None:
            refused[path.stem] = reason
    print(f"{num_proved} are proved; independent and refused: {refused}")
    assert num_proved >= LEAST_SHARE * (num_proved + len(refused))
