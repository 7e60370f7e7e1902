"""One server, 16 callers of unlike rows: beside any others, each row has the answer it has alone.

Every small graph is served that mixes rows, and every one that is proved not to: of the first kind
calls must run alone, of the second they are batched.
"""

import contextlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.client import Client
from serving.model.onnx_runtime import runtime
from tests.serving.model.test_batching_proof import MIXING, PROVED, build, walked
from tests.support.servers import serve_command, started

NUM_CALLERS, NUM_CALLS = 16, 3
SCALES = np.array([1, 255, 0.01, 1e30, 0, np.nan, 5, -80, np.inf, 1, 255, 3e4, 1e-30, 7, 2, 1])
"""Each caller's rows: quiet beside loud, 0 to 1 beside 0 to 255, NaN beside numbers."""

UNSTEADY = {
    "Loop",  # of 1e30 turns never ends
    "BatchNormalization", "RandomUniformLike", "Dropout",  # training, chance
    "LinearClassifier",  # PROBIT leaves scores that nobody writes
}  # fmt: skip


def are_equal(answers, wanted):
    """Almost, for sums are added in another order where rows are many."""
    return all(
        each.shape == other.shape and np.allclose(each, other, rtol=1e-4, atol=1e-5, equal_nan=True)
        for each, other in zip(answers, wanted, strict=True)
    )


def servable():
    """The models of floats in rows that run with one row, and their answers to each caller."""
    generator = np.random.default_rng(1)
    with np.errstate(all="ignore"):
        drawn = generator.random((NUM_CALLERS, 1, 4)) * SCALES[:, None, None]
        rows = drawn.astype(np.float32)
    for kind, entries in ("mixes", MIXING), ("proved", PROVED):
        for number, entry in enumerate(entries.values()):
            model = build(entry)
            if UNSTEADY & {each.op_type for each in walked(model.graph)}:
                continue
            # Some can't be loaded, or run with certain numbers of rows only.
            with contextlib.suppress(Exception):
                session = runtime().InferenceSession(
                    model.SerializeToString(), providers=["CPUExecutionProvider"]
                )
                inputs = session.get_inputs()
                if any(each.type != "tensor(float)" or each.shape[1:] != [4] for each in inputs):
                    continue
                alone = [session.run(None, {i.name: row for i in inputs}) for row in rows]
                names = [each.name for each in inputs], [o.name for o in session.get_outputs()]
                yield f"{kind}{number}", model.SerializeToString(), names, rows, alone


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    folder = tmp_path_factory.mktemp("unlike")
    cases = {}
    for name, data, *rest in servable():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "1" / "model.onnx").write_bytes(data)
        cases[name] = rest
    return folder, cases


@pytest.fixture(scope="module")
def served(cases):
    # A moment's delay lets the calls of all callers meet in one batch.
    options = "--max-queue-delay", "0.01", "--log-format", "json"
    with started(serve_command(cases[0], *options)) as server:
        yield server


def test_rows_of_16_callers_have_the_answers_that_they_have_alone(cases, served):
    cases, wrong = cases[1], []

    def ask(number):
        with Client(served.address) as client:
            for name, ((inputs, outputs), rows, alone) in cases.items():
                for _ in range(NUM_CALLS):
                    answer = client.infer(name, **dict.fromkeys(inputs, rows[number]))
                    answers = [answer[each] for each in outputs]
                    if not are_equal(answers, alone[number]):
                        wrong.append((name, number, answers, alone[number]))

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        list(pool.map(ask, range(NUM_CALLERS)))
    assert not wrong, Counter(each[0] for each in wrong)
