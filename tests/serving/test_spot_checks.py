"""A model that mixes rows and is proved all the same: a running server finds it."""

import asyncio
import hashlib

import numpy as np
import pytest

from serving import AsyncClient
from serving.model import verdicts
from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import node, rows_model, save
from tests.support.servers import running_server, wait_until

SECRET = 12_345.0
ROW = np.zeros((1, 4), np.float32)


def mixing():
    """A model whose answers change if a row of the batch has a certain number in it."""
    return rows_model(
        node("Equal", ["x", "secret"], ["equal"]),
        node("Cast", ["equal"], ["marks"], to=1),
        node("ReduceMax", ["marks"], ["mark"], keepdims=0),
        node("Add", ["x", "mark"], ["y"]),
        constants={"secret": np.float32(SECRET)},
    )


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The model, and a verdict on it as a wrong proof would have left it."""
    data = save(mixing(), tmp_path, "mixing.onnx").read_bytes()
    monkeypatch.setenv(verdicts.VARIABLE, str(tmp_path / "verdicts"))
    key = verdicts.key_of(hashlib.sha256(data).hexdigest(), {})
    verdicts.keep(key, verdicts.Verdict(None))
    return tmp_path


def options(*more):
    return ("--model", "mixing", "--http-port", "off", *more)


async def num_wrong(address, number):
    """Send calls, of which one in 25 has the number; return how many others had wrong answers."""
    wrong = 0
    async with AsyncClient(address) as client:

        async def call(at):
            nonlocal wrong
            row = ROW + SECRET * (at % 25 == 0)
            outputs = await client.infer("mixing", {"x": row})
            wrong += bool(at % 25 and outputs["y"].any())

        for begin in range(0, number, 100):
            await asyncio.gather(*(call(begin + at) for at in range(100)))
    return wrong


def metric(server, name):
    page = HttpPeer(f"http://{server.facts['metrics']}").get("/metrics").body.decode()
    lines = [line for line in page.splitlines() if line.startswith(name + "{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


MISMATCHES = "serving_batch_mismatches_total"


def test_batching_ends_and_a_restart_knows_it(folder):
    with running_server(folder, *options()) as server:
        asyncio.run(num_wrong(server.address, 4_000))
        assert metric(server, MISMATCHES) == 3
        assert asyncio.run(num_wrong(server.address, 1_000)) == 0
        assert server.stop() == 0
        text = server.process.stderr.read()
    assert text.count("in a batch a row has another answer than alone: y differs by") == 3
    assert "calls run alone from now on" in text
    assert str(SECRET) not in text
    with running_server(folder, *options()) as server:
        assert asyncio.run(num_wrong(server.address, 1_000)) == 0
        assert metric(server, MISMATCHES) == 0
        server.stop()
        reason = "batching off: in each of 3 batches a row had another answer than alone"
        assert reason in server.process.stderr.read()


def test_switched_off_nothing_is_run_again(folder):
    with running_server(folder, *options("--spot-checks", "off")) as server:
        assert asyncio.run(num_wrong(server.address, 2_000)) > 0
        assert metric(server, MISMATCHES) == 0


def test_workers_follow_one_another(folder, monkeypatch):
    monkeypatch.setenv(verdicts.VARIABLE, "off")
    with running_server(folder, *options("--workers", "2", "--batch", "mixing=auto")) as server:
        # Without the kept verdict the model is not proved: nothing is shared, nothing differs.
        assert asyncio.run(num_wrong(server.address, 1_000)) == 0
    monkeypatch.setenv(verdicts.VARIABLE, str(folder / "verdicts"))
    with running_server(folder, *options("--workers", "2")) as server:
        asyncio.run(num_wrong(server.address, 4_000))  # by one connection, so to one worker

        async def of_many():
            return sum(await asyncio.gather(*(num_wrong(server.address, 300) for _ in range(4))))

        wait_until(lambda: metric(server, MISMATCHES) >= 3)
        wait_until(lambda: asyncio.run(of_many()) == 0)
