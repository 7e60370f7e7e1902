"""Models of every type and shape, from files and folders, with and without a manifest."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from digit_classifier import Classifier
from serving import Model
from serving.config import ModelConfig
from serving.errors import ConfigurationError, CorruptModel, ModelNotFound, ServingError
from serving.model import repository
from serving.model.acceptance import check
from serving.model.manifest import Unfit
from serving.model.timing import find_rows, has_bounded_time
from serving.system import files
from serving.tensors import DTYPES, Probabilities, Tensor, TensorSignature
from tests.serving.model import graphs
from tests.serving.model.graphs import TYPES, model, node, save, two_layers, value


def values_of(datatype, shape):
    numbers = np.arange(np.prod(shape)).reshape(shape)
    if datatype == "BYTES":
        return np.array([f"é{number}" for number in numbers.flat], object).reshape(shape)
    return (numbers % 2 if datatype == "BOOL" else numbers).astype(DTYPES[datatype])


RARE = {"INT16", "UINT16", "UINT32", "UINT64"}
"""Types that no export of the census has but to cast them: their calls run alone."""


@pytest.mark.parametrize("datatype", TYPES)
@pytest.mark.parametrize("axes", [(), (3,), (2, 3), ("N", 3), ("N", "M", 2)], ids=str)
def test_each_type_and_shape_is_answered(datatype, axes, tmp_path):
    graph = model(
        [node("Identity", ["x"], ["y"])], [value("x", datatype, axes)], [value("y", datatype, axes)]
    )
    array = values_of(datatype, tuple(each if isinstance(each, int) else 5 for each in axes))
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        (tensor,) = loaded.describe().inputs
        open_axes = tuple(each if isinstance(each, int) else -1 for each in axes)
        assert (tensor.datatype, tensor.shape) == (datatype, open_axes)
        answer = loaded.infer({"x": array})["y"]
        assert loaded.served.tensors.is_batchable == ("N" in axes and datatype not in RARE)
    assert answer.dtype == array.dtype
    np.testing.assert_array_equal(answer, array)


def test_inputs_with_a_default_are_not_demanded(tmp_path):
    graph = model(
        [node("Add", ["x", "bias"], ["y"])],
        [value("x", "FP32", ["N", 2]), value("bias", "FP32", [2])],
        [value("y", "FP32", ["N", 2])], {"bias": np.ones(2, np.float32)},
    )  # fmt: skip
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        assert [tensor.name for tensor in loaded.describe().inputs] == ["x"]
        assert loaded.infer({"x": [[1, 2]]})["y"].tolist() == [[2, 3]]


def test_shape_that_the_graph_does_not_say_is_taken_as_it_comes(tmp_path):
    graph = model(
        [node("Neg", ["x"], ["y"])], [value("x", "FP32", None)], [value("y", "FP32", None)]
    )
    with Model.load(save(graph, tmp_path), device="cpu") as loaded:
        for array in (np.float32(1), np.ones((2, 3), np.float32)):
            np.testing.assert_array_equal(loaded.infer({"x": array})["y"], -array)


def damaged(change):
    graph = two_layers()
    change(graph)
    return graph


def of_type(elem_type):
    x, y = (helper.make_tensor_value_info(name, elem_type, [1]) for name in "xy")
    return model([node("Identity", ["x"], ["y"])], [x], [y])


def zipmap():
    number = helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    classes = helper.make_map_type_proto(TensorProto.INT64, number)
    graph = model(
        [node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])],
        [value("x", "FP32", ["N", 2])],
        [helper.make_value_info("y", helper.make_sequence_type_proto(classes))],
    )
    graph.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return graph


def custom():
    graph = model(
        [node("Twice", ["x"], ["y"], domain="my.own")], [value("x", "FP32", [1])],
        [value("y", "FP32", [1])],
    )  # fmt: skip
    graph.opset_import.append(helper.make_opsetid("my.own", 1))
    return graph


def sequence():
    out = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    return model([node("SequenceConstruct", ["x"], ["y"])], [value("x", "FP32", [1])], [out])


GRAPHS = {
    "opset too new": (
        damaged(lambda graph: graph.opset_import[0].__setattr__("version", 99)), "Opset 99",
    ),
    "format too new": (
        damaged(lambda graph: graph.__setattr__("ir_version", 99)), "IR version: 99",
    ),
    "operator of nobody": (
        damaged(lambda graph: graph.graph.node[1].__setattr__("op_type", "Rely")), "Rely",
    ),
    "operator of one's own": (custom(), "my.own:Twice"),
    "half floats of the other kind": (of_type(TensorProto.BFLOAT16), "cast it to float32"),
    "sequence": (sequence(), r"output 'y' is a seq\(tensor\(float\)\), which can't be served"),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_that_cannot_be_served_is_refused_on_one_line(name, tmp_path):
    graph, reason = GRAPHS[name]
    with pytest.raises(CorruptModel, match=reason) as caught:
        Model.load(save(graph, tmp_path), device="cpu")
    assert str(caught.value).startswith("model.onnx: ")
    assert str(caught.value).isprintable()
    assert "onnxruntime_src" not in str(caught.value)


def vast(path):
    with path.open("wb") as file:
        file.truncate(1 << 40)


FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is not an ONNX file"),
    "text": (lambda path: path.write_text("no model"), "is not an ONNX file"),
    "cut off": (
        lambda path: path.write_bytes(two_layers().SerializeToString()[:-100]),
        "is not an ONNX file",
    ),
    "sparse and vast": (vast, "at most 2147483648 expected"),
    "pipe": (os.mkfifo, "not a regular file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", ["model.onnx", "any/1/model.onnx"])
def test_file_that_is_no_model_is_refused_on_one_line(name, place, tmp_path):
    make, reason = FILES[name]
    path = tmp_path / place
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)
    with pytest.raises(CorruptModel, match=reason) as caught:
        Model.load(path if path.parent == tmp_path else tmp_path / "any", device="cpu")
    assert str(caught.value).isprintable()


def test_what_is_no_file_is_not_found(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    for path in (tmp_path / "none.onnx", tmp_path / "folder.onnx", tmp_path / "none"):
        with pytest.raises(ModelNotFound):
            Model.load(path)
    with pytest.raises(ModelNotFound, match=r"'model\.onnx' has no version '2'"):
        Model.load(save(two_layers(), tmp_path), version=2)


def test_map_of_probabilities_is_the_tensor_before_it(tmp_path):
    with Model.load(save(zipmap(), tmp_path), device="cpu") as loaded:
        assert loaded.served.labels == ("0", "1")
        assert loaded.served.tensors.is_batchable
        rows = np.array([[0.25, 0.75], [1, 0]], np.float32)
        np.testing.assert_array_equal(loaded.infer({"x": rows})["y"], rows)


def with_weights(folder, name="m.onnx", location="m.onnx.data"):
    """A model whose weights are in another file, as PyTorch writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(
        two_layers(), str(folder / name), save_as_external_data=True, location=location,
        size_threshold=0,
    )  # fmt: skip
    return folder / name


