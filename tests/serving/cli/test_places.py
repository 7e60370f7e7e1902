"""A model is found at the same places by every command, and by Python."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from serving import Model
from serving.__main__ import main
from serving.errors import ConfigurationError
from serving.model.repository import models_in
from tests.serving.model.graphs import model, node, save, two_layers, value
from tests.support.servers import serve_command, started

ROW = "x=[1, 2, 3, 4]"


@pytest.fixture
def places(tmp_path, monkeypatch):
    """A repository of a folder without versions, a file, and versions; the caller is beside it."""
    for name in ("repository/plain", "repository/versions/1", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    save(two_layers(), tmp_path / "repository" / "plain")
    save(two_layers(), tmp_path / "repository", "file.onnx")
    save(two_layers(), tmp_path / "repository" / "versions" / "1")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path / "repository"


@pytest.mark.parametrize("root", ["../repository", "absolute"])
def test_repository_has_the_same_models_by_any_path(places, root):
    found = models_in(places if root == "absolute" else Path(root))
    assert [*found] == ["file", "plain", "versions"]


@pytest.mark.parametrize("name", ["file", "plain", "versions"])
def test_each_command_finds_a_model_by_its_name(places, name, capsys):
    assert main(["infer", name, "--models", "../repository", ROW]) == 0
    assert main(["info", "--models", "../repository", "--model", name]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("y float32 [1, 3]")
    assert f"name                {name}\n" in shown


@pytest.mark.parametrize("place", ["plain", "versions"])
def test_each_command_takes_the_folder_of_a_model(places, place, capsys):
    assert main(["infer", f"../repository/{place}", ROW]) == 0
    assert main(["info", f"../repository/{place}"]) == 0
    assert f"name                {place}\n" in capsys.readouterr().out
    with Model.load(f"../repository/{place}") as model:
        answer = model.infer(np.ones((2, 4), np.float32), outputs="y")
    assert answer["y"].shape == (2, 3)
    with started(serve_command(None, f"../repository/{place}")) as server:
        assert server.facts["model"] == place


@pytest.mark.parametrize(
    ("files", "version", "chosen"),
    [
        ({}, None, "2"),  # version 3 has other names, and nobody said that it is to be used
        ({}, "3", "3"),
        ({}, "1", "1"),
        ({"3/new-signature": ""}, None, "3"),
        ({"labels.json": '{"stable": "1"}'}, None, "1"),
        ({"labels.json": '{"stable": "3"}'}, None, "3"),
        ({"labels.json": '{"stable": "3"}'}, "2", "2"),
    ],
)
def test_version_is_chosen_by_one_rule(places, files, version, chosen, capsys):
    folder = places / "versions"
    for number in ("2", "3"):
        (folder / number).mkdir()
    save(two_layers(), folder / "2")
    graph = model(
        [node("Neg", ["z"], ["y"])], [value("z", "FP32", ["N", 4])], [value("y", "FP32", ["N", 4])]
    )
    save(graph, folder / "3")
    for name, text in files.items():
        (folder / name).write_text(text)
    options = ["--version", version] if version else []
    row = ("z" if chosen == "3" else "x") + "=[1, 2, 3, 4]"
    with Model.load(folder, version) as loaded:
        assert loaded.describe().version == chosen
    assert main(["infer", str(folder), row, *options]) == 0
    capsys.readouterr()
    assert main(["info", str(folder), *options]) == 0
    assert f"version             {chosen}\n" in capsys.readouterr().out
    with started(serve_command(None, str(folder), *options)) as server:
        assert server.facts["version"] == chosen


def test_file_of_another_kind_is_named_by_each_command(places, capsys):
    shutil.copy(places / "file.onnx", "notes.md")
    expected = "notes.md: expected an ONNX file, whose name ends in .onnx"
    ports = ("--port", "0", "--metrics-port", "0", "--http-port", "0")
    for command in (
        ["infer", "notes.md", ROW],
        ["info", "notes.md"],
        ["serve", "notes.md", *ports],
    ):
        assert main(command) == 2
        assert expected in capsys.readouterr().err
    with pytest.raises(ConfigurationError, match=r"expected an ONNX file, whose name ends in"):
        Model.load("notes.md")


def test_name_that_mlmodel_gives_stays_in_its_folder(places):
    (places / "plain" / "MLmodel").write_text("flavors:\n  onnx:\n    data: ../file.onnx\n")
    assert "plain" not in models_in(places)
