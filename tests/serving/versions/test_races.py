"""What callers, signals and files do while a model is looked at, or the repository hangs."""

import gc
import shutil
import threading
import weakref
from contextlib import contextmanager

import pytest

from serving.model.loaded import LoadedModel
from serving.model.loading import Loading
from serving.router import Router
from serving.tensors import Signature
from serving.versions.catalog import Catalog
from serving.versions.folder import ModelFolder
from serving.versions.version import State
from tests.serving.model import templates
from tests.serving.versions.conftest import SMALL
from tests.serving.versions.test_catalog import damage, label, opened, state
from tests.support.servers import wait_until

pytestmark = pytest.mark.process  # a model that this machine has not seen is tried in one


@contextmanager
def hanging(monkeypatch, owner, method):
    """Let calls of a method hang inside; yield an event that is set once one does."""
    real, hangs, release = getattr(owner, method), threading.Event(), threading.Event()

    def hang(*args):
        hangs.set()
        assert release.wait(60.0)
        return real(*args)

    monkeypatch.setattr(owner, method, hang)
    try:
        yield hangs
    finally:
        monkeypatch.setattr(owner, method, real)
        release.set()


def beside(work, *args):
    """Do something on a thread; return it, and what it will have raised."""
    errors = []

    def run():
        try:
            work(*args)
        except Exception as err:
            errors.append(err)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, errors


def test_last_call_does_not_wait_for_a_repository_that_hangs(root, monkeypatch):
    catalog = opened(root)
    first = catalog._folders["a"].versions["1"]
    model = first.model
    templates.publish(root, "a", SMALL, "2")
    assert catalog.reload()
    with hanging(monkeypatch, Catalog, "_paths") as hangs:
        look, _ = beside(catalog.reload)
        assert hangs.wait(60.0)
        beside(catalog.end_version, model)  # as h2's loop does
        wait_until(lambda: first.state is State.GONE)
    look.join()


def test_version_that_ends_at_once_is_not_remembered(root):
    """Its calls may all be answered before the change is done."""
    catalog = opened(root)
    first = catalog.models["a"].default
    catalog.on_change = lambda name, versions: catalog.end_version(first)
    templates.publish(root, "a", SMALL, "2")
    assert catalog.reload()
    assert not catalog._leaving
    first = catalog.models["a"].default
    catalog.unload("a")
    assert not catalog._leaving


def test_model_that_is_unloaded_while_a_caller_loads_it_leaves_nothing(root, monkeypatch):
    catalog = opened(root)
    folder, closed = catalog._folders["a"], []
    templates.publish(root, "a", SMALL, "2")
    monkeypatch.setattr(LoadedModel, "close", lambda model: closed.append(model))
    with hanging(monkeypatch, ModelFolder, "_load") as hangs:
        loads, errors = beside(catalog.load, "a")
        assert hangs.wait(60.0)
        catalog.unload("a")
    loads.join()
    assert not errors
    assert [each.version for each in closed] == ["2"], "its handler may have a process"
    assert not folder.versions
    assert (list(catalog.models), catalog.failures) == (["b"], {"a": "unloaded"})
    catalog.load("a")
    assert state(catalog)[1] == "2"


def test_look_that_fails_at_a_model_that_is_gone_leaves_nothing(root, monkeypatch):
    catalog, closed = opened(root), []
    catalog.patience_s = 0.05
    folder = catalog._folders["a"]
    templates.publish(root, "a", SMALL, "2")
    label(root, "a", stable="9")
    monkeypatch.setattr(LoadedModel, "close", lambda model: closed.append(model))
    with hanging(monkeypatch, ModelFolder, "_load") as hangs:
        catalog.reload()
        assert hangs.wait(60.0)
        catalog.unload("a")
    wait_until(lambda: folder.looking is None)
    assert {each.version for each in closed} == {"1", "2"}
    assert catalog.failures == {"a": "unloaded"}, "the label is no fault of an unloaded model"


def test_model_that_is_unloaded_while_others_are_looked_at_stays_unloaded(root, monkeypatch):
    catalog = opened(root)
    templates.publish(root, "a", SMALL, "2")
    with hanging(monkeypatch, ModelFolder, "_load") as hangs:
        look, _ = beside(catalog.reload)
        assert hangs.wait(60.0)
        catalog.unload("b")
    look.join()
    assert list(catalog.models) == ["a"]
    assert catalog.failures == {"b": "unloaded"}


