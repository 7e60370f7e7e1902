import json
import logging
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from digit_classifier import PRETRAINED, Classifier
from serving.__main__ import main
from serving.config import ModelConfig
from serving.errors import ConfigurationError, CorruptModel, ModelNotFound
from serving.model import repository
from serving.model.manifest_file import parse_manifest
from serving.model.repository import find_root
from tests.serving.model.graphs import save, two_layers
from tests.support import published


def test_only_directories_are_versions(tmp_path):
    (tmp_path / "1").mkdir()
    (tmp_path / "2").symlink_to("1")
    for number, make in enumerate(published.SPECIAL.values(), start=3):
        if make is not published.SPECIAL["directory"]:
            make(tmp_path / str(number))
    assert repository.versions(tmp_path) == ["2", "1"]


def test_directory_that_cannot_be_read_is_an_error_in_one_line(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ConfigurationError, match=r"can't read .*loop: Too many levels"):
        repository.versions(tmp_path / "loop")


def test_model_may_be_reached_by_a_link_of_another_name(model_dir):
    link = model_dir.with_name("current")
    link.symlink_to("digits")
    assert repository.load(link, "1")[0].name == "digits"


def test_no_model_names_the_command_that_makes_one(tmp_path, monkeypatch):
    # Not in this checkout, which has a model there once its reader has made one.
    checkout, empty = tmp_path / "checkout", tmp_path / "empty"
    for file in (checkout / "Makefile", checkout / "training" / "__main__.py"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    empty.mkdir()
    monkeypatch.chdir(checkout)
    with pytest.raises(ModelNotFound, match="make train export"):
        repository.versions(Path("models/digits"))
    for model_dir in (empty, tmp_path / "missing"):
        with pytest.raises(ModelNotFound, match=r"expected 1/model\.onnx, .* found no"):
            repository.versions(model_dir)


@pytest.mark.parametrize("version", ["2", "../1", "1/", "01", "", "x" * 10_000, "1\0", "١"])
def test_version_that_is_none_is_not_found_and_nothing_is_opened(model_dir, version):
    (model_dir / "1" / "manifest.json").chmod(0o000)  # would be CorruptModel if it were read
    with pytest.raises(ModelNotFound) as caught:
        repository.load(model_dir, version)
    assert len(str(caught.value)) < 200


def without(*path):
    def remove(document):
        for key in path[:-1]:
            document = document[key]
        del document[path[-1]]

    return remove


def changed(*path, to):
    def change(document):
        for key in path[:-1]:
            document = document[key]
        document[path[-1]] = to

    return change


@pytest.mark.parametrize(
    "change",
    [
        without("files"),
        without("golden", "images"),
        changed("format", to=2),
        changed("files", to=["model.onnx"]),
        changed("accuracy", to=0.99),
        changed("accuracy", "test", to="high"),
        changed("golden", "images", to="not base64!"),
        changed("golden", "images", to="AAAA"),
        changed("golden", "probabilities", to=[[1.0] * 9]),
        without("golden", "int8_probabilities"),
        changed("golden", "int8_probabilities", to=[[1.0] * 9]),
        changed("golden", to={"images": "", "probabilities": []}),
        changed("accuracy", "test", to=float("nan")),
        changed("accuracy", "test", to=1.5),
        changed("files", "model.onnx", to="d" * 1000),
        changed("name", to=None),
        changed("name", to="two\nlines"),
        changed("version", to="9" * 1000),
        changed("preprocesing", to={"size": [28, 28]}),
        changed("signature", "lables", to=["zero"]),
    ],
)
def test_malformed_manifest_is_refused(model_dir, change):
    published.edit_manifest(model_dir, "1", change)
    with pytest.raises(CorruptModel, match="manifest"):
        repository.load(model_dir, "1")


def test_unknown_field_of_a_manifest_is_named(model_dir):
    published.edit_manifest(model_dir, "1", changed("lineage", to="run 7"))
    published.edit_manifest(model_dir, "1", changed("signature", "unit", to="mm"))
    assert repository.load(model_dir, "1")[0].unknown == ("lineage", "signature.unit")
    published.edit_manifest(model_dir, "1", changed("line\x7f", to="run 7"))
    assert repository.load(model_dir, "1")[0].unknown[-2:] == (repr("line\x7f"), "signature.unit")


def test_name_of_a_file_that_no_message_can_show_is_refused(model_dir):
    published.edit_manifest(model_dir, "1", changed("files", "model\x7f.onnx", to="0" * 64))
    with pytest.raises(CorruptModel, match=r"a file can't have the name 'model\\x7f\.onnx'"):
        repository.load(model_dir, "1")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}", b" " * (5 << 20)]
)
def test_manifest_that_is_no_document_is_refused(data):
    with pytest.raises(CorruptModel, match="manifest"):
        parse_manifest(data)


# The bundled model: it answers without a training, and agrees with its manifest


