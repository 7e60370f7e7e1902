"""KServe's first protocol over HTTP: instances in, predictions out."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest

from tests.serving.model import graphs
from tests.serving.model.graphs import node, value
from tests.support.servers import serve_command, started


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v1")
    both = [value("a", "FP32", ["N", 3]), value("b", "INT64", ["N"])]
    two = graphs.model(
        [node("Neg", ["a"], ["c"]), node("Mul", ["b", "b"], ["d"])],
        both, [value("c", "FP32", ["N", 3]), value("d", "INT64", ["N"])])  # fmt: skip
    one = graphs.rows_model(node("Log", ["x"], ["y"]))
    text = graphs.model([node("Identity", ["x"], ["y"])], [value("x", "BYTES", ["N"])],
                        [value("y", "BYTES", ["N"])])  # fmt: skip
    for name, model in (("two", two), ("one", one), ("text", text)):
        (folder / name / "1").mkdir(parents=True)
        graphs.save(model, folder / name / "1")
    with started(serve_command(folder, "--http-port", "0")) as server:
        yield server.facts["http"]


def ask(url, path, body=None):
    request = urllib.request.Request(
        f"{url}{path}", None if body is None else json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as err:
        return err.code, json.load(err)


def test_rows_are_answered(url):
    assert ask(url, "/v1/models") == (200, {"models": ["one", "text", "two"]})
    assert ask(url, "/v1/models/one") == (200, {"name": "one", "ready": True})
    rows = [[1.0, 2.0, 4.0, 0.5], [1.0, 1.0, 1.0, 1.0]]
    code, answer = ask(url, "/v1/models/one:predict", {"instances": rows})
    assert code == 200
    np.testing.assert_allclose(answer["predictions"], np.log(rows), rtol=1e-6)
    named = [{"x": row} for row in rows]
    assert ask(url, "/v1/models/one:predict", {"instances": named}) == (200, answer)
    two = [{"a": [1, 2, 3], "b": 5}, {"a": [4, 5, 6], "b": 6}]
    wanted = [{"c": [-1, -2, -3], "d": 25}, {"c": [-4, -5, -6], "d": 36}]
    assert ask(url, "/v1/models/two:predict", {"instances": two}) == (200, {"predictions": wanted})
    text = {"instances": ["größer", ""]}
    assert ask(url, "/v1/models/text:predict", text) == (200, {"predictions": ["größer", ""]})
    _, answer = ask(url, "/v1/models/one:predict", {"instances": [[0.0, 1.0, 1.0, -1.0]]})
    assert answer["predictions"][0][:2] == [-np.inf, 0]
    assert np.isnan(answer["predictions"][0][3])


def test_many_rows_are_read_and_written_elsewhere(url):
    rows = np.random.default_rng(0).random((3000, 4)).tolist()
    _, answer = ask(url, "/v1/models/one:predict", {"instances": rows})
    np.testing.assert_allclose(answer["predictions"], np.log(rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("one:predict", {"instances": []}, 400, 'expected {"instances": [...]}'),
        ("one:predict", {"inputs": [[1]]}, 400, 'expected {"instances": [...]}'),
        ("one:predict", [], 400, "the body as an object"),
        ("one:predict", {"instances": [[1, 2], [3]]}, 400, "lists of one depth and length"),
        ("one:predict", {"instances": [["a"] * 4]}, 400, "expected data as numbers for FP32"),
        ("one:predict", {"instances": [{"y": [1] * 4}]}, 400, 'an object with "x"'),
        ("two:predict", {"instances": [{"a": [1, 2, 3]}]}, 400, 'an object with "a", "b"'),
        ("two:predict", {"instances": [[1, 2, 3]]}, 400, 'an object with "a", "b"'),
        ("one:predict", {"instances": [[1.0, 2.0]]}, 400, "x"),
        ("nope:predict", {"instances": [[1]]}, 404, "no model 'nope'"),
        ("one:explain", {"instances": [[1]]}, 501, "NAME:predict"),
        ("one", {"instances": [[1]]}, 501, "NAME:predict"),
    ],
)
def test_mistake_is_named(url, path, body, status, expected):
    code, answer = ask(url, f"/v1/models/{path}", body)
    assert code == status
    assert expected in answer["error"]
