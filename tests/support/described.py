"""Descriptions of models with all facts, and with as few as there are."""

from serving.tensors import ModelInfo, Tensor

TENSORS = {
    "inputs": (
        Tensor("text", "BYTES", (-1,), names=("texts",), content="text"),
        Tensor("x", "FP32", (-1, 4, -1), names=("texts", "", "width")),
    ),
    "outputs": (
        Tensor("words", "BYTES", (-1,), content="json"),
        Tensor("y", "INT64", (-1, 3)),
    ),
}
INFO = ModelInfo(
    name="m",
    version="3",
    versions=("3", "2"),
    default_version="2",
    canary_version="3",
    not_served={"4": "corrupt"},
    **TENSORS,
    is_batchable=True,
    in_parts=True,
    batching="row independence proved",
    device="cpu",
    precision="int8",
    optimized="int8 u8, of mine version 1",
    max_batch_size=17,
    max_request_rows=99,
    max_message_bytes=12_345,
    labels=("cat", "dog"),
    pictures={"height": 8, "width": 9},
    test_accuracy=0.875,
)
PLAIN = ModelInfo(
    name="m", version="1", versions=("1",), default_version="1", **TENSORS, is_batchable=False,
    max_batch_size=0,
)  # fmt: skip