@pytest.mark.parametrize("place", ["m.onnx", "m/1/model.onnx", "m/1/model.onnx/model.onnx"])
def test_weights_beside_the_model_are_read(place, tmp_path):
    path = with_weights((tmp_path / place).parent, Path(place).name, "weights.bin")
    with Model.load(path if place == "m.onnx" else tmp_path / "m", device="cpu") as loaded:
        (path.parent / "weights.bin").unlink()  # it is in memory
        rows = np.ones((2, 4), np.float32)
        with Model.load(save(two_layers(), tmp_path, "same.onnx"), device="cpu") as same:
            np.testing.assert_array_equal(
                loaded.infer({"x": rows})["y"], same.infer({"x": rows})["y"]
            )
        assert {"weights.bin", "model.onnx"} <= loaded.served.manifest.digests.keys()


@pytest.mark.parametrize("kind", ["missing", "link", "pipe", "too large", "elsewhere", "absolute"])
def test_weights_elsewhere_are_refused_by_name(kind, tmp_path):
    path = with_weights(tmp_path)
    data = tmp_path / "m.onnx.data"
    reason = "weights in 'm.onnx.data'"
    if kind == "link":
        data.rename(tmp_path / "other")
        data.symlink_to(tmp_path / "other")
        reason += ": a symbolic link is not followed"
    elif kind == "too large":
        vast(data)
        reason += ".* at most .* expected"
    elif kind in ("elsewhere", "absolute"):
        graph = onnx.load(str(path), load_external_data=False)
        place = "../m.onnx.data" if kind == "elsewhere" else str(data)
        for tensor in graph.graph.initializer:
            tensor.external_data[0].value = place
        path.write_bytes(graph.SerializeToString())
        reason = "only files beside the model are read"
    else:
        data.unlink()
        if kind == "pipe":
            os.mkfifo(data)
    with pytest.raises(CorruptModel, match=reason) as caught:
        Model.load(path, device="cpu")
    assert str(caught.value).isprintable()


