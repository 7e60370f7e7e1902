"""Verdicts on rows: kept for the next start, carried by manifests, and never believed blindly."""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import serving
from digit_classifier import PRETRAINED, Classifier
from serving import Model
from serving.model import judging, loading, verdicts
from serving.model.onnx_runtime import runtime
from serving.model.repository import load_manifest
from serving.model.verdicts import Verdict
from serving.proof.check import Check
from tests.serving.model.graphs import node, rows_model, save, two_layers

REFUSED = rows_model(node("ReduceMax", ["x"], ["m"], axes=[0]), node("Add", ["x", "m"], ["y"]))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    where = tmp_path / "verdicts"
    monkeypatch.setenv(verdicts.VARIABLE, str(where))
    return where


@pytest.fixture
def judged(monkeypatch):
    """How often a graph was proved."""
    calls = []
    right = judging.prepare

    def prepare(*arguments):
        calls.append(arguments)
        return right(*arguments)

    monkeypatch.setattr(judging, "prepare", prepare)
    return calls


def line_of(path):
    with Model.load(path, device="cpu") as loaded:
        return loaded.served.batching


@pytest.mark.parametrize(
    ("graph", "num_files"), [(two_layers(), 2), (REFUSED, 1)], ids=["proved", "refused"]
)
def test_verdict_is_kept_for_the_next_start(graph, num_files, tmp_path, folder, judged):
    """Of a graph that is proved, the trial's verdict is kept, too."""
    path = save(graph, tmp_path)
    lines = {line_of(path) for _ in range(3)}
    assert len(lines) == 1
    assert len(judged) == 1
    assert len(list(folder.iterdir())) == num_files
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("change", ["graph", "rules", "runtime"])
def test_other_graph_rules_or_runtime_are_judged_anew(
    change, tmp_path, folder, judged, monkeypatch
):
    path = save(two_layers(), tmp_path)
    line_of(path)
    if change == "graph":
        save(rows_model(node("Neg", ["x"], ["y"])), tmp_path)
    if change == "rules":
        monkeypatch.setattr(verdicts, "rules_version", lambda: "other rules")
    if change == "runtime":
        monkeypatch.setattr(runtime(), "__version__", "0.0")
    line_of(path)
    assert len(judged) == 2
    assert len(list(folder.iterdir())) == 4


def test_version_of_the_rules_is_that_of_their_sources_alone(tmp_path, monkeypatch):
    shutil.copytree(Path(serving.__file__).parent, tmp_path / "serving")
    monkeypatch.setattr("serving.model.verdicts.resources.files", lambda _: tmp_path / "serving")
    version = partial(verdicts.sources_version.__wrapped__, *verdicts._SOURCES)
    first = version()
    assert first == verdicts.rules_version()
    for name, counts in (
        ("model/timing.py", False), ("proof/README.md", False), ("proof/rules.py", True),
        ("proof/census.tsv", True), ("proof/onnx.binpb", True), ("model/judging.py", True),
    ):  # fmt: skip
        before = version()
        with (tmp_path / "serving" / name).open("a") as file:
            file.write("# more\n")
        assert (version() != before) == counts, name


@pytest.mark.parametrize("damage", [
    b"", b"{", b"[]", b'{"key": "other"}', b"\xff" * 100, b"[" * 5000,
    b'{"key": "KEY", "obstacle": 1, "remark": ""}',
    b'{"key": "KEY", "obstacle": "a\\u001bb", "remark": ""}',
    b'{"key": "KEY", "obstacle": "too long", "remark": ""}' + b" " * 4096,
])  # fmt: skip
def test_damaged_file_is_ignored_and_replaced(damage, tmp_path, folder, judged):
    path = save(two_layers(), tmp_path)
    line_of(path)
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    for file in whole:
        file.write_bytes(damage.replace(b"KEY", file.stem.encode()))
    assert line_of(path) == "batching on: row independence proved"
    assert len(judged) == 2
    assert {file: file.read_bytes() for file in folder.iterdir()} == whole


def test_file_of_another_user_and_a_link_are_ignored(tmp_path, folder, judged, monkeypatch):
    path = save(REFUSED, tmp_path)
    line_of(path)
    (file,) = folder.iterdir()
    forged = tmp_path / "forged"
    forged.write_text(json.dumps({**json.loads(file.read_bytes()), "obstacle": None}))
    file.unlink()
    file.symlink_to(forged)
    assert line_of(path).startswith("batching off")
    file.unlink(missing_ok=True)
    shutil.copy(forged, file)
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert line_of(path).startswith("batching off")
    assert len(judged) == 3


def test_folder_that_cannot_be_written_keeps_nothing(tmp_path, monkeypatch, judged):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "file" / "verdicts"))
    path = save(two_layers(), tmp_path)
    assert {line_of(path) for _ in range(2)} == {"batching on: row independence proved"}
    assert len(judged) == 2


def test_long_verdict_is_kept(folder):
    """Names of a graph's nodes and tensors are in it."""
    verdict = Verdict("Add_1 (Add): " + "its sizes don't fit " * 150 + "x" * 900)
    verdicts.keep("0" * 64, verdict)
    assert 3_900 < next(folder.iterdir()).stat().st_size < 4_096
    assert verdicts.kept("0" * 64) == verdict


