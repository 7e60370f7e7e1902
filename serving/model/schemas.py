"""The messages of files that come with models: ONNX's own, and Triton's config.pbtxt.

They are in a private descriptor pool, built from what `make protos` writes: other programs in the
process register messages of these names in protobuf's default pool.
"""

import pkgutil
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory


def _classes(*names: str) -> list[Any]:
    data = pkgutil.get_data(__name__, "schemas.binpb")
    assert data is not None
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)
    found = (pool.FindMessageTypeByName(f"digits.{name}") for name in names)
    return [message_factory.GetMessageClass(each) for each in found]


ModelProto, ModelConfig = _classes("onnx.ModelProto", "triton.ModelConfig")
