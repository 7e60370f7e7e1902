"""Several models, their versions and labels; changes to one never affect another."""

import errno
import json
import logging
import os
import shutil
import threading
from collections import Counter
from dataclasses import replace

import pytest

from serving.config import ModelConfig
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    ModelNotFound,
    ServingError,
    Unavailable,
)
from serving.model import repository
from serving.system.files import read_regular
from serving.tensors import Signature
from serving.versions import room
from serving.versions.catalog import Catalog
from serving.versions.folder import ModelFolder
from serving.versions.served import Canary, ModelVersions, facts_of
from tests.serving.model import templates
from tests.serving.model.graphs import save, two_layers
from tests.serving.versions.conftest import SMALL
from tests.support.servers import wait_until

pytestmark = pytest.mark.process  # a model that this machine has not seen is tried in one


def opened(root, **options):
    return Catalog(replace(ModelConfig(models=root, device="cpu"), **options))


def damage(root, name, version):
    templates.publish(root, name, SMALL, version)
    (root / name / version / "model.onnx").write_bytes(b"damaged")


def label(root, name, **labels):
    (root / name / "labels.json").write_text(json.dumps(labels))


def state(catalog, name="a"):
    model = catalog.models[name]
    return list(model.versions), model.default_version, model.canary


def test_lines_have_the_name_that_callers_use(tmp_path, caplog):
    caplog.set_level("INFO", "serving.model.loading")
    file = save(two_layers(), tmp_path)
    Catalog(ModelConfig(names=(), files=(file,), served_name="other"))
    assert [*caplog.messages] == ["model other version 1: batching on: row independence proved"]


def test_every_model_of_the_repository_is_served_and_names_choose(root):
    (root / ".hidden").mkdir()
    (root / "notes").mkdir()
    assert list(opened(root).models) == ["a", "b"]
    assert list(opened(root, names=("b",)).models) == ["b"]
    assert list(opened(root, names=("b",), served_name="x").models) == ["x"]
    with pytest.raises(ConfigurationError, match="served_name is for one model, not for a, b"):
        opened(root, served_name="x")


def test_bad_model_of_several_is_named_and_served_once_it_is_mended(root, caplog):
    damage(root, "bad", "1")
    catalog = opened(root)
    assert list(catalog.models) == ["a", "b"]
    assert "model bad is not served: no version of bad is good" in caplog.text
    assert "expected SHA-256" in catalog.failures["bad"]
    caplog.clear()
    assert not catalog.reload()
    assert not caplog.messages
    shutil.rmtree(root / "bad")
    templates.publish(root, "bad", SMALL)
    assert catalog.reload()
    assert list(catalog.models) == ["a", "b", "bad"]
    assert not catalog.failures


def test_named_model_that_cannot_be_served_ends_the_start(root, caplog):
    damage(root, "bad", "1")
    reason = r"can't be served, although named: bad \(no version of bad is good: .*SHA-256"
    for named in ({"names": ("a", "bad")}, {"files": (root / "none.onnx",)}):
        with pytest.raises((CorruptModel, ModelNotFound), match="although named") as caught:
            opened(root, **named)
        assert "--allow-missing serves the others" in str(caught.value)
    with pytest.raises(CorruptModel, match=reason):
        opened(root, names=("a", "bad"))
    assert list(opened(root).models) == ["a", "b"]  # it was found, not named


def test_missing_model_is_served_once_it_can_be(root):
    damage(root, "bad", "1")
    catalog = opened(root, names=("a", "bad"), allow_missing=True)
    assert list(catalog.models) == ["a"]
    assert [*catalog.missing] == ["bad"]
    assert catalog.missing["bad"] == catalog.failures["bad"]
    templates.publish(root, "bad", SMALL, "2")
    assert catalog.reload()
    assert list(catalog.models) == ["a", "bad"]
    assert not catalog.missing
    catalog.unload("bad")
    assert not catalog.missing


def test_named_model_falls_back_to_an_older_version(root):
    damage(root, "a", "2")
    catalog = opened(root, names=("a", "b"))
    assert state(catalog)[1] == "1"
    assert not catalog.missing