def test_what_was_refused_is_tried_again_at_the_look_after_the_one_that_goes_on(root, monkeypatch):
    """The states belong to the thread that looks."""
    damage(root, "a", "2")
    catalog = opened(root)
    folder, refused = catalog._folders["a"], catalog._folders["a"].versions["2"]
    templates.publish(root, "a", SMALL, "3")
    with hanging(monkeypatch, ModelFolder, "_load") as hangs:
        look, _ = beside(catalog.reload)
        assert hangs.wait(60.0)
        folder.forget_failures()
        assert refused.state is State.REFUSED
    look.join()
    assert "SHA-256" in catalog.models["a"].reasons["2"]
    shutil.rmtree(root / "a" / "3")
    tried, load = [], ModelFolder._load

    def note(folder, version):
        tried.append(version.number)
        load(folder, version)

    monkeypatch.setattr(ModelFolder, "_load", note)
    catalog.reload()
    assert tried == ["2", "1"]
    catalog.reload()
    assert tried == ["2", "1"], "once for each request"


def test_first_version_that_is_mended_before_it_serves_may_have_another_signature(root):
    """A look that fails keeps what it has loaded, and nobody has seen that."""
    shutil.rmtree(root / "a")
    folder = root / "a" / "1"
    folder.mkdir(parents=True)
    label(root, "a", stable="9")
    graph = templates._graph
    (folder / "model.onnx").write_bytes(graph(SMALL))
    catalog = opened(root)
    assert list(catalog.models) == ["b"]
    (root / "a" / "labels.json").unlink()
    (folder / "model.onnx").write_bytes(graph(Signature((8, 8), 4)))
    assert catalog.reload()
    assert not catalog.failures
    assert catalog.models["a"].default.tensors.outputs[0].shape[1] == 4


def test_receivers_of_calls_know_why_a_version_is_refused_at_a_reload(root):
    catalog, router = opened(root), Router()
    catalog.on_change = router.change
    for name, versions in catalog.models.items():
        router.change(name, versions)
    route = router.routes["a"]
    damage(root, "a", "2")
    assert not catalog.reload(), "no caller gets another answer"
    assert router.routes["a"] is route
    assert "SHA-256" in route.versions.reasons["2"]
    assert route.versions.waiting == catalog.models["a"].waiting
    shutil.rmtree(root / "a" / "2")
    assert not catalog.reload()
    assert not route.versions.reasons


def test_unloaded_model_whose_folder_is_replaced_stays_unloaded(root):
    """Another one may be moved to its place, with a look between."""
    catalog = opened(root)
    catalog.unload("a")
    (root / "a").rename(root / ".a")
    assert not catalog.reload()
    assert not catalog.failures, "it is not there"
    (root / ".a").rename(root / "a")
    assert not catalog.reload()
    assert (list(catalog.models), catalog.failures) == (["b"], {"a": "unloaded"})
    catalog.load("a")
    assert set(catalog.models) == {"a", "b"}


def test_versions_overwritten_before_they_serve_end_and_the_one_that_serves_leaves(
    root, monkeypatch
):
    """Until its labels are mended, each other file is loaded, and nobody sees it."""
    shutil.rmtree(root / "a")
    (root / "a" / "1").mkdir(parents=True)

    def overwrite():
        (root / "new").write_bytes(templates._graph(SMALL))
        (root / "new").rename(root / "a" / "1" / "model.onnx")

    overwrite()
    catalog, closed = opened(root), []
    serving = catalog._folders["a"].versions["1"]
    model = serving.model
    monkeypatch.setattr(LoadedModel, "close", lambda model: closed.append(model))
    label(root, "a", stable="9")
    for _ in range(3):
        overwrite()
        catalog.reload()
    assert catalog.models["a"].default is model
    assert len(closed) == 2, "their handlers have processes"
    (root / "a" / "labels.json").unlink()
    assert catalog.reload()
    assert catalog._leaving == {model: serving}
    assert serving.state is State.LEAVING
    assert len(closed) == 2
    assert catalog.models["a"].default not in closed


def test_what_is_refused_keeps_nothing_of_its_files(root):
    """They may have gigabytes."""
    for name, version in (("a", "2"), ("c", "1")):
        (root / name / version).mkdir(parents=True)
        (root / name / version / "model.onnx").write_bytes(bytes(100))
    catalog = opened(root)
    (root / "a" / "3").mkdir()
    (root / "a" / "3" / "model.onnx").write_bytes(bytes(100))
    catalog.reload()
    assert [*catalog.models["a"].reasons] == ["3", "2"]
    assert [*catalog.failures] == ["c"]
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Loading]


def test_version_that_has_gone_is_freed_without_a_collection(root):
    """Those of old objects are rare, and what a server has at its start is exempt from them."""
    catalog, router = opened(root), Router()
    catalog.on_change, router.on_end = router.change, catalog.end_version
    router.change("a", catalog.models["a"])
    engine = weakref.ref(catalog.models["a"].default.engine)
    templates.publish(root, "a", SMALL, "2")
    gc.collect()
    gc.disable()
    try:
        assert catalog.reload()
        router.prune()
        assert engine() is None
    finally:
        gc.enable()
