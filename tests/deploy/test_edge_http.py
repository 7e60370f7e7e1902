"""HTTP and the pages through Envoy: answered, protected, and not lost with a replica."""

import json
import ssl
import threading
import urllib.request
from collections import Counter
from urllib.error import HTTPError

import pytest

from tests.deploy.replicas import replicas_behind
from tests.support.servers import wait_until


@pytest.fixture(scope="module")
def replicas(envoy, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("edge") / "configuration"
    with replicas_behind(envoy, folder, models, "--http-port", "0") as replicas:
        wait_until(lambda: ask(replicas, "/v2/health/ready")[0] == 200)
        yield replicas


def ask(replicas, path, content=None, **headers):
    context = ssl.create_default_context(cafile=str(replicas.certificates / "client-ca.pem"))
    body = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(
        f"https://{replicas.edge.tls}{path}", body, {"content-type": "application/json", **headers}
    )
    try:
        with urllib.request.urlopen(request, timeout=20, context=context) as answer:
            return answer.status, answer.read()
    except HTTPError as err:
        return err.code, err.read()


def test_page_and_answers_come_through(replicas, images):
    status, page = ask(replicas, "/")
    assert (status, b"Draw a digit" in page) == (200, True)
    status, answer = ask(replicas, "/v1/digits", {"images": images[:2].tolist()})
    assert (status, len(json.loads(answer)["digits"])) == (200, 2)
    assert ask(replicas, "/v2/models/digits")[0] == 200
    assert ask(replicas, "/no/such/path")[0] == 404


def test_page_of_another_site_is_refused(replicas, images):
    asked = {"images": images[:1].tolist()}
    own = f"https://{replicas.edge.tls}"
    assert ask(replicas, "/v1/digits", asked, origin=own)[0] == 200
    assert ask(replicas, "/v1/digits", asked, origin="https://elsewhere.example.org")[0] == 403


def test_no_request_is_lost_with_a_replica(replicas, images):
    asked = {"images": images[:1].tolist()}
    statuses: Counter[int] = Counter()
    has_ended = threading.Event()

    def call():
        while not has_ended.is_set():
            statuses[ask(replicas, "/v1/digits", asked)[0]] += 1

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: statuses[200] > 40)
    replicas.servers[0].process.kill()
    seen = statuses[200]
    wait_until(lambda: statuses[200] > seen + 100)
    has_ended.set()
    for thread in threads:
        thread.join()
    assert set(statuses) == {200}
