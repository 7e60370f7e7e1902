"""A drain: accepted calls over HTTP are answered, new ones get 503, and the port closes last."""

import asyncio
import json
from contextlib import closing

import pytest

from serving.config import ServerConfig
from serving.model import repository
from serving.model.engine import LoadedModel
from serving.server.server import Server
from tests.serving.http.peer import HttpPeer
from tests.support.fakes import GatedModel, images_of, router_of

BODY = json.dumps({"images": images_of(7).tolist()}).encode()


async def ask(peer):
    return await asyncio.to_thread(peer.post, "/v1/digits", BODY, Content_Type="application/json")


def test_drain_answers_what_was_accepted_and_refuses_the_rest(models):
    engine = GatedModel()
    model = LoadedModel(engine, repository.load_manifest(models / "digits" / "1"), "fp32")
    config = ServerConfig(port=0, metrics_port=None, http_port=0, self_test_interval_s=0)

    async def scenario(router):
        server = Server(router, config)
        await server.start()
        peer = HttpPeer(server.http_url)
        first = asyncio.create_task(ask(peer))
        await asyncio.to_thread(engine.wait_until_running)
        drain = asyncio.create_task(server.drain())
        while (await asyncio.to_thread(peer.get, "/v2/health/ready")).status == 200:
            pass
        refused = await ask(peer)
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        assert "shutting down" in refused.json["detail"]
        assert not drain.done()
        engine.open(1000)
        outcome = await drain, (await first).status
        with pytest.raises(ConnectionRefusedError):
            await ask(peer)
        return outcome

    with closing(router_of(model)) as router:
        assert asyncio.run(scenario(router)) == (True, 200)


def test_drain_that_takes_too_long_ends(models):
    engine = GatedModel()
    model = LoadedModel(engine, repository.load_manifest(models / "digits" / "1"), "fp32")
    config = ServerConfig(
        port=0, metrics_port=None, http_port=0, drain_s=0.1, self_test_interval_s=0
    )

    async def scenario(router):
        server = Server(router, config)
        await server.start()
        first = asyncio.create_task(ask(HttpPeer(server.http_url)))
        await asyncio.to_thread(engine.wait_until_running)
        is_drained = await server.drain()
        engine.open(1000)
        await first
        await server.stop(grace_s=0)
        return is_drained

    with closing(router_of(model)) as router:
        assert not asyncio.run(scenario(router))
