"""Why a version is not served is one sentence, wherever one asks."""

import json
import urllib.request

import pytest

from serving import Client, ModelNotFound
from serving.versions.catalog import Catalog
from serving.versions.version import State
from tests.serving.http.peer import HttpPeer
from tests.serving.model import templates
from tests.serving.versions.conftest import SMALL
from tests.serving.versions.test_catalog import damage, label, opened
from tests.support.servers import ended, running_server, serve_command

pytestmark = pytest.mark.process  # a model that this machine has not seen is tried in one


def test_everybody_says_the_same(root):
    templates.publish(root, "a", SMALL, "2")
    damage(root, "a", "3")
    with running_server(root, "--http-port", "0") as server:
        http = HttpPeer(server.facts["http"])
        index = http.post("/v2/repository/index").json
        (reason,) = [each["reason"] for each in index if each["version"] == "3"]
        assert reason.startswith("3/model.onnx: expected SHA-256 ")
        page = http.get("/v2/models").json["models"]
        assert [each["reason"] for each in page if each["version"] == "3"] == [reason]
        sentence = f"model 'a' version 3 is not served: {reason}"
        assert http.get("/v2/models/a/versions/3").json["detail"] == sentence
        with Client(server.address) as client:
            with pytest.raises(ModelNotFound, match="is not served") as refused:
                client.describe("a", "3")
            assert sentence in str(refused.value)
            assert client.describe("a").not_served["3"] == reason
        with urllib.request.urlopen(f"http://{server.facts['metrics']}/readyz") as answer:
            assert f"NOT_SERVING model a version 3: {reason}" in answer.read().decode().split("\n")
        for source in (["--target", server.address], ["--models", str(root)]):
            info = [*serve_command(None)[:3], "info", *source, "--model", "a"]
            assert f"3: {reason}" in json.loads(ended([*info, "--json"]).stdout)["not_served"]
        assert server.facts["waiting"] == "a/3"
        server.stop()
        assert f"skipped version 3: {reason}" in server.process.stderr.read()


def test_version_that_nobody_wants_says_which_ones_are(root):
    templates.publish(root, "a", SMALL, "2")
    only = "only the newest good version is served: 2"
    catalog = opened(root)
    assert catalog.models["a"].reasons == {"1": only}
    assert not catalog.models["a"].waiting
    with pytest.raises(ModelNotFound, match=f"model 'a' version 1 is not served: {only}$"):
        catalog.models["a"].find("1")
    for version in ("3", "4"):
        templates.publish(root, "a", SMALL, version)
    named = opened(root, names=("a",), versions="1,2")
    assert not named.models["a"].reasons, "the others are none of its business"
    two = opened(root, names=("a",), canary=0.1)
    assert set(two.models["a"].reasons.values()) == {
        "only the newest 2 good versions are served: 4, 3"
    }


def test_version_that_leaves_is_gone_with_its_last_call(root):
    catalog = opened(root)
    first = catalog._folders["a"].versions["1"]
    model = first.model
    templates.publish(root, "a", SMALL, "2")
    assert catalog.reload()
    assert (first.state, first.model) == (State.LEAVING, model)
    catalog.end_version(catalog.models["a"].default)  # not one that leaves
    assert first.state is State.LEAVING
    catalog.end_version(model)
    assert (first.state, first.model) == (State.GONE, None)


def test_unloaded_model_leaves_and_other_files_are_another_version(root):
    catalog: Catalog = opened(root)
    first = catalog._folders["a"].versions["1"]
    catalog.unload("a")
    assert first.state is State.LEAVING
    catalog.load("a")
    assert catalog._folders["a"].versions["1"] is not first
    assert catalog._folders["a"].versions["1"].state is State.SERVING


def test_version_that_has_left_is_loaded_again_once_a_label_wants_it(root):
    catalog = opened(root)
    templates.publish(root, "a", SMALL, "2")
    first = catalog.models["a"].default
    assert catalog.reload()
    for is_answered in (False, True):
        if is_answered:
            catalog.end_version(first)
        label(root, "a", stable="1")
        assert catalog.reload()
        assert catalog.models["a"].default_version == "1"
        assert catalog.models["a"].default is not first
        first = catalog.models["a"].default
        (root / "a" / "labels.json").unlink()
        assert catalog.reload()
        assert catalog.models["a"].default_version == "2"
