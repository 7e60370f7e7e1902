import json
from pathlib import Path

import pytest

from serving.errors import ConfigurationError, CorruptModel, ModelNotFound
from serving.model import repository
from serving.model.repository import parse_manifest
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


def test_no_model_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(ModelNotFound, match="make train export"):
        repository.versions(Path("models/digits"))
    for model_dir in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ModelNotFound, match=r"expected 1/model\.onnx, .* found nothing"):
            repository.versions(model_dir)


@pytest.mark.parametrize("version", ["2", "../1", "1/", "01", "", "x" * 10_000, "1\0", "١"])
def test_version_that_is_none_is_not_found_and_nothing_is_opened(model_dir, version):
    (model_dir / "1" / "manifest.json").chmod(0o000)  # would be CorruptModel if it were read
    with pytest.raises(ModelNotFound) as caught:
        repository.load(model_dir, version)
    assert len(str(caught.value)) < 200


def test_missing_variant_is_named(model_dir):
    edit_manifest(model_dir, without("files", "model.int8.onnx"))
    with pytest.raises(ConfigurationError, match="version 1 has no int8 variant"):
        repository.load(model_dir, "1", "int8")


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


def edit_manifest(model_dir, change):
    path = model_dir / "1" / "manifest.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


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
    ],
)
def test_malformed_manifest_is_refused(model_dir, change):
    edit_manifest(model_dir, change)
    with pytest.raises(CorruptModel, match="manifest"):
        repository.load(model_dir, "1")


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b"{}", b" " * (5 << 20)]
)
def test_manifest_that_is_no_document_is_refused(data):
    with pytest.raises(CorruptModel, match="manifest"):
        parse_manifest(data)
