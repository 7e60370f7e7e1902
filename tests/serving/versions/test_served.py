"""A model's versions as callers reach them, and what a look goes by: without a file that is run."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ModelConfig
from serving.errors import ModelNotFound
from serving.handlers.loading import HandlerSource
from serving.model.settings import NO_SETTINGS, ModelSettings
from serving.tensors import Signature, Tensor, TensorSignature
from serving.versions.files import fingerprint, imported_states, states
from serving.versions.served import Canary, ModelVersions, facts_of, signature_of
from serving.versions.wishes import Wishes

TENSORS = TensorSignature((Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1,)),), True)


def versions_of(*numbers, **facts):
    models: Any = {
        each: SimpleNamespace(version=each, signature=None, tensors=TENSORS) for each in numbers
    }
    return ModelVersions("net", models, **{"default_version": numbers[0], **facts})


def test_versions_say_which_answers_and_for_what_share():
    plain = versions_of("4", "3")
    assert str(plain) == "versions 4, 3; default 4"
    assert (plain.labels, plain.canary, plain.reasons, plain.waiting) == ({}, None, {}, {})
    canary = versions_of("4", "3", default_version="3", canary=Canary("4", 0.0125))
    assert str(canary) == "versions 4, 3; default 3; canary 4 gets 0.0125"
    found = [canary.choose(number).version for number in (0.0, 0.0124, 0.0125, 0.999)]
    assert found == ["4", "4", "3", "3"]
    assert [plain.choose(number).version for number in (0.0, 0.999)] == ["4", "4"]


def test_version_is_found_by_its_number_or_its_label():
    model = versions_of("4", "3", labels={"stable": "3", "old": "2"}, reasons={"5": "damaged"})
    assert [model.find(each).version for each in ("4", "3", "stable")] == ["4", "3", "3"]
    assert model.default.version == "4"
    texts = {
        "5": "model 'net' version 5 is not served: damaged",
        "2": "model 'net' has no version '2', only 4, 3, stable, old",
        "old": "model 'net' has no version 'old', only 4, 3, stable, old",
        "x" * 50: f"model 'net' has no version '{'x' * 40}', only 4, 3, stable, old",
    }
    for version, text in texts.items():
        with pytest.raises(ModelNotFound) as caught:
            model.find(version)
        assert str(caught.value) == text


def test_newer_versions_wait_and_older_ones_do_not():
    reasons = {"10": "damaged", "9": "another signature", "3": "older"}
    assert versions_of("8", reasons=reasons).waiting == {
        "10": "damaged", "9": "another signature",
    }  # fmt: skip
    assert versions_of("9", reasons=reasons).waiting == {"10": "damaged"}


def test_callers_see_versions_the_default_labels_and_the_canary():
    one = versions_of("4", "3")
    same = ModelVersions("net", one.versions, "4", reasons={"2": "older"})
    assert facts_of(one) == facts_of(same), "for what is not served nobody has to be told"
    for facts in (
        {"versions": {"4": one.versions["4"]}}, {"default_version": "3"},
        {"labels": {"stable": "4"}}, {"canary": Canary("3", 0.5)},
        {"versions": {"3": one.versions["3"], "4": one.versions["4"]}},
    ):  # fmt: skip
        other = ModelVersions(**{
            "name": "net", "versions": one.versions, "default_version": "4", **facts,
        })  # fmt: skip
        assert facts_of(other) != facts_of(one)


def test_callers_rely_on_images_or_on_tensors_however_rows_are_run():
    images = Signature((2, 2), 2)
    known: Any = SimpleNamespace(signature=images, tensors=images.tensors)
    assert signature_of(known) is images
    alone = TensorSignature(TENSORS.inputs, TENSORS.outputs, is_batchable=False)
    for tensors in (TENSORS, alone):
        model: Any = SimpleNamespace(signature=None, tensors=tensors)
        assert signature_of(model) == TENSORS


def dated(file):
    os.utime(file, ns=(1, 1))
    return file


def test_state_of_files_differs_once_one_changes(tmp_path):
    folder = tmp_path / "net"
    (folder / "1").mkdir(parents=True)
    file = folder / "1" / "model.onnx"
    file.write_bytes(b"one")
    another = tmp_path / "another"
    another.write_bytes(b"more")
    seen = [fingerprint(folder, "1")]
    changes = [
        lambda: file.write_bytes(b"more"),
        lambda: dated(file),
        lambda: (folder / "1" / "weights").write_bytes(b""),
        lambda: (folder / "classifier.json").write_bytes(b""),
        lambda: (folder / "config.pbtxt").write_bytes(b""),
        lambda: dated(another).replace(file),
    ]  # fmt: skip
    for change in changes:
        change()
        seen.append(fingerprint(folder, "1"))
    assert len({*seen}) == len(changes) + 1
    (folder / "labels.json").write_bytes(b"")
    (folder / "2").mkdir()
    assert fingerprint(folder, "1") == seen[-1], "these are of no version, or of another"
    assert fingerprint(folder, "3") == frozenset()
    assert {name for name, *_ in seen[-1]} == {
        "model.onnx", "weights", "classifier.json", "config.pbtxt",
    }  # fmt: skip


def test_file_has_companions_of_its_own_name(tmp_path):
    file = tmp_path / "net.onnx"
    for name in ("net.onnx", "net.config.pbtxt", "config.pbtxt", "net.classifier.json",
                 "other.onnx", "other.config.pbtxt", "net.labels.json"):  # fmt: skip
        (tmp_path / name).touch()
    assert {name for name, *_ in fingerprint(file, "1")} == {
        "net.onnx", "net.config.pbtxt", "config.pbtxt", "net.classifier.json",
    }  # fmt: skip


def test_imports_of_a_handler_are_its_files(tmp_path):
    (tmp_path / "words.py").touch()
    model: Any = SimpleNamespace(files=(tmp_path / "words.py",))
    assert imported_states(model) == states([tmp_path / "words.py"]) != frozenset()
    assert imported_states(None) == frozenset()
    model.files = (tmp_path / "words.py", tmp_path / "gone.py")
    assert imported_states(model) == frozenset()


FOLDER = Path("models/net")


def wishes_of(config, labels=None, handler=None):
    return Wishes(config, NO_SETTINGS, "latest", 1, labels or {}, 0.0, handler, False)


@pytest.mark.parametrize(
    ("options", "settings", "expected"),
    [
        ({}, "", ("latest", 1)),
        ({"versions": "all"}, "", ("all", 1)),
        ({"versions": "3,4"}, "", ("3,4", 1)),
        ({"version": "2"}, "", ("2", 1)),
        ({"canary": 0.1}, "", ("latest", 2)),
        ({}, "all {}", ("all", 1)),
        ({}, "latest { num_versions: 3 }", ("latest", 3)),
        ({}, "specific { versions: [ 2, 5 ] }", ("2,5", 1)),
        ({"versions": "all"}, "specific { versions: [ 2 ] }", ("all", 1)),
        ({"version": "7"}, "specific { versions: [ 2 ] }", ("7", 1)),
        ({"canary": 0.1}, "latest { num_versions: 3 }", ("latest", 3)),
    ],
)
def test_command_line_goes_before_the_models_own_policy(options, settings, expected, tmp_path):
    (tmp_path / "1").mkdir()
    if settings:
        (tmp_path / "config.pbtxt").write_text(f"version_policy {{ {settings} }}")
    (tmp_path / "labels.json").write_text('{"stable": "1", "canary": {"version": "2", "share": 1}}')
    config = ModelConfig(**options)
    found = Wishes.at(tmp_path, config, None, may_have_handlers=True)
    assert (found.versions, found.num_latest) == expected
    assert (found.config, found.handler, found.may_have_handlers) == (config, None, True)
    pinned = "version" in options
    assert found.labels == ({} if pinned else {"stable": "1", "canary": "2"})
    assert found.share == (0.0 if pinned else 1.0)
    assert found.are_numbers == (expected[0] not in ("latest", "all"))
    assert found.is_pinned == pinned


def test_handler_alone_has_no_settings(tmp_path):
    (tmp_path / "config.pbtxt").write_text("nonsense: 1")
    (tmp_path / "around.py").touch()
    source = HandlerSource(tmp_path / "around.py")
    found = Wishes.at(tmp_path / "around.py", ModelConfig(), source, may_have_handlers=False)
    assert (found.settings, found.handler, found.may_have_handlers) == (NO_SETTINGS, source, False)


def test_labels_go_before_the_canary_of_the_command_line():
    config = ModelConfig(canary=0.25)
    shares = [wishes_of(config, labels=labels).canary
              for labels in ({}, {"old": "1"}, {"stable": "1"}, {"canary": "1"})]  # fmt: skip
    assert shares == [0.25, 0.25, 0.0, 0.0]


def test_handler_is_in_the_versions_folder_unless_the_command_line_names_one(tmp_path):
    plain = wishes_of(ModelConfig())
    assert plain.handler_in(FOLDER, "3") == FOLDER / "3" / "handler.py"
    (tmp_path / "net.onnx").touch()
    assert plain.handler_in(tmp_path / "net.onnx", "1") is None
    named = wishes_of(ModelConfig(), handler=HandlerSource(Path("a.py")))
    assert named.handler_in(FOLDER, "3") is None


@pytest.mark.parametrize(
    ("versions", "num_latest", "text"),
    [
        ("latest", 1, "only the newest good version is served: 4, 3"),
        ("latest", 2, "only the newest 2 good versions are served: 4, 3"),
        ("4,3", 1, "only the versions that are named are served: 4, 3"),
    ],
)
def test_choice_is_said_to_who_asks_for_another(versions, num_latest, text):
    found = Wishes(ModelConfig(), ModelSettings(), versions, num_latest, {}, 0.0, None, False)
    assert found.choice(["4", "3"]) == text