@pytest.mark.parametrize(
    ("number", "error"),
    [(errno.EIO, Unavailable), (errno.ENOMEM, Unavailable), (errno.EACCES, CorruptModel)],
)
def test_start_that_fails_for_what_may_pass_is_no_fault_of_settings(
    root, number, error, monkeypatch
):
    """Unavailable is exit code 1: what starts the server may try again."""
    read = read_regular

    def fail(path, *rest):
        if path.parts[-3] == "b" and path.name == "model.onnx":
            raise OSError(number, os.strerror(number))
        return read(path, *rest)

    monkeypatch.setattr(repository, "read_regular", fail)
    for names in (("a", "b"), ("b",)):
        with pytest.raises(error, match=os.strerror(number)):
            opened(root, names=names)
    assert list(opened(root).models) == ["a"]


def test_version_whose_bytes_arrive_during_a_look_is_looked_at_again(root, monkeypatch):
    """Its last bytes come after the first were read, and before it is refused."""
    catalog = opened(root)
    whole = (root / "a" / "1" / "model.onnx").read_bytes()
    templates.publish(root, "a", SMALL, "2")
    file = root / "a" / "2" / "model.onnx"
    whole = file.read_bytes()
    file.write_bytes(whole[:100])
    read = read_regular

    def read_then_arrive(path, *rest):
        data = read(path, *rest)
        if path == file and len(data) == 100:
            file.write_bytes(whole)
        return data

    monkeypatch.setattr(repository, "read_regular", read_then_arrive)
    assert not catalog.reload()
    assert catalog.reload()
    assert state(catalog)[1] == "2"


def test_model_that_hangs_does_not_stop_the_reloads_of_others(root, monkeypatch, caplog):
    catalog, release, hangs = opened(root), threading.Event(), threading.Event()
    catalog.patience_s = 0.05
    load = ModelFolder._load

    def hang(folder, version):
        if folder.name == "a":
            hangs.set()
            release.wait(20.0)
        return load(folder, version)

    monkeypatch.setattr(ModelFolder, "_load", hang)
    for name in ("a", "b"):
        templates.publish(root, name, SMALL, "2")
    catalog.patience_s = 0.05
    with caplog.at_level(logging.INFO, "serving"):
        while state(catalog, "b")[1] != "2":  # a slow machine may take several looks
            catalog.reload()
    assert hangs.is_set()
    assert state(catalog)[1] == "1"
    assert "model a: the look takes long" in caplog.text
    release.set()
    wait_until(lambda: state(catalog)[1] == "2")


def test_models_that_hang_hold_up_no_other_at_the_first_start(root, monkeypatch):
    for name in ("c", "d"):
        templates.publish(root, name, SMALL, "1")
    released, loaded, add_handler = threading.Event(), [], ModelFolder.with_handler

    def hang(folder, number, model):
        if folder.name in ("a", "b"):
            released.wait(20.0)
        loaded.append(folder.name)
        return add_handler(folder, number, model)

    monkeypatch.setattr(ModelFolder, "with_handler", hang)
    monkeypatch.setattr(room, "_LONG_S", 0.0)
    start = threading.Thread(target=opened, args=(root,))
    start.start()
    wait_until(lambda: {*loaded} == {"c", "d"})
    released.set()
    start.join()


def test_model_that_is_unloaded_during_its_look_stays_unloaded(root, monkeypatch):
    catalog, release = opened(root), threading.Event()
    catalog.patience_s, load = 0.05, ModelFolder._load

    def hang(folder, version):
        release.wait(20.0)
        return load(folder, version)

    monkeypatch.setattr(ModelFolder, "_load", hang)
    templates.publish(root, "a", SMALL, "2")
    catalog.reload()
    folder = catalog._folders["a"]
    catalog.unload("a")
    release.set()
    wait_until(lambda: folder.looking is None)
    assert list(catalog.models) == ["b"]


def test_no_good_model_is_an_error_that_lists_all(root):
    for name in ("a", "b"):
        shutil.rmtree(root / name)
        damage(root, name, "1")
    with pytest.raises(CorruptModel, match=r"no model can be served: a \(.*; b \("):
        opened(root)


