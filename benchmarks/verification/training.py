"""Training as a program of its own, since it and serving know nothing of each other."""

import gzip
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.targets.target import NotMeasured
from serving.images import Images
from serving.signature import DIGITS

_TRAINING = "training: recipe "
"""How the line begins that ends with the device."""


def call(arguments: Sequence[str], limit_s: float, device: str = "") -> str:
    """Run `python -m training`, and show what it prints.

    Args:
        arguments: the command and its options.
        limit_s: seconds after which it is ended.
        device: "cpu" hides the GPU from it, "cuda" ends it if it trains on the CPU.

    Returns:
        The last line that it printed.

    Raises:
        NotMeasured: it failed, took longer, or trains on another device.
    """
    command, line, wrong = [sys.executable, "-m", "training", *arguments], "", ""
    environ = os.environ | ({"CUDA_VISIBLE_DEVICES": "-1"} if device == "cpu" else {})
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environ
        ) as process,
    ):
        limit = threading.Timer(limit_s, process.kill)
        limit.start()
        assert process.stdout is not None
        for line in process.stdout:
            print(f"  {line}", end="", flush=True)
            if line.startswith(_TRAINING) and not line.endswith(f"device {device}\n"):
                wrong = line.strip()
                process.kill()
        code = process.wait()
        limit.cancel()
        errors.seek(0)
        reasons = errors.read().strip().splitlines()
    if wrong:
        raise NotMeasured(f"TensorFlow does not use {device}: {wrong}")
    if code == -signal.SIGKILL:
        raise NotMeasured(f"training {arguments[0]} was killed; it has {limit_s:g} s")
    if code:
        ours = [each for each in reasons if each.startswith("python -m training: ")] or reasons[-1:]
        raise NotMeasured(f"training {arguments[0]} failed: {' '.join(ours) or code}")
    return line.strip()


def test_images(folder: Path) -> tuple[Images, npt.NDArray[np.uint8]]:
    """Read MNIST's test images from a folder whose digests `python -m training data` verified.

    Returns:
        (10000, 784) uint8, and their labels, (10000,) uint8.
    """
    contents = []
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        raw, packed = folder / name, folder / f"{name}.gz"
        contents.append(raw.read_bytes() if raw.is_file() else gzip.decompress(packed.read_bytes()))
    images, labels = (np.frombuffer(each, np.uint8) for each in contents)
    return images[16:].reshape(-1, DIGITS.image_bytes), labels[8:]
