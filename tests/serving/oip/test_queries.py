"""What a server says of itself and its models is the same over gRPC and over HTTP."""

import json
from typing import Any

import grpc
import pytest

from serving.oip import inference_pb
from tests.serving.http.peer import HttpPeer
from tests.support.raw import Peer
from tests.support.servers import running_server


@pytest.fixture(scope="module")
def peers(models):
    with (
        running_server(models, "--http-port", "0", "--allow-repository-control") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        peer, http = Peer(channel), HttpPeer(server.facts["http"])
        request = {"name": "images", "datatype": "UINT8", "shape": [1, 784], "data": [0] * 784}
        assert http.post("/v2/models/digits/infer", json.dumps({"inputs": [request]})).status == 200
        yield peer, http


MODELS = [{"name": "digits"}, {"name": "digits", "version": "1"}]
ASKED = [
    ("ServerMetadata", {}, "/v2", None),
    ("ServerLive", {}, "/v2/health/live", None),
    ("ServerReady", {}, "/v2/health/ready", None),
    ("ModelReady", MODELS[0], "/v2/models/digits/ready", None),
    ("ModelReady", MODELS[1], "/v2/models/digits/versions/1/ready", None),
    ("ModelMetadata", MODELS[0], "/v2/models/digits", None),
    ("ModelMetadata", MODELS[1], "/v2/models/digits/versions/1", None),
    ("ModelConfig", MODELS[0], "/v2/models/digits/config", "config"),
    ("ModelConfig", MODELS[1], "/v2/models/digits/versions/1/config", "config"),
    ("ModelStatistics", {}, "/v2/models/stats", None),
    ("ModelStatistics", MODELS[1], "/v2/models/digits/versions/1/stats", None),
    ("RepositoryIndex", {}, "/v2/repository/index", "models"),
]


def message_of(method: str, fields: Any, inner: str | None) -> Any:
    """The message that JSON stands for; a name that the message does not have is an error."""
    if method == "ModelMetadata":  # only HTTP's has room for what else is known
        assert fields.pop("parameters")["device"] == "cpu"
    return getattr(inference_pb, f"{method}Response")(**({inner: fields} if inner else fields))


@pytest.mark.parametrize(("method", "asked", "path", "inner"), ASKED)
def test_both_protocols_say_the_same(method, asked, path, inner, peers):
    peer, http = peers
    reply = http.post(path) if method == "RepositoryIndex" else http.get(path)
    expected = peer.call(method, **asked)
    if method == "ModelStatistics":  # there is one that has been asked for something
        assert expected.model_stats[0].inference_stats.success.ns > 0
    assert message_of(method, reply.json, inner) == expected


def test_loading_is_answered_with_nothing(peers):
    peer, http = peers
    assert http.post("/v2/repository/models/digits/load").json == {}
    loaded = peer.call("RepositoryModelLoad", model_name="digits")
    assert loaded == inference_pb.RepositoryModelLoadResponse()
