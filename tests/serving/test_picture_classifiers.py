"""Classifiers of pictures that are not digits: on the command line, over HTTP, at a reload."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from digit_classifier import PRETRAINED
from serving.__main__ import main
from serving.config import ModelConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.versions.catalog import Catalog
from tests.digit_classifier.http.test_digits import form
from tests.serving.http.peer import HttpPeer
from tests.serving.model import graphs, templates
from tests.support.pictures import encoded
from tests.support.servers import ended, running_server, serve_command

COLOURS = ("red", "green", "blue")
BILINEAR = Image.Resampling.BILINEAR
WEIGHTS = np.array([[6, 0, 0], [0, 6, 1], [0, 0, 6]], np.float32)


def colours(layout="NCHW", batch="N"):
    """A graph of 96 x 96 pixels, image FP32 -> logits: three colours by their mean."""
    shape = [batch, 3, 96, 96] if layout == "NCHW" else [batch, 96, 96, 3]
    nodes = [
        graphs.node("GlobalAveragePool", ["planes"], ["means"]),
        graphs.node("Flatten", ["means"], ["flat"]),
        graphs.node("Gemm", ["flat", "weights"], ["scores"]),
    ]
    order = [0, 1, 2, 3] if layout == "NCHW" else [0, 3, 1, 2]
    nodes.insert(0, graphs.node("Transpose", ["image"], ["planes"], perm=order))
    inputs = [graphs.value("image", "FP32", shape)]
    outputs = [graphs.value("scores", "FP32", [batch, 3])]
    data: bytes = graphs.model(nodes, inputs, outputs, {"weights": WEIGHTS}).SerializeToString()
    return data


def expected(pixels):
    """The probabilities for a picture that Pillow has resized."""
    powers = np.exp((pixels / 255).mean((0, 1)) @ WEIGHTS)
    return np.asarray(powers / powers.sum())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Models of colours, of any batch and of one picture, as files; one of letters, described."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "colours.onnx").write_bytes(colours())
    (folder / "single.onnx").write_bytes(colours("NHWC", 1))
    (folder / "labels.txt").write_text("\n".join(COLOURS) + "\n")
    templates.publish(folder / "models", "letters", templates.LETTERS)
    return folder


@pytest.fixture(scope="module")
def photo():
    noise = np.random.default_rng(0).integers(0, 256, (10, 15, 3), np.uint8)
    noise[..., 2] //= 3
    return Image.fromarray(noise).resize((300, 200), BILINEAR)


def letter(number):
    """The picture of a letter, enlarged: shrunk again it is the image itself."""
    generator = np.random.default_rng(0).random((26, 1024)) < 0.5
    image = generator[number].reshape(32, 32).astype(np.uint8) * 255
    return Image.fromarray(image).resize((320, 320), Image.Resampling.NEAREST)


IMAGE = ("--input", "image", "--labels")


def test_file_of_another_is_classified_by_one_command(folder, photo, tmp_path, capsys):
    photo.save(tmp_path / "photo.png")
    labels = str(folder / "labels.txt")
    command = ["classify", str(tmp_path / "photo.png"), "--model", str(folder / "colours.onnx")]
    assert main([*command, *IMAGE, labels]) == 0
    shares = expected(np.asarray(photo.resize((96, 96), BILINEAR)))
    label = COLOURS[shares.argmax()]
    text = f"{tmp_path / 'photo.png'}: {label} ({shares.max():.1%})".replace("%", " %")
    assert capsys.readouterr().out == text + "\n"
    assert main([*command, *IMAGE, labels, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(answer["probabilities"], shares, atol=1e-5)
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "is not known to classify pictures: --input image" in line


@pytest.fixture(scope="module")
def http(folder):
    options = [str(folder / f"{name}.onnx") for name in ("colours", "single")]
    options += [*IMAGE, str(folder / "labels.txt")]
    options += ["--model", "letters", "--http-port", "0"]
    with running_server(folder / "models", *options) as server:
        yield HttpPeer(server.facts["http"])


@pytest.mark.parametrize("model", ["colours", "single"])
def test_picture_over_http_has_its_most_probable_classes(model, http, photo):
    reply = http.post(f"/v1/models/{model}/classify?top=2&reject_below=0.999", encoded(photo))
    assert reply.status == 200, reply.body
    shares = expected(np.asarray(photo.resize((96, 96), BILINEAR)))
    first, second = (int(number) for number in shares.argsort()[::-1][:2])
    (answer,) = reply.json["pictures"]
    assert (reply.json["model_name"], reply.json["model_version"]) == (model, "1")
    assert (answer["class"], answer["label"]) == (first, COLOURS[first])
    assert [each["label"] for each in answer["probabilities"]] == [COLOURS[first], COLOURS[second]]
    found = [each["probability"] for each in answer["probabilities"]]
    np.testing.assert_allclose(found, shares[[first, second]], atol=1e-5)
    assert (answer["probability"], answer["rejected"]) == (found[0], True)


def test_files_of_a_form_and_a_version(http):
    body, kind = form(
        ("q.png", encoded(letter(16))), ("x", b"no picture"), ("c.png", encoded(letter(2)))
    )
    path = "/v1/models/letters/versions/1/classify"
    answers = http.post(path, body, Content_Type=kind).json["pictures"]
    assert [answer["name"] for answer in answers] == ["q.png", "x", "c.png"]
    assert [answers[0]["label"], answers[2]["label"]] == ["q", "c"]
    assert "expected a picture" in answers[1]["error"]
    assert len(answers[0]["probabilities"]) == 5


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("nothing/classify", b"x", 404, "no model 'nothing'"),
        ("colours/versions/7/classify", b"x", 404, "no version '7'"),
        ("colours/classify", b"x", 400, "expected a picture"),
        ("colours/classify", b"", 400, "empty body"),
        ("colours/classify?top=0", b"x", 400, "expected top"),
        ("colours/classify?top=many", b"x", 400, "expected top"),
        ("colours/classify?reject_below=2", b"x", 400, "reject_below"),
    ],
)
def test_bad_requests_say_why(path, body, status, words, http):
    reply = http.post(f"/v1/models/{path}", body)
    assert (reply.status, words in reply.json["detail"]) == (status, True), reply.body


def test_only_digits_have_what_is_for_digits(http):
    assert http.post("/v1/digits", b"x").status == 404
    paths = http.get("/openapi.json").json["paths"]
    assert {path for path in paths if path.startswith("/v1")} == {
        "/v1/models/colours/classify",
        "/v1/models/letters/classify",
        "/v1/models/single/classify",
    }
    assert b"models.js" in http.get("/").body
    assert http.get("/draw").status == 404


def test_description_belongs_to_its_model_alone(tmp_path, caplog):
    for name in ("rose", "tulip"):
        (tmp_path / f"{name}.onnx").write_bytes(colours())
    (tmp_path / "rose.classifier.json").write_text('{"labels": ["a", "b", "c"]}')
    config = ModelConfig(models=tmp_path, device="cpu")
    models = Catalog(config).models
    assert models["rose"].default.manifest.pictures.labels == ("a", "b", "c")
    assert models["tulip"].default.manifest.pictures is None
    assert not caplog.messages
    (tmp_path / "rose.classifier.json").rename(tmp_path / "classifier.json")
    models = Catalog(config).models
    assert [each.default.manifest.pictures for each in models.values()] == [None, None]
    assert "model rose: classifier.json is not used: 2 models are beside it" in caplog.text
    assert "name it tulip.classifier.json for this one" in caplog.text


def test_tensors_are_no_pictures_until_they_are_described(photo, folder):
    options = [str(folder / "colours.onnx"), "--model", "digits", "--http-port", "0"]
    with running_server(PRETRAINED, *options) as server:
        http = HttpPeer(server.facts["http"])
        reply = http.post("/v1/models/colours/classify", encoded(photo))
        assert (reply.status, b"not known to classify" in reply.body) == (400, True)
        assert b"draw.js" in http.get("/draw").body
        assert b"models.js" in http.get("/").body


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", [1, "N"])
def test_description_in_the_folder_is_read_with_each_version(layout, batch, tmp_path):
    version = tmp_path / "flowers" / "1"
    version.mkdir(parents=True)
    (version / "model.onnx").write_bytes(colours(layout, batch))
    description = tmp_path / "flowers" / "classifier.json"
    facts = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25], "labels": COLOURS}
    description.write_text(json.dumps(facts | {"resize": "pad"}))
    catalog = Catalog(ModelConfig(models=tmp_path))
    for number, text in ((2, json.dumps(facts | {"resize": "crop"})), (3, "{")):
        description.write_text(text)
        shutil.copytree(version, version.with_name(str(number)))
        assert catalog.reload() == (text != "{")
    model = catalog.models["flowers"].default
    assert (model.version, model.pictures.layout, model.pictures.resize) == ("2", layout, "crop")
    assert model.pictures.labels == COLOURS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"sizes": 1}', "field: one of size"),
        ("[]", "a JSON object expected"),
        ('{"labels": ["one"]}', "labels: 3 (one for each class) expected, got 1"),
        ("\xff", "can't read"),
        ("[" * 100_000, "recursion"),
        ('{"scale": 1' + "0" * 400 + "}", "too large"),
    ],
)
def test_wrong_description_is_one_line(content, words, tmp_path):
    (tmp_path / "a.onnx").write_bytes(colours())
    (tmp_path / "classifier.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigurationError) as caught:
        Catalog(ModelConfig(names=(), files=(tmp_path / "a.onnx",)))
    assert words in str(caught.value)
    assert "classifier.json" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (None, "labels.txt: No such file"),
        ("a\nb\n", "--input image: model colours: labels: 3 (one for each class) expected, got 2"),
    ],
)
def test_labels_that_do_not_fit_end_the_start(labels, words, folder, tmp_path):
    path = tmp_path / "labels.txt"
    if labels is not None:
        path.write_text(labels)
    model = str(folder / "colours.onnx")
    command = serve_command(PRETRAINED, model, *IMAGE, str(path), "--http-port", "0")
    result = ended(command)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr.splitlines()[-1]
    assert main(["classify", "x.png", "--model", model, *IMAGE, str(path)]) == 2
    with pytest.raises(ConfigurationError, match="input image"):
        ServerConfig(labels=("a",))
