"""Whether a GPU works here: that ONNX Runtime lists CUDA says nothing about the driver."""

from functools import cache

from digit_classifier import PRETRAINED
from digit_classifier.predictions import DIGITS
from serving.errors import DeviceError
from serving.model.engine import open_engine
from serving.model.onnx_runtime import SessionSettings

NO_GPU = r"needs ONNX Runtime with CUDAExecutionProvider|CUDA can't be used: CUDA failure \d+: "
"""The reasons for a DeviceError: an ONNX Runtime without CUDA, or with it and no usable GPU."""


@cache
def gpu_works():
    try:
        model = (PRETRAINED / "digits" / "1" / "model.onnx").read_bytes()
        open_engine(model, SessionSettings(device="cuda"), DIGITS)
    except DeviceError:
        return False
    return True
