"""Decodes and checks answers: a server may be broken, or be another program."""

from dataclasses import fields

import numpy as np
from google.protobuf.message import DecodeError

from serving.digits import wire
from serving.errors import Unavailable
from serving.predictions import Predictions, Probabilities
from serving.protocols.pb.digits.v1 import digits_pb2
from serving.tensors import ModelInfo, Signature

_FEW_NUMBERS = 64
"""Probabilities that Python checks faster than numpy: 1 µs of a call instead of 5."""
_TOLERANCE = 1e-3
"""How far from 1 a sum of probabilities may be, by rounding."""


def predictions_of(data: bytes, num_images: int, signature: Signature, address: str) -> Predictions:
    """Decode a ClassifyResponse.

    Args:
        data: the message.
        num_images: the number of images in the request.
        signature: the model's.
        address: the server's, for errors.

    Raises:
        Unavailable: it is not a ClassifyResponse, or does not fit the request.
    """
    shape = num_images, signature.num_classes
    try:
        predictions = wire.decode_response(data, signature.labels, shape)
    except (DecodeError, ValueError, OverflowError) as err:
        raise _malformed(address, "no ClassifyResponse") from err
    if predictions.probabilities.shape != shape:
        found = predictions.probabilities.shape
        raise _malformed(address, f"probabilities of shape {found}, not {shape}")
    if not _are_distributions(predictions.probabilities):
        raise _malformed(address, "probabilities that are not 0 to 1 with a sum of 1")
    return predictions


def _are_distributions(probabilities: Probabilities) -> bool:
    """Return whether each row has numbers of at least 0 that add up to 1; NaN is neither."""
    if probabilities.size > _FEW_NUMBERS:
        sums = probabilities @ np.ones(probabilities.shape[1], np.float32)
        return bool(probabilities.min() >= 0 and abs(sums - 1).max() <= _TOLERANCE)
    rows = probabilities.tolist()
    return all(abs(sum(row) - 1) <= _TOLERANCE and min(row) >= 0 for row in rows)


def model_info_of(data: bytes, address: str) -> ModelInfo:
    """Decode a GetModelResponse.

    Args:
        data: the message.
        address: the server's, for errors.

    Raises:
        Unavailable: it is not one, or its limits or shapes are impossible.
    """
    try:
        response = digits_pb2.GetModelResponse.FromString(data)
    except DecodeError as err:
        raise _malformed(address, "no GetModelResponse") from err
    if response.max_request_images < 1:
        raise _malformed(address, f"max_request_images {response.max_request_images}")
    info = {each.name: getattr(response, each.name) for each in fields(ModelInfo)}
    info["test_accuracy"] = response.test_accuracy or None
    try:
        info["signature"] = wire.signature_of(response)
    except ValueError as err:
        raise _malformed(address, f"a model of {err}") from err
    return ModelInfo(**info)


def _malformed(address: str, answer: str) -> Unavailable:
    return Unavailable(f"{address}: the server is broken: it answered {answer}")