def test_models_appear_change_and_disappear_apart(root):
    catalog = opened(root)
    changes: list[tuple[str, ModelVersions | None]] = []
    catalog.on_change = lambda name, versions: changes.append((name, versions))
    before, serving = catalog.models["b"], catalog.models["a"]
    damage(root, "a", "2")
    templates.publish(root, "c", SMALL)
    assert catalog.reload()
    assert sorted(changes) == [(name, catalog.models[name]) for name in ("a", "c")]
    assert facts_of(catalog.models["a"]) == facts_of(serving), "but for the reason of version 2"
    del changes[0]
    templates.publish(root, "a", SMALL, "3")
    shutil.rmtree(root / "c")
    assert catalog.reload()
    assert sorted(name for name, _ in changes[1:]) == ["a", "c"]
    assert dict(changes[1:]) == {"a": catalog.models["a"], "c": None}
    assert state(catalog) == (["3"], "3", None)
    assert catalog.models["b"] is before


def test_model_that_was_asked_for_by_name_stays(root):
    catalog = opened(root, names=("a", "b"))
    shutil.rmtree(root / "a")
    templates.publish(root, "c", SMALL)
    assert not catalog.reload()
    assert list(catalog.models) == ["a", "b"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (["3"], "3", None)),
        ({"versions": "all"}, (["3", "2", "1"], "3", None)),
        ({"versions": "1,2"}, (["2", "1"], "2", None)),
        ({"version": "2"}, (["2"], "2", None)),
        ({"canary": 0.05}, (["3", "2"], "2", Canary("3", 0.05))),
        ({"versions": "all", "canary": 0.5}, (["3", "2", "1"], "2", Canary("3", 0.5))),
    ],
)
def test_versions_are_chosen(root, options, expected):
    for version in ("2", "3"):
        templates.publish(root, "a", SMALL, version)
    damage(root, "a", "4")
    assert state(opened(root, names=("a",), **options)) == expected


def test_files_are_models_of_their_names(root):
    for name in ("a.onnx", "some net.onnx"):
        with pytest.raises(ModelNotFound, match=f"there is no file .*{name}"):
            opened(root, names=(), files=(root / name,))
    with pytest.raises(ConfigurationError, match="two models are named a: "):
        opened(root, files=(root / "a.onnx",))


def test_pinned_versions_that_are_not_there_are_named(root):
    with pytest.raises(ModelNotFound, match="model 'a' has no version '9'"):
        opened(root, names=("a",), version="9")
    with pytest.raises(CorruptModel, match=r"9 \(model 'a' has no version '9'\)"):
        opened(root, names=("a",), versions="8,9")


def test_versions_are_added_and_dropped_side_by_side(root):
    catalog = opened(root, versions="all")
    first = catalog.models["a"].default
    templates.publish(root, "a", SMALL, "2")
    assert catalog.reload()
    assert catalog.models["a"].find("1") is first, "it was loaded again"
    shutil.rmtree(root / "a" / "1")
    assert catalog.reload()
    assert state(catalog) == (["2"], "2", None)
    with pytest.raises(ModelNotFound, match=r"model 'a' has no version '1', only 2$"):
        catalog.models["a"].find("1")


def test_start_and_reload_go_by_one_rule_where_a_signature_is_another(root, caplog):
    other = Signature((5, 5), 3)
    catalog, latest = opened(root, versions="all"), opened(root, names=("a",))
    templates.publish(root, "a", other, "2")
    for _ in range(2):
        assert not latest.reload()
    (line,) = caplog.messages
    assert line.startswith("model a: refused version 2, version 1 stays in service: input images")
    assert "images UINT8 [N, 16] has become images UINT8 [N, 25]" in line
    assert "put a file new-signature into its folder" in line
    assert "or a label such as stable (none gets a canary's share" in line
    restarted = opened(root, names=("a",))
    for each in (latest, restarted):
        assert state(each) == (["1"], "1", None)
        assert list(each.models["a"].waiting) == ["2"]
    assert catalog.reload()
    for each in (catalog, opened(root, versions="all")):
        assert state(each) == (["2", "1"], "1", None)
        assert each.models["a"].find("2").signature == other
    label(root, "a", canary={"version": "2", "share": 0.5})
    assert not catalog.reload()
    assert state(catalog)[2] is None
    label(root, "a", stable="2")
    assert latest.reload()
    assert state(latest) == state(opened(root, names=("a",))) == (["2", "1"], "2", None)