MAX_BYTES = 1_500_000
MAX_INT8_LOSS = 0.0005
ROOT = Path(__file__).parents[3]


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A working directory without a models folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_box_is_small():
    files = [path for path in PRETRAINED.rglob("*") if path.is_file()]
    assert {path.name for path in files} == {
        "config.pbtxt",
        "manifest.json",
        "model.onnx",
        "model.int8.onnx",
    }
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.full_mnist
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_shipped_bytes_are_as_accurate_as_their_manifest_says(precision, mnist):
    version = PRETRAINED / "digits" / "1"
    manifest = json.loads((version / "manifest.json").read_text())
    claimed = manifest["accuracy"]["test"]
    with Classifier.pretrained("cpu", precision) as classifier:
        right = classifier.classify(mnist.test_images).digits == mnist.test_labels
    if precision == "int8":
        assert abs(right.mean() - claimed) <= MAX_INT8_LOSS
        claimed = manifest["int8"]["test_accuracy"]
    assert right.sum() == round(claimed * 10_000)


def test_pretrained_answers(images, mnist_sample):
    with Classifier.pretrained(device="cpu") as classifier:
        digits = classifier.classify(images).digits
    assert (digits == mnist_sample.test_labels).mean() > 0.98


@pytest.mark.usefixtures("elsewhere")
def test_box_is_used_where_nothing_is_exported(capsys, caplog):
    caplog.set_level(logging.INFO)
    picture = ROOT / "docs" / "pictures" / "seven.png"
    assert main(["classify", str(picture), "--device", "cpu"]) == 0
    assert "seven.png: 7 (" in capsys.readouterr().out
    assert [record.levelno for record in caplog.records] == [logging.INFO]
    assert caplog.messages[0].startswith("no model in models/digits: using the bundled one")


