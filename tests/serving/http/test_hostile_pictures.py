"""Pictures that a stranger sends to harm: each costs its sender alone."""

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from serving.processes.pool import CRASH
from tests.digit_classifier.http.test_digits import form
from tests.serving.http.peer import HttpPeer, Reply
from tests.support.pictures import encoded
from tests.support.servers import Footprint, children, running_server


@pytest.fixture(scope="module")
def server(models):
    with running_server(models, "--http-port", "0") as server:
        yield server


@pytest.fixture
def peer(server):
    return HttpPeer(server.facts["http"])


@pytest.fixture(scope="module")
def dots():
    """Some 600 bytes: 441 separate marks."""
    levels = np.full((256, 256), 255, np.uint8)
    for y in range(6, 248, 12):
        for x in range(6, 248, 12):
            levels[y : y + 8, x : x + 8] = 0
    return encoded(Image.fromarray(levels))


DECODED_BYTES = 8_000 * 8_000


@pytest.fixture(scope="module")
def large():
    """Some 80 KB, which take most of a second to decode: a cross of 8,000 x 8,000 pixels."""
    image = Image.new("L", (8_000, 8_000), 255)
    pen = ImageDraw.Draw(image)
    pen.line([(1_000, 1_000), (7_000, 7_000)], 0, 900)
    pen.line([(1_000, 7_000), (7_000, 1_000)], 0, 900)
    return encoded(image)


@pytest.fixture(scope="module")
def plain():
    levels = np.full((60, 60), 255, np.uint8)
    levels[10:50, 27:33] = 0
    return encoded(Image.fromarray(levels))


def state_of(pid):
    """The letter of a process's state, such as R; Z if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


def workers_of(server):
    return [worker for each in children(server.process.pid) for worker in children(each)]


def test_page_of_dots_is_refused_in_one_line(dots, peer):
    reply = peer.post("/v1/digits", dots)
    assert reply.status == 400
    assert reply.json["detail"].startswith("expected one digit")


def test_dots_of_a_form_cost_the_other_pictures_nothing(dots, plain, peer):
    body, kind = form(("a.png", dots), ("b.png", plain))
    refused, read = peer.post("/v1/digits", body, Content_Type=kind).json["digits"]
    assert refused["error"].startswith("expected one digit")
    assert read["digit"] in range(10)


def test_deadline_ends_the_work(large, server, peer):
    assert peer.post("/v1/digits", large, Request_Timeout="0.05").status == 504
    end_s = time.monotonic() + 20
    while any(state_of(worker) == "R" for worker in workers_of(server)):
        assert time.monotonic() < end_s


@pytest.mark.parametrize("shape", [(8_900, 8_900), (1, 80_000_000)])
def test_picture_too_large_for_its_process_is_refused_undecoded(shape, server, peer):
    picture = encoded(Image.new("RGB", shape[::-1], "white"))  # 4 bytes a pixel
    reply = peer.post("/v1/digits", picture)
    assert reply.status == 413
    assert "take too much memory" in reply.json["detail"]
    for pid in (server.process.pid, *workers_of(server)):
        assert Footprint.of(pid).resident_bytes < 300 << 20


def test_decoder_that_crashes_costs_its_sender_one_answer(large, plain, server, peer):
    replies: list[Reply] = []
    assert peer.post("/v1/digits", plain).status == 200
    idle_bytes = max(Footprint.of(worker).resident_bytes for worker in workers_of(server))
    caller = threading.Thread(target=lambda: replies.append(peer.post("/v1/digits", large)))
    caller.start()
    while caller.is_alive() and not replies:
        for worker in workers_of(server):
            with suppress(OSError, KeyError):  # it has ended meanwhile
                if Footprint.of(worker).resident_bytes > idle_bytes + DECODED_BYTES // 2:
                    os.kill(worker, signal.SIGSEGV)
    caller.join()
    assert (replies[0].status, replies[0].json["detail"]) == (400, CRASH)
    assert peer.post("/v1/digits", plain).status == 200
    assert server.process.poll() is None