def test_weights_that_become_a_link_while_they_are_read_are_refused(tmp_path, monkeypatch):
    path = with_weights(tmp_path)
    data, secret = tmp_path / "m.onnx.data", tmp_path / "secret"
    monkeypatch.setattr(Path, "is_symlink", lambda path: swap())
    monkeypatch.setattr(files, "_size", lambda *args, real=files._size: swap() or real(*args))

    def swap():
        if not secret.exists():
            data.rename(secret)
            os.symlink(secret, data)

    with pytest.raises(CorruptModel, match="a symbolic link is not followed"):
        Model.load(path, device="cpu")


@pytest.mark.parametrize("fault", ["a long name", "no text", "a map of nothing", "an input's name"])
def test_malformed_version_leaves_the_one_before_it(fault, tmp_path):
    for version in ("1", "2"):
        with_weights(tmp_path / "m" / version, "model.onnx", "weights")
    path = tmp_path / "m" / "2" / "model.onnx"
    graph = onnx.load(str(path), load_external_data=False)
    if fault == "a long name":
        graph.graph.initializer[0].external_data[0].value = "w" * 300
    elif fault == "a map of nothing":
        graph.graph.node.append(helper.make_node("ZipMap", ["y"], [], domain="ai.onnx.ml"))
    data = graph.SerializeToString()
    if fault == "no text":
        data = data.replace(b"weights", b"weigh\xff\xfe")
    elif fault == "an input's name":
        data = data.replace(b"\x01x", b"\x01\xff")
    path.write_bytes(data)
    assert Model.load(tmp_path / "m", device="cpu").served.manifest.version == "1"


def test_files_of_other_frameworks_are_refused_with_the_way_to_onnx(tmp_path):
    for name, advice in {
        "m.pt": "torch.onnx.export",
        "m.keras": "digit-serving export",
        "m.pkl": "skl2onnx",
    }.items():
        with pytest.raises(ConfigurationError, match=f"{name}: expected an ONNX file: .*{advice}"):
            repository.named_models(ModelConfig(names=(), files=(tmp_path / name,)), tmp_path)


def test_repositories_of_other_servers_are_served_as_they_are(tmp_path):
    kserve, openvino, mlflow = (tmp_path / name for name in ("kserve", "ovms", "mlflow"))
    for folder in (kserve, openvino / "m" / "1", mlflow / "net"):
        folder.mkdir(parents=True)
    save(two_layers(), kserve)
    save(two_layers(), kserve, "an other.onnx")
    save(two_layers(), openvino / "m" / "1", "any.onnx")
    save(two_layers(), mlflow / "net", "net.onnx")
    (mlflow / "net" / "MLmodel").write_text("flavors:\n  onnx:\n    data: net.onnx\n")
    expected = {
        kserve: {"model", "an-other"},
        openvino: {"m"},
        mlflow: {"net"},
        mlflow / "net": {"net"},
    }
    for root, names in expected.items():
        found = repository.named_models(ModelConfig(models=root), root)
        assert found.keys() == names
        for path in found.values():
            Model.load(path, device="cpu").close()
    with pytest.raises(ModelNotFound, match=r"expected NAME/1/model\.onnx, .* no such folder"):
        repository.named_models(ModelConfig(models=tmp_path / "none"), tmp_path / "none")


def test_folder_needs_no_manifest(tmp_path):
    for version in ("1", "2", "3"):
        (tmp_path / "any model" / version).mkdir(parents=True)
    save(two_layers(), tmp_path / "any model" / "2")
    save(two_layers(), tmp_path / "any model" / "1")
    (tmp_path / "any model" / "3" / "model.onnx").write_bytes(b"damaged")
    (tmp_path / "any model" / "config.pbtxt").write_text("max_batch_size: 8")
    with Model.load(tmp_path / "any model") as newest:
        assert (newest.version, newest.served.manifest.name) == ("2", "any-model")
    with Model.load(tmp_path / "any model", version=1) as pinned:
        assert pinned.version == "1"
    with pytest.raises(ConfigurationError, match="version 1 has no int8 variant"):
        Model.load(tmp_path / "any model", version=1, precision="int8")
    save(two_layers(), tmp_path / "any model" / "1", "model.int8.onnx")
    Model.load(tmp_path / "any model", version=1, precision="int8").close()


