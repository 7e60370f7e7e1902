"""Several replicas and one client: restarts, crashes, a frozen and a late server fail no call."""

import signal
import time
from contextlib import closing, contextmanager

import pytest

from digit_classifier import PRETRAINED, Classifier
from tests.support.fleet.replicas import Callers, Replica, Router

NUM_REPLICAS = 4


@pytest.fixture
def transport():
    """One is enough to test the client."""
    return "h2"


@contextmanager
def fleet(transport, models=PRETRAINED):
    options = ("--transport", transport)
    replicas = [Replica(models, f"127.0.0.{2 + n}", *options) for n in range(NUM_REPLICAS)]
    try:
        for replica in replicas[:-1]:
            replica.start()
        yield replicas
    finally:
        for replica in replicas:
            replica.close()


@pytest.fixture
def replicas(transport):
    """All four, started."""
    with fleet(transport) as replicas:
        replicas[-1].start()
        yield replicas


@pytest.fixture
def client(replicas):
    addresses = ",".join(replica.address for replica in replicas)
    with closing(Classifier.connect(addresses, attempt_timeout_s=0.5)) as client:
        client.wait_ready()
        yield client


@contextmanager
def unharmed(client):
    """Threads that call, none of whose calls may fail."""
    with Callers(client) as callers:
        yield callers
    print(callers)
    assert not callers.failures


def test_rolling_restart_fails_no_call(client, replicas):
    with unharmed(client):
        for replica in replicas:
            time.sleep(0.5)
            replica.restart()
        time.sleep(3)
        before = [replica.num_answered() for replica in replicas]
        time.sleep(2)
    after = [replica.num_answered() for replica in replicas]
    assert all(new > old for old, new in zip(before, after, strict=True)), "one got no calls"


def test_frozen_replica_fails_no_call(client, replicas):
    with unharmed(client) as callers:
        time.sleep(1)
        replicas[0].send(signal.SIGSTOP)
        time.sleep(6)  # a ping after 1.5 s has no answer in 1.25 s: the connection ends
        num_calls = len(callers.latencies_s)
        time.sleep(2)
    assert max(callers.latencies_s[num_calls:]) < 0.5, "calls still go to the frozen one"


@pytest.mark.parametrize("client_transport", ["grpcio", "h2"])
def test_restarts_and_a_crash_of_the_only_server_fail_no_call(client_transport):
    with closing(Replica(PRETRAINED, "127.0.0.2", "--transport", "h2")) as replica:
        replica.start()
        # A start takes long on a busy machine; calls are sent again until the timeout.
        patient = Classifier.connect(replica.address, timeout_s=60, transport=client_transport)
        with closing(patient) as client:
            client.wait_ready()
            with unharmed(client):
                for _ in range(3):
                    time.sleep(0.5)
                    replica.restart()
                time.sleep(0.5)
                replica.send(signal.SIGKILL)
                replica.start()
                before = replica.num_answered()
                time.sleep(2)
                after = replica.num_answered()
    assert after > before, "the last one got no calls"


@pytest.mark.parametrize("client_transport", ["grpcio", "h2"])
def test_only_server_that_is_frozen_for_a_while_fails_no_call(client_transport):
    with closing(Replica(PRETRAINED, "127.0.0.2", "--transport", "h2")) as replica:
        replica.start()
        with (
            closing(Classifier.connect(replica.address, transport=client_transport)) as client,
            unharmed(client),
        ):
            time.sleep(1)
            replica.send(signal.SIGSTOP)
            time.sleep(3)
            replica.send(signal.SIGCONT)
            time.sleep(2)


def test_replica_that_comes_later_gets_its_share(transport):
    with fleet(transport) as replicas:
        addresses = ",".join(replica.address for replica in replicas)
        with closing(Classifier.connect(addresses)) as client, unharmed(client):
            time.sleep(1)
            replicas[-1].start()
            time.sleep(6)  # it is found within 5 s
            before = [replica.num_answered() for replica in replicas]
            time.sleep(2)
            after = [replica.num_answered() for replica in replicas]
        answered = [new - old for old, new in zip(before, after, strict=True)]
        print("shares", [f"{number / sum(answered):.2f}" for number in answered])
        assert answered[-1] > 0.15 * sum(answered)


def test_replica_that_is_cut_off_fails_no_call(replicas):
    with closing(Router(replicas[0].address)) as router:
        addresses = ",".join([router.address, *(each.address for each in replicas[1:])])
        with closing(Classifier.connect(addresses, attempt_timeout_s=0.5)) as client:
            client.wait_ready()
            with unharmed(client):
                time.sleep(1)
                router.forget()
                time.sleep(3)