def test_mark_beside_a_version_has_it_served_at_once_and_after_a_restart(root):
    other = Signature((5, 5), 3)
    catalog = opened(root, names=("a",))
    templates.publish(root, "a", other, "2")
    assert not catalog.reload()
    (root / "a" / "2" / "new-signature").touch()
    assert catalog.reload()
    templates.publish(root, "a", other, "3")  # as the newest accepted one
    assert catalog.reload()
    templates.publish(root, "a", SMALL, "4")
    assert not catalog.reload()
    for each in (catalog, opened(root, names=("a",))):
        assert state(each) == (["3"], "3", None)
        assert list(each.models["a"].waiting) == ["4"]
    for version in ("2", "3"):
        shutil.rmtree(root / "a" / version)
    assert catalog.reload(), "it is like version 1"
    assert state(catalog) == state(opened(root, names=("a",))) == (["4"], "4", None)


@pytest.mark.parametrize("options", [{"versions": "1,2"}, {"version": "2"}])
def test_versions_that_the_operator_names_need_no_mark(root, options):
    templates.publish(root, "a", Signature((5, 5), 3), "2")
    assert opened(root, names=("a",), **options).models["a"].default_version == "2"


def test_version_policy_names_versions_as_the_operator_does(root):
    templates.publish(root, "a", Signature((5, 5), 3), "2")
    (root / "a" / "config.pbtxt").write_text("version_policy { specific { versions: [ 2 ] } }")
    assert state(opened(root, names=("a",))) == (["2"], "2", None)


def test_labels_choose_default_and_canary_and_roll_back(root):
    for version in ("2", "3"):
        templates.publish(root, "a", SMALL, version)
    label(root, "a", stable="2", canary={"version": "3", "share": 0.05}, old="1")
    catalog = opened(root)
    model = catalog.models["a"]
    assert state(catalog) == (["3", "2", "1"], "2", Canary("3", 0.05))
    assert model.find("old") is model.find("1")
    assert [model.choose(number).version for number in (0.0, 0.049, 0.05, 0.999)] == list("3322")
    label(root, "a", stable="1")
    assert catalog.reload()
    assert state(catalog) == (["3", "1"], "1", None)
    (root / "a" / "labels.json").unlink()
    assert catalog.reload()
    assert state(catalog) == (["3"], "3", None)


def test_version_that_a_label_does_not_wish_for_is_refused_by_nobody(root, caplog):
    templates.publish(root, "a", SMALL, "2")
    catalog = opened(root)
    label(root, "a", stable="1")
    assert catalog.reload()
    counts = Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    templates.publish(root, "a", SMALL, "3")
    with caplog.at_level(logging.INFO, "serving"):
        catalog.reload()
    assert counts["failed"] == 0
    assert "refused" not in caplog.text
    assert not [each for each in caplog.records if each.levelno >= logging.WARNING]


def test_new_canary_is_logged_with_its_share(root, caplog):
    templates.publish(root, "a", SMALL, "2")
    catalog = opened(root, names=("a",), canary=0.05)
    templates.publish(root, "a", SMALL, "3")
    with caplog.at_level(logging.INFO, "serving"):
        assert catalog.reload()
    first, second = caplog.messages[-2:]
    assert first == "model a: version 2 replaced version 1"
    assert second.startswith("model a: versions 3, 2; default 2; canary 3 gets 0.05")


