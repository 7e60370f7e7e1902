"""The model to optimise: what quantizers take, and what they have nothing to do with."""

import hashlib
import re
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from serving.errors import ConfigurationError
from serving.optimising import source
from serving.optimising.source import NothingToGain
from tests.serving.model.graphs import node, rows_model, save, two_layers

FLOATS = {"w": np.ones(1, np.float32)}


def of(*operators, domain="", constants=None):
    nodes = [node(each, ["x"], ["y"], domain=domain) for each in operators]
    return rows_model(*nodes, constants=FLOATS if constants is None else constants)


@pytest.mark.parametrize(
    "operator",
    ["QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul",
     "ConvInteger", "MatMulInteger", "MatMulNBits", "MatMulIntegerToFloat",
     "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "QAttention", "QGemm",
     "GatherBlockQuantized", "MatMulBnb4"],
)  # fmt: skip
def test_graph_that_is_quantized_is_left_as_it_is(operator):
    with pytest.raises(NothingToGain) as caught:
        source._require_worth(of("Conv", operator))
    assert str(caught.value) == f"it is quantized already: it has {operator}"


@pytest.mark.parametrize(
    "operator",
    ["Conv", "ConvTranspose", "MatMul", "Gemm", "LSTM", "Attention", "FusedConv", "FusedMatMul"],
)
def test_operator_with_weights_is_worth_it(operator):
    source._require_worth(of("Relu", operator))
    source._require_worth(of(operator, "Constant", constants={}))
    with pytest.raises(NothingToGain, match=r"^it has no weights of floats$"):
        source._require_worth(of(operator, constants={"w": [1]}))


@pytest.mark.parametrize(
    ("domain", "of_"), [("", ""), ("mine", " (its nodes are of mine)")], ids=["onnx", "another"]
)
def test_other_operators_are_not(domain, of_):
    reason = f"it has no convolution or matrix product to quantize{of_}"
    with pytest.raises(NothingToGain, match=f"^{re.escape(reason)}$"):
        source._require_worth(of("Relu", domain=domain))


def test_model_is_read_with_all_that_its_folder_says(tmp_path):
    version = tmp_path / "net" / "3"
    version.mkdir(parents=True)
    onnx.save(two_layers(), version / "other.onnx", save_as_external_data=True, location="w.bin",
              size_threshold=64)  # fmt: skip
    settings = b"default_model_filename: 'other.onnx'"
    (tmp_path / "net" / "config.pbtxt").write_bytes(settings)
    data, weights = (version / "other.onnx").read_bytes(), (version / "w.bin").read_bytes()
    digests = {name: hashlib.sha256(each).hexdigest()
               for name, each in (("other.onnx", data), ("w.bin", weights))}  # fmt: skip
    for number in (None, "3"):
        found = source.read_source(tmp_path / "net", number)
        assert {name: getattr(found, name) for name in found.__slots__} == {
            "name": "net", "version": "3", "folder": tmp_path / "net", "onnx": data,
            "weights": {"w.bin": weights}, "digests": digests, "document": {},
            "file_name": "other.onnx", "settings": settings,
        }  # fmt: skip
    size = len(data) + len(weights)
    assert source.read_source(tmp_path / "net", "3", size).onnx == data
    reason = f"{size:,} bytes; quantizers take at most {size - 1:,}"
    with pytest.raises(ConfigurationError, match=reason):
        source.read_source(tmp_path / "net", "3", size - 1)
    assert source.MAX_BYTES == 2_000_000_000


def test_newest_good_version_is_that_of_a_server(tmp_path, monkeypatch):
    asked = []

    def load(model, **options):
        asked.append((model, options))
        return SimpleNamespace(version="1")

    monkeypatch.setattr(source, "load_model", load)
    for version in ("1", "2"):
        (tmp_path / version).mkdir()
        save(two_layers(), tmp_path / version)
    assert source.read_source(tmp_path, None).version == "1"
    assert asked == [(tmp_path, {"tries_file": True})]


def test_names_of_nodes_are_their_own():
    made = rows_model(*[node("Neg", ["x"], [name], name=own) for name, own in (
        ("a", "n"), ("b", ""), ("c", "n"), ("y", "m"))])  # fmt: skip
    source._name_nodes(made)
    assert [each.name for each in made.graph.node] == ["n", "Neg_node_1", "Neg_node_2", "m"]