@pytest.mark.parametrize("name", ["model.onnx", "any"])
def test_classifier_needs_a_manifest(name, tmp_path):
    (tmp_path / "any" / "1").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "any" / "1"):
        save(two_layers(), folder)
    with pytest.raises(ServingError, match="manifest"):
        Classifier.load(tmp_path / name)


# The check of a model: how many runs it makes, by their cost


GOLDEN = np.random.default_rng(1).integers(0, 256, (32, 784), np.uint8)


class FakeModel:
    """Answers by each image alone, and takes its own time for it."""

    def __init__(self, image_s):
        self.image_s = image_s
        self.now_s = 0.0
        self.sizes: list[int] = []

    def run(self, images):
        self.sizes.append(len(images))
        self.now_s += self.image_s * len(images)
        probabilities: Probabilities = np.eye(10, dtype=np.float32)[images.sum(axis=1) % 10]
        return probabilities

    def clock(self):
        return self.now_s


def expected():
    return FakeModel(0.0).run(GOLDEN)


def test_quick_model_is_checked_in_every_batch_size():
    model = FakeModel(image_s=1e-4)
    check(model.run, GOLDEN, expected(), 512, model.clock)
    assert model.sizes.count(1) == len(GOLDEN) + 16
    sizes = [2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256, 511, 512]
    assert model.sizes[-len(sizes) :] == sizes


@pytest.mark.parametrize(("image_s", "num_alone", "sizes"), [
    (0.02, 48, [2, 3, 4, 7, 8, 15, 16, 31]),  # a MobileNet of 224 px
    (0.1, 11, [2, 3, 4, 7]),
    (5.0, 4, [2]),
])  # fmt: skip
def test_dear_model_is_checked_in_few(image_s, num_alone, sizes):
    model = FakeModel(image_s)
    check(model.run, GOLDEN, expected(), 512, model.clock)
    assert model.sizes == [1] * num_alone + sizes


def test_dear_model_whose_rows_depend_on_each_other_is_unfit():
    model = FakeModel(image_s=5.0)
    with pytest.raises(Unfit, match="answers depending on the batch: of 2 images"):
        check(lambda images: model.run(images).cumsum(axis=0), GOLDEN, expected(), 512, model.clock)


@pytest.mark.parametrize(
    ("first_s", "row_s", "inline_rows"),
    [
        (18e-6, 2e-6, 512),  # the digits in int8
        (18e-6, 4.6e-6, 256),  # in fp32
        (10e-6, 1.5e-6, 512),  # trees
        (20e-6, 48e-6, 2),  # a segmenter of texts
        (60e-6, 120e-6, 1),
        (0.0, 600e-6, 0),  # a network of convolutions
    ],
)
def test_inline_rows_are_those_that_hold_nobody_up(monkeypatch, first_s, row_s, inline_rows):
    now_s = 0.0

    def run(feeds):
        nonlocal now_s
        now_s += first_s + row_s * len(feeds["x"])

    def clock():
        return now_s

    monkeypatch.setattr(
        "serving.model.timing.time", SimpleNamespace(monotonic=clock, thread_time=clock)
    )
    both = [Tensor(name, "FP32", (-1, 4)) for name in ("x", "y")]
    signature = TensorSignature((both[0],), (both[1],), is_batchable=True)
    feeds = {"x": np.zeros((1, 4), np.float32)}
    assert find_rows(run, signature, feeds, 512)[0] == inline_rows


@pytest.mark.parametrize("tensor", [Tensor("x", "FP32", (-1, -1)), Tensor("x", "BYTES", (-1, 2))])
def test_rows_of_any_length_are_not_quick(tensor):
    signature = TensorSignature((tensor,), (Tensor("y", "FP32", (-1, 1)),), is_batchable=True)
    feeds = {"x": np.zeros((1, 2), tensor.dtype)}
    assert find_rows(lambda feeds: [], signature, feeds, 512)[0] == 0


@pytest.mark.parametrize("operator", ["If", "Range", "Expand", "Tile", "NonMaxSuppression"])
def test_operators_whose_time_depends_on_values_are_found(operator):
    assert has_bounded_time(graphs.two_layers().SerializeToString())
    inner = helper.make_graph(
        [node(operator, ["a"], ["b"])], "body", [], [value("b", "FP32", None)]
    )
    hidden = graphs.rows_model(node("Other", ["x"], ["y"], body=inner))
    assert not has_bounded_time(hidden.SerializeToString())
