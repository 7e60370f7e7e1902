"""Which outputs of a model are classes and probabilities, and what is counted of them."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from serving import Client
from serving.model import answers
from serving.model.answers import Answers, find_answers
from serving.model.loading import load_model
from serving.proof.onnx_file import cut_zip_maps, parse_model
from serving.protocols import varint
from serving.telemetry.metrics import MAX_LABELS, OTHER, Metrics
from serving.tensors import Tensor, TensorSignature
from tests.serving.telemetry.test_metrics import scrape, value
from tests.support.servers import running_server, wait_until

NAMES = ("low", "high")
LABEL = ("m", "1")


def table_model(*, zip_map=True):
    """As skl2onnx writes a logistic regression: a label, and a dictionary of probabilities."""
    nodes = [
        helper.make_node(
            "LinearClassifier", ["x"], ["label", "scores"], domain="ai.onnx.ml",
            coefficients=[-1.0, 0.0, 1.0, 0.0], intercepts=[0.0, 0.0],
            classlabels_strings=list(NAMES), post_transform="SOFTMAX",
        ),
        helper.make_node("Normalizer", ["scores"], ["table"], domain="ai.onnx.ml", norm="L1"),
    ]  # fmt: skip
    values = [
        helper.make_tensor_value_info("label", TensorProto.STRING, ["N"]),
        helper.make_tensor_value_info("table", TensorProto.FLOAT, ["N", 2]),
    ]
    if zip_map:
        nodes.append(
            helper.make_node(
                "ZipMap", ["table"], ["maps"], domain="ai.onnx.ml", classlabels_strings=list(NAMES)
            )
        )
        kind = helper.make_map_type_proto(
            TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
        )
        values[1] = helper.make_value_info("maps", helper.make_sequence_type_proto(kind))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    graph = helper.make_graph(nodes, "table", inputs, values)
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def answers_of(text, tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'), path)
    return load_model(path).answers


@pytest.mark.parametrize("zip_map", [True, False])
def test_label_and_probabilities_of_a_table_model_are_found(zip_map, tmp_path):
    path = tmp_path / "table.onnx"
    onnx.save(table_model(zip_map=zip_map), path)
    assert load_model(path).answers == Answers(0, 1, NAMES if zip_map else ())
    assert cut_zip_maps(parse_model(path.read_bytes())) == (NAMES if zip_map else None)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = Softmax(x)", Answers(None, 0, ())),
        ("s = Softmax(x) y = Cast<to = 1>(s)", Answers(None, 0, ())),
        ("s = Softmax(x) y = Neg(s)", None),
        ("y = Relu(x)", None),
    ],
)
def test_last_operator_decides(body, expected, tmp_path):
    assert answers_of(f"g (float[N,3] x) => (float[N,3] y) {{ {body} }}", tmp_path) == expected


def test_argmax_is_a_label_and_a_softmax_of_words_is_none(tmp_path):
    text = "g (float[N,3] x) => (int64[N] y) { y = ArgMax<axis = 1, keepdims = 0>(x) }"
    assert answers_of(text, tmp_path) == Answers(0, None, ())
    text = "g (float[N,4,3] x) => (float[N,4,3] y) { y = Softmax(x) }"
    assert answers_of(text, tmp_path) is None


def test_no_graph_has_no_answers(tmp_path):
    tensors = load_model_of("y = Softmax(x)", tmp_path).tensors
    for data in (b"", b"\x00" * 100, b"damaged"):
        assert find_answers(data, tensors) is None
        assert find_answers(data, tensors, ("a", "b", "c")) == Answers(None, 0, ("a", "b", "c"))


def load_model_of(body, tmp_path):
    path = tmp_path / "net.onnx"
    text = f"g (float[N,3] x) => (float[N,3] y) {{ {body} }}"
    onnx.save(parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'), path)
    return load_model(path)


def counted(answers, *runs):
    classes, confidences = answers.counted([answers.kept(run) for run in runs])
    return dict(classes), np.concatenate([*confidences, np.empty(0)]).round(2).tolist()


def test_rows_are_counted_by_name_and_probability():
    table = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32)
    named, numbered = Answers(None, 0, NAMES), Answers(None, 0, ())
    assert counted(named, [table]) == ({"low": 2, "high": 1}, [0.9, 0.8, 0.6])
    assert counted(numbered, [table], [table[:1]]) == ({"0": 3, "1": 1}, [0.9, 0.8, 0.6, 0.9])
    no_distributions = np.array([[2, 1], [np.nan, np.nan], [-1, 2]], np.float32)
    assert counted(named, [no_distributions])[1] == []
    assert counted(named, [table[:0]]) == ({}, [])
    wider = np.array([[0.1, 0.2, 0.7]], np.float32)
    assert counted(named, [table], [wider])[0] == {"low": 2, "high": 1, "2": 1}
    texts = np.array(["a", b"b", "a"], object)
    assert counted(Answers(0, None, ()), [texts], [texts]) == ({"a": 4, "b": 2}, [])
    assert counted(Answers(0, 1, NAMES), [texts, table])[0] == {"a": 2, "b": 1}


def test_at_most_a_hundred_labels_are_counted():
    metrics = Metrics()
    for start in (0, 50):
        labels = np.arange(start, start + 120)
        metrics.observe_answers(Answers(0, None, ()), [labels], LABEL)
    counts = metrics.snapshot().models[LABEL].labels
    assert len(counts) == MAX_LABELS + 1
    assert counts.total() == 240
    assert counts["99"] == 2
    assert counts[OTHER] == 20 + 70


def test_canary_of_a_table_model_shows_its_quality(tmp_path):
    for version, model in (("1", table_model()), ("2", table_model(zip_map=False))):
        (tmp_path / "table" / version).mkdir(parents=True)
        onnx.save(model, tmp_path / "table" / version / "model.onnx")
    options = ["--versions", "all"]
    with running_server(tmp_path, *options) as server, Client(server.address) as client:
        rows = np.array([[-2.0, 0], [3, 0], [4, 0]], np.float32)
        client.infer("table", {"x": rows}, version="1")
        for row in rows:
            client.infer("table", {"x": row[None]}, version="2")

        def read(sample, **labels):
            return value(scrape(server), sample, model="table", **labels)

        def counts(version):
            names = {"version": version, "class": "low"}, {"version": version, "class": "high"}
            return [read("serving_answers_total", **labels) for labels in names]

        wait_until(lambda: counts("1") == counts("2") == [1, 2])
        for version in ("1", "2"):
            assert read("serving_confidence_count", version=version) == 3
            assert 1.5 < read("serving_confidence_sum", version=version) <= 3


@pytest.mark.parametrize(
    ("node", "kind"),
    [
        *(((each, place, ["x"]), kind)
          for each in ("TreeEnsembleClassifier", "LinearClassifier", "SVMClassifier")
          for place, kind in enumerate(("label", "probabilities", ""))),
        (("ArgMax", 0, ["x"]), "label"),
        *(((each, 0, ["x"]), "probabilities") for each in ("Softmax", "Normalizer")),
        *(((each, 0, ["softmax"]), "probabilities")
          for each in ("Identity", "Cast", "Reshape", "Squeeze", "Flatten", "LabelEncoder",
                       "ZipMap")),
        *(((each, 0, ["names", "argmax"]), "label")
          for each in ("ArrayFeatureExtractor", "Gather")),
        (("Gather", 0, ["argmax"]), ""), (("Neg", 0, ["softmax"]), ""),
    ],
    ids=str,
)  # fmt: skip
def test_operator_decides_what_an_output_is(node, kind):
    nodes = {"y": node, "softmax": ("Softmax", 0, ["x"]), "argmax": ("ArgMax", 0, ["x"])}
    assert answers._kind_of("y", nodes) == kind
    assert answers._kind_of("nobody", nodes) == ""


@pytest.mark.parametrize(("number", "kind"), [(31, "probabilities"), (32, "")])
def test_output_is_followed_for_32_steps(number, kind):
    chain = {f"a{at}": ("Identity", 0, [f"a{at + 1}"]) for at in range(number)}
    nodes = {**chain, f"a{number}": ("Softmax", 0, ["x"])}
    assert answers._kind_of("a0", nodes) == kind


@pytest.mark.parametrize(("size", "is_read"), [(4096, True), (4097, False)])
def test_name_of_an_output_has_four_kibibytes(size, is_read):
    name = "y" * size
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], [name])], "g", [], [])
    tensors = TensorSignature((), (Tensor(name, "FP32", (-1, 3)),), is_batchable=False)
    found = find_answers(helper.make_model(graph).SerializeToString(), tensors)
    assert found == (Answers(None, 0, ()) if is_read else None)


@pytest.mark.parametrize(("behind", "expected"), [((1 << 20) - 100, ("a",)), (1 << 20, ())])
def test_labels_are_looked_for_in_the_last_mebibyte(behind, expected):
    made = helper.make_model(helper.make_graph([], "g", [], []))
    made.metadata_props.add(key="labels", value='["a"]')
    more = b"\x9a\x06" + varint(behind) + bytes(behind)  # of field 99
    assert answers.labels_of(made.SerializeToString() + more) == expected