BAD_LABELS = {
    '{"stable": "9"}': "stable can't be version 9: it is not there",
    '{"stable": "2"}': "stable can't be version 2: 2/model.onnx: expected SHA-256",
    '{"stable": 1}': 'stable must be a version such as "3", got 1',
    '{"stable": "1", "stable": "1"}': "'stable' stands there twice",
    '{"3": "1"}': "'3' is no label",
    '{"canary": {"version": "1", "share": 1.5}}': "from 0 to 1, got 1.5",
    '{"canary": {"version": "1", "share": NaN}}': "from 0 to 1, got nan",
    '{"canary": {"version": "1", "share": true}}': "from 0 to 1, got True",
    '{"canary": {"version": "1"}}': "canary has a version and a share, got ['version']",
    '{"canary": {"version": "1", "share": 1, "a": 1}}': "got ['a', 'share', 'version']",
    '{"canary": {"a": "1", "b": 1}}': "canary has a version and a share, got ['a', 'b']",
    '{"stable": {"version": "1", "share": 1}}': "stable must be a version",
    "[]": "an object of labels is expected",
    "{": "can't use labels.json: Expecting property name",
    "\xff": "can't use labels.json",
    "[" * 60_000: "can't use labels.json: ",
    " " * 70_000: "70000 bytes, at most 65536 expected",
}


@pytest.mark.parametrize("text", BAD_LABELS, ids=lambda text: text[:45])
def test_bad_labels_are_refused_in_one_line_and_the_old_ones_stay(root, text, caplog):
    label(root, "a", stable="1")
    catalog = opened(root)
    damage(root, "a", "2")
    catalog.reload()
    before, counts = catalog.models["a"], Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    caplog.clear()
    (root / "a" / "labels.json").write_bytes(text.encode("latin-1"))
    for _ in range(2):
        assert not catalog.reload()
    assert counts == {"unread": 1}, "no version was refused"
    assert catalog.models["a"] is before
    (line,) = caplog.messages
    assert line.startswith("reload failed, version 1 of a stays in service: ")
    assert BAD_LABELS[text] in line
    with pytest.raises(ServingError):
        opened(root, names=("a",))


def test_models_are_unloaded_and_loaded(root):
    catalog = opened(root)
    catalog.unload("a")
    assert not catalog.reload()
    assert list(catalog.models) == ["b"]
    assert catalog.failures == {"a": "unloaded"}
    catalog.load("a")
    assert set(catalog.models) == {"a", "b"}
    damage(root, "a", "2")
    catalog.load("a")
    assert state(catalog) == (["1"], "1", None)
    for act in (catalog.load, catalog.unload):
        for name in ("c", "../a", ""):
            with pytest.raises(ModelNotFound):
                act(name)


def test_unloaded_model_that_goes_is_no_news(root, caplog):
    catalog = opened(root)
    catalog.unload("a")
    shutil.rmtree(root / "a")
    assert not catalog.reload()
    assert not catalog.failures
    assert not caplog.messages, "nobody served it"
    shutil.rmtree(root / "b")
    templates.publish(root, "c", SMALL)
    assert catalog.reload()
    assert caplog.messages == ["model b is gone from the repository: it is dropped"]


def test_version_that_a_caller_loads_is_counted_and_logged_as_at_a_look(root, caplog):
    catalog = opened(root)
    counts = Counter()
    catalog.count_reload = lambda outcome: counts.update([outcome])
    templates.publish(root, "a", SMALL, "2")
    with caplog.at_level(logging.INFO, "serving"):
        catalog.load("a")
        catalog.load("a")
    assert counts == {"loaded": 1}
    assert caplog.messages == ["model a: version 2 replaced version 1"]
    label(root, "a", stable="9")
    for _ in range(2):
        with pytest.raises(ConfigurationError):
            catalog.load("a")
    assert counts == {"loaded": 1, "unread": 1}
    assert "reload failed, version 2 of a stays in service" in caplog.text


def test_end_of_following_adopts_nothing_more(root, caplog):
    catalog = opened(root)
    with catalog.following():
        pass
    templates.publish(root, "a", SMALL, "2")
    with caplog.at_level(logging.INFO, "serving"):
        assert not catalog.reload()
    assert state(catalog) == (["1"], "1", None)
