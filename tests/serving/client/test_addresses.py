"""Addresses as people write them, as gRPC's targets."""

import pytest

from serving.client.transport import grpc_target
from serving.errors import ConfigurationError, Unavailable


@pytest.mark.parametrize(
    "address",
    ["digits:50051", "dns:///digits:50051", "dns://10.0.0.1/a,b:1", "unix:/run/a,b", "[::1]:50051"],
)
def test_one_address_is_left_to_grpc(address):
    assert grpc_target(address) == (address, None)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1:1, 10.0.0.2:2,", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[fe80::2]:2", "ipv6:[::1]:1,[fe80::2]:2"),
        ("10.0.0.1:1,[::1]:2", "ipv6:[::ffff:10.0.0.1]:1,[::1]:2"),
    ],
)
def test_several_become_a_list(address, target):
    assert grpc_target(address) == (target, address.split(",")[0])


def test_grpcs_own_list_gets_an_authority():
    assert grpc_target("ipv4:10.0.0.1:1,10.0.0.2:2") == ("ipv4:10.0.0.1:1,10.0.0.2:2", "10.0.0.1:1")


@pytest.mark.parametrize("address", ["a,b:1", "a:1,b", "a:1,:2", "a:1,b:x"])
def test_each_of_several_needs_a_port(address):
    with pytest.raises(ConfigurationError, match="host:port"):
        grpc_target(address)


def test_name_without_an_address_is_named():
    with pytest.raises(Unavailable, match=r"nowhere\.invalid:2"):
        grpc_target("127.0.0.1:1,nowhere.invalid:2")
