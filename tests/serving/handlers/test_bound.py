"""A handler beside a model: its methods as functions for other processes."""

# ruff: noqa: RUF012

import pickle

import numpy as np
import pytest

import serving
from serving.handlers.bound import Packed, finish, pack, predict, prepare
from serving.handlers.kinds import WrongValue
from serving.tensors import Tensor, TensorSignature

NETWORK = TensorSignature(
    (Tensor("x", "FP32", (-1, 2)),), (Tensor("state", "FP32", (-1, 2)),), is_batchable=True
)


class Own:
    """A state of the handler's own."""

    def __init__(self, number):
        self.number = number


class Lengths(serving.Handler):
    """The length of each text goes into the model; the state says what comes out."""

    inputs = {"text": serving.Text()}
    outputs = {"text": serving.Text()}

    def setup(self, folder):
        self.folder = folder.name

    def preprocess(self, text, parameters):
        made = {"plain": [1, "a"], "large": np.zeros(5000), "own": Own(7)}
        if "wrong" in text:
            return np.zeros((1, 3), np.float32)
        rows = [[len(each), 0] for each in text]
        return np.array(rows, np.float32), made[parameters["state"]]

    def postprocess(self, *outputs, state, parameters):
        (values,) = outputs
        kind = f"{self.folder} {type(state).__name__} {parameters['state']}"
        return [f"{kind} {row[0]:g}" for row in values]


class Upper(serving.Handler):
    """A text in capitals."""

    inputs = {"text": serving.Text()}
    outputs = {"text": serving.Text()}

    def predict(self, text):
        return [each.upper() for each in text]


@pytest.mark.parametrize(
    ("state", "kind"), [("plain", "list"), ("large", "ndarray"), ("own", "Own")]
)
def test_state_comes_back_to_postprocess_and_travels_packed_unless_plain_and_small(state, kind):
    code = pack(Lengths(), NETWORK)
    prepared = pickle.loads(pickle.dumps(prepare(code, [b"abc", b"de"], {"state": state})))
    assert isinstance(prepared.state, Packed) is (state != "plain")
    (inputs,) = prepared.inputs
    assert inputs.tolist() == [[3, 0], [2, 0]]
    found = finish(code, [inputs * 2], 2, {"state": state}, prepared.state)
    assert found["text"].tolist() == [f"handlers {kind} {state} 6", f"handlers {kind} {state} 4"]


def test_what_is_no_text_is_the_callers_fault_and_what_no_model_takes_the_handlers():
    code = pack(Lengths(), NETWORK)
    with pytest.raises(serving.InvalidRequest, match="UTF-8"):
        prepare(code, [b"\xff"], {"state": "plain"})
    with pytest.raises(WrongValue, match=r"Lengths.preprocess: x: expected the shape"):
        prepare(code, [b"wrong"], {"state": "plain"})


def test_handler_without_a_model_predicts():
    assert predict(pack(Upper(), None), [b"ab", b"c"], {})["text"].tolist() == ["AB", "C"]
