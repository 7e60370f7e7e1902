"""Values of JSON as texts: what a text may hold, how deep it may be, what numpy's values become."""

import json

import numpy as np
import pytest

from serving import json_values
from serving.errors import InvalidRequest
from serving.json_values import JsonText, as_texts, parse, parsed, parsed_output, written_inputs
from serving.tensors import Tensor

DOCUMENT, TEXT = (Tensor(kind, "BYTES", (-1,), content=kind) for kind in ("json", "text"))


def nested(kind, depth):
    """A value of lists, objects or tuples inside of one another."""
    value = kind()
    for _ in range(depth - 1):
        value = {"a": value} if kind is dict else kind([value])
    return value


@pytest.mark.parametrize("kind", [list, dict])
def test_values_of_callers_have_64_levels(kind):
    text = json.dumps(nested(kind, 64))
    assert parse(text) == parse(text.encode()) == json.loads(text)
    with pytest.raises(ValueError, match=r"^more than 64 lists and objects inside of one another$"):
        parse(json.dumps(nested(kind, 65)))
    assert parse(json.dumps(nested(kind, 3)), 3) == nested(kind, 3)
    with pytest.raises(ValueError, match=r"^more than 3 lists "):
        parse(json.dumps(nested(kind, 4)), 3)


def test_text_that_is_far_too_deep_is_refused_alike():
    with pytest.raises(ValueError, match=r"^more than 64 lists and objects inside of one another$"):
        parse("[" * 200_000)


@pytest.mark.parametrize("kind", [list, dict, tuple])
def test_values_of_handlers_have_128_levels(kind):
    assert json.loads(json_values.write(nested(kind, 128))) == json.loads(
        json.dumps(nested(kind, 128))
    )
    with pytest.raises(
        ValueError, match=r"^more than 128 lists and objects inside of one another$"
    ):
        json_values.write(nested(kind, 129))


def test_values_that_a_server_answers_may_be_as_deep_as_a_handlers():
    texts = np.array([json.dumps(nested(list, 100))], object)
    assert parsed_output(DOCUMENT, texts).tolist() == [nested(list, 100)]
    assert parsed_output(TEXT, texts) is texts
    with pytest.raises(InvalidRequest, match=r"^json: row 0 is no JSON: more than 64 lists "):
        parsed("json", texts)


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", '{"a": -Infinity}'])
def test_numbers_that_are_none_are_no_json(text):
    with pytest.raises(ValueError, match=r"^-?(NaN|Infinity) is no JSON$"):
        parse(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("grüße", '"grüße"'), (["\ud800", "ü"], '["\\ud800", "\\u00fc"]'),
        ({"a": np.float32(0.5), "b": np.arange(3)}, '{"a": 0.5, "b": [0, 1, 2]}'),
        (["\ud800", np.int8(3)], '["\\ud800", 3]'), (JsonText('{"a":1}'), '{"a":1}'),
        (None, "null"), ((1, True), "[1, true]"),
    ],
)  # fmt: skip
def test_value_is_written_as_its_text(value, text):
    found = json_values.write(value)
    assert (found, type(found)) == (text, str)


@pytest.mark.parametrize("value", [float("nan"), [float("inf")], {"a": {1, 2}}, b"a"])
def test_value_that_json_can_not_hold_is_refused(value):
    with pytest.raises(ValueError, match=r"JSON"):
        json_values.write(value)


def test_only_inputs_of_json_are_written():
    both = {"json": [{"a": 1}, [2]], "text": ["b", "c"]}
    found = written_inputs((DOCUMENT, TEXT), both)
    assert isinstance(found, dict)
    assert found["json"].tolist() == ['{"a": 1}', "[2]"]
    assert found["text"] is both["text"]
    assert written_inputs((TEXT,), both) is both
    alone = written_inputs((DOCUMENT,), [1, None])
    assert isinstance(alone, np.ndarray)
    assert alone.tolist() == ["1", "null"]
    with pytest.raises(InvalidRequest) as caught:
        written_inputs((DOCUMENT,), "text")
    assert str(caught.value) == "json: expected a list with a value for each row, got str"


def test_texts_of_a_handler_are_json_already():
    given = {"a": ["[1]", ("2",)], "b": np.array(["3"], object), "c": 4}
    found = as_texts(given)
    assert found == {"a": ["[1]", ["2"]], "b": ["3"], "c": 4}
    assert isinstance(found, dict)
    assert all(type(each) is JsonText for each in (found["a"][0], found["a"][1][0], found["b"][0]))