def test_number_of_files_is_bounded(folder, monkeypatch):
    monkeypatch.setattr(verdicts, "_MAX_FILES", 3)
    for number in range(5):
        verdicts.keep(f"{number:064x}", Verdict(None))
        os.utime(folder / f"{number:064x}.json", (number, number))
    names = sorted(int(path.stem, 16) for path in folder.iterdir())
    assert names == [2, 3, 4]


@pytest.mark.parametrize(("variable", "expected"), [
    ({verdicts.VARIABLE: "off"}, None), ({verdicts.VARIABLE: "/somewhere"}, "/somewhere"),
    ({"XDG_CACHE_HOME": "/cache"}, "/cache/digit-serving/verdicts"),
    ({"HOME": "/home/me"}, "/home/me/.cache/digit-serving/verdicts"),
])  # fmt: skip
def test_folder_is_the_cache_or_as_the_environment_says(variable, expected, monkeypatch):
    for name in (verdicts.VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, text in variable.items():
        monkeypatch.setenv(name, text)
    found = verdicts.folder()
    assert (found and str(found)) == expected


def test_verdict_that_took_too_long_is_not_kept(tmp_path, folder, monkeypatch):
    def run(check):
        raise TimeoutError("is not ready after 10 s of processor time")

    path = save(two_layers(), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(judging, "run", run)
        assert line_of(path) == (
            "batching off: the check by a run is not ready after 10 s of processor time"
        )
    assert not folder.exists()
    assert line_of(path) == "batching on: row independence proved"


def test_bug_of_the_check_leaves_a_model_that_serves(tmp_path, monkeypatch, caplog):
    def run(check):
        raise IndexError("planted")

    monkeypatch.setattr(Check, "run", run)
    assert line_of(save(two_layers(), tmp_path)) == (
        "batching off: the check by a run failed: IndexError"
    )
    assert "planted" in caplog.text


def test_bundled_manifest_has_the_verdict_of_these_rules():
    found = load_manifest(PRETRAINED / "digits" / "1").verdicts
    assert found == dict.fromkeys(("model.onnx", "model.int8.onnx"), Verdict(None)), (
        "the rules have changed: `make verdict`"
    )


def test_only_the_packages_own_manifest_spares_the_proof(tmp_path, folder, judged, monkeypatch):
    """A manifest is as much a stranger's as its model: what it says of rows is not believed."""
    monkeypatch.setattr(loading, "_bundled_verdicts", dict)
    shutil.copytree(PRETRAINED / "digits", tmp_path / "digits")
    with Classifier.load(tmp_path / "digits") as classifier:
        assert classifier.describe().batching == "batching on: row independence proved"
    assert len(judged) == 1
    (samples,) = judged[0][-1].values()  # the check runs on images that the model knows
    assert samples.shape == (8, 784)


def test_model_of_the_package_is_known_by_its_bytes(tmp_path, folder, judged):
    shutil.copytree(PRETRAINED / "digits", tmp_path / "digits")
    manifest = tmp_path / "digits" / "1" / "manifest.json"
    document = json.loads(manifest.read_bytes())
    assert document["batching"]["rules"] == verdicts.rules_version()
    with Classifier.load(tmp_path / "digits") as classifier:
        assert classifier.describe().batching == "batching on: row independence proved"
    assert not judged


def test_manifest_that_calls_a_mixing_graph_proved_is_not_believed(tmp_path, folder):
    """Its digests and its rules are right, and a stranger wrote it."""
    shutil.copytree(PRETRAINED / "digits", tmp_path / "digits")
    version = tmp_path / "digits" / "1"
    data = onnx.load(version / "model.onnx")
    (output,) = [each for each in data.graph.node if "probabilities" in each.output]
    output.output[0] = "own"
    data.graph.node.extend(
        [node("ReduceMax", ["own", "first"], ["m"]), node("Sub", ["own", "m"], ["s"]),
         node("Add", ["s", "m"], ["probabilities"])]
    )  # fmt: skip
    data.graph.initializer.append(numpy_helper.from_array(np.array([0]), "first"))
    (version / "model.onnx").write_bytes(data.SerializeToString())
    document = json.loads((version / "manifest.json").read_bytes())
    digest = hashlib.sha256((version / "model.onnx").read_bytes()).hexdigest()
    document["files"]["model.onnx"] = digest
    document["batching"]["rules"] = verdicts.rules_version()
    (version / "manifest.json").write_text(json.dumps(document))
    assert line_of(tmp_path / "digits").startswith("batching off: ")


def test_manifest_does_not_vouch_for_other_bytes(tmp_path):
    """Its digests do: a verdict holds for the files that they name."""
    shutil.copytree(PRETRAINED / "digits", tmp_path / "digits")
    (tmp_path / "digits" / "1" / "model.onnx").write_bytes(REFUSED.SerializeToString())
    with pytest.raises(Exception, match="SHA-256"):
        Classifier.load(tmp_path / "digits")