def test_exported_model_goes_before_the_box(models, tmp_path):
    assert find_root("digits", models) == models
    assert find_root("digits", tmp_path) == PRETRAINED
    assert find_root("other", tmp_path) == tmp_path  # and there it will be missed


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("shift", "is_rejected"), [(-1e-6, False), (1e-6, True)])
def test_reject_below_turns_unsure_answers_away(shift, is_rejected, tmp_path, capsys):
    path = tmp_path / "blank.png"
    strokes = np.zeros((28, 28), np.uint8)
    strokes[4:24, 13:15] = strokes[13:15, 4:24] = 255  # a plus sign is no digit
    Image.fromarray(strokes).save(path)
    main(["classify", str(path), "--json"])
    certainty = max(json.loads(capsys.readouterr().out)["probabilities"])
    threshold = str(certainty + shift)
    assert main(["classify", str(path), "--reject-below", threshold]) == 0
    assert (": ? (perhaps" in capsys.readouterr().out) == is_rejected
    assert main(["classify", str(path), "--reject-below", threshold, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rejected"] == is_rejected


@pytest.mark.parametrize("length", [0, 1, 99, 100, 101])
def test_texts_of_a_manifest_are_as_long_as_their_error_says(model_dir, length):
    published.edit_manifest(model_dir, "1", changed("name", to="x" * length))
    fits = 1 <= length <= 100
    reason = "is that of model" if fits else "name must be 1 to 100 printable characters"
    with pytest.raises(CorruptModel, match=reason):
        repository.load(model_dir, "1")


def test_folder_with_one_file_is_that_file(tmp_path):
    for name in ("none", "one", "none of onnx"):
        (tmp_path / name).mkdir()
    save(two_layers(), tmp_path / "one")
    (tmp_path / "none of onnx" / "notes.txt").touch()
    assert repository.only_file(tmp_path / "one") == tmp_path / "one" / "model.onnx"
    for name in ("none", "none of onnx", "missing"):
        assert repository.only_file(tmp_path / name) == tmp_path / name


MLMODEL = "flavors:\n  onnx:\n    data: {}\n    version: 1\n"
TREES = {
    # name: (files with their texts, the models by name)
    "files": (
        {"a.onnx": "", "B.ONNX": "", "c d.onnx": "", ".e.onnx": "", "f.txt": "", "gér.onnx": ""},
        {"a": "a.onnx", "B": "B.ONNX", "c-d": "c d.onnx", "g-r": "gér.onnx"},
    ),
    "folders of versions": ({"m/1/model.onnx": "", "m/x": "", "n/0/model.onnx": ""}, {"m": "m"}),
    "folder with a file": (
        {"m/model.onnx": "", "n/other.onnx": ""}, {"m": "m/model.onnx"}
    ),
    "versions go before a file": ({"m/1/model.onnx": "", "m/model.onnx": ""}, {"m": "m"}),
    "the root is a model": ({"1/model.onnx": "", "2/model.onnx": ""}, {}),
    "MLflow's": (
        {"m/MLmodel": MLMODEL.format("net.onnx"), "m/net.onnx": "", "m/model.onnx": ""},
        {"m": "m/net.onnx"},
    ),
    "MLflow's in a folder": (
        {"m/MLmodel": MLMODEL.format("data/net.onnx"), "m/data/net.onnx": ""},
        {"m": "m/data/net.onnx"},
    ),
    "MLflow's of its usual name": (
        {"m/MLmodel": "flavors: {}", "m/model.onnx": ""}, {"m": "m/model.onnx"}
    ),
    "MLflow's that is gone": ({"m/MLmodel": MLMODEL.format("net.onnx")}, {}),
    "MLflow's elsewhere": (
        {"m/MLmodel": MLMODEL.format("../net.onnx"), "net.onnx": ""}, {"net": "net.onnx"}
    ),
    "MLflow's alone": (
        {"MLmodel": MLMODEL.format("net.onnx"), "net.onnx": "", "other.onnx": ""},
        {"my-models": "net.onnx"},
    ),
    "nothing": ({}, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TREES)
def test_repository_has_the_models_of_its_files(name, tmp_path):
    files, expected = TREES[name]
    root = tmp_path / "my models"
    root.mkdir()
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    found = repository.models_in(root)
    assert {each: str(place.relative_to(root)) for each, place in found.items()} == expected
    for each, place in found.items():
        assert repository.find(root, each) == place
    assert repository.find(root, "nobody") == root / "nobody"


def test_folder_that_cannot_be_read_is_a_model_that_a_line_names(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert repository.models_in(tmp_path) == {"loop": tmp_path / "loop"}


def test_two_models_of_one_name_are_refused(tmp_path):
    (tmp_path / "a.onnx").touch()
    (tmp_path / "a" / "1").mkdir(parents=True)
    with pytest.raises(
        ConfigurationError, match=r"two models are named a: .*a and .*a\.onnx; rename"
    ):
        repository.models_in(tmp_path)


@pytest.mark.parametrize(
    ("files", "model", "expected"),
    [
        ((), "m", "m/c.txt"), (("c.txt",), "a.onnx", "c.txt"), (("a.c.txt",), "a.onnx", "a.c.txt"),
        (("a.c.txt", "c.txt"), "a.onnx", "a.c.txt"), (("c.txt", "b.onnx"), "a.onnx", None),
        (("c.txt", "b.txt"), "a.onnx", "c.txt"), ((), "a.onnx", None),
    ],
)  # fmt: skip
def test_companion_is_beside_the_model_that_it_belongs_to(files, model, expected, tmp_path, caplog):
    (tmp_path / "m").mkdir()
    for each in ("a.onnx", *files):
        (tmp_path / each).touch()
    found = repository.companion(tmp_path / model, "c.txt")
    assert found == (expected and tmp_path / expected)
    text = "model a: c.txt is not used: 2 models are beside it; name it a.c.txt for this one"
    assert (text in caplog.text) == ("b.onnx" in files)


@pytest.mark.parametrize(
    ("suffix", "words"),
    [
        (".keras", "digit-serving export"), (".h5", "digit-serving export"),
        (".hdf5", "digit-serving export"), (".pth", "torch.onnx.export"),
        (".joblib", "skl2onnx.to_onnx"), (".PT", "torch.onnx.export"),
        (".pt", "torch.onnx.export"), (".safetensors", "torch.onnx.export"),
        (".pb", "tf2onnx.convert --saved-model"), (".tflite", "tf2onnx.convert --tflite"),
        (".pkl", "skl2onnx.to_onnx"), (".txt", "expected an ONNX file, whose name ends in .onnx"),
    ],
)  # fmt: skip
def test_file_of_another_framework_has_the_way_to_onnx(suffix, words, tmp_path):
    file = tmp_path / f"net{suffix}"
    file.touch()
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        repository.named_models(ModelConfig(models=tmp_path, files=(file,), names=()), tmp_path)


def test_one_model_may_have_another_name(tmp_path):
    for each in ("a.onnx", "b.onnx"):
        (tmp_path / each).touch()
    config = ModelConfig(models=tmp_path, names=("a",), served_name="z")
    assert repository.named_models(config, tmp_path) == {"z": tmp_path / "a.onnx"}
    own = repository.named_models(ModelConfig(models=tmp_path), tmp_path)
    assert own == {"a": tmp_path / "a.onnx", "b": tmp_path / "b.onnx"}
    both = ModelConfig(models=tmp_path, served_name="z")
    with pytest.raises(ConfigurationError, match="served_name is for one model, not for a, b"):
        repository.named_models(both, tmp_path)


@pytest.mark.parametrize(("size", "name"), [(1 << 20, "net.onnx"), ((1 << 20) + 1, "model.onnx")])
def test_mlflows_file_has_a_mebibyte_at_most(size, name, tmp_path):
    """A longer one says nothing."""
    text = MLMODEL.format("net.onnx")
    (tmp_path / "MLmodel").write_text(text.ljust(size, "\n"))
    for each in ("net.onnx", "model.onnx"):
        (tmp_path / each).touch()
    assert repository._files_of(tmp_path) == [tmp_path / name]
