"""The messages of the Open Inference Protocol, in a private descriptor pool.

Every client of the protocol (tritonclient, kserve, mlserver) registers the names of `package
inference` in protobuf's default pool, which accepts each name once per process. A generated module
would conflict with them. So the classes are built from the descriptor set that `make protos`
writes, in a pool of our own.
"""

import pkgutil
from typing import Any

from google.protobuf import descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

pool = descriptor_pool.DescriptorPool()
"""The pool with the protocol's file."""


def _load() -> None:
    data = pkgutil.get_data("serving.protocols", "pb/inference.binpb")
    assert data is not None
    # The set is one file behind a tag and its length; `descriptor_pb2`, which reads any set, takes
    # 2 ms and half a megabyte, and no server needs it for anything else.
    length_bytes = next(at for at, byte in enumerate(data[1:], 1) if byte < 0x80)
    pool.AddSerializedFile(data[length_bytes + 1 :])


_load()


def __getattr__(name: str) -> Any:
    """Return the class of a message, such as ModelInferRequest."""
    try:
        descriptor = pool.FindMessageTypeByName(f"{PACKAGE}.{name}")
    except KeyError:
        raise AttributeError(f"no message {name}") from None
    found = globals()[name] = message_factory.GetMessageClass(descriptor)
    return found
