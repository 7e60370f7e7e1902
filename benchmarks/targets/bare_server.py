"""The native transport and the model, nothing between: prices all else that our server does.

No queue, no limits, no cancellation, no metrics; a bad request ends it.

python -m benchmarks.targets.bare_server --models models
"""

import argparse
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from benchmarks.targets.echo_server import MAX_EVENTS, open_front
from serving.images import IMAGE_BYTES
from serving.loaded_model import load_model
from serving.rpc import wire


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    options = parser.parse_args()
    model = load_model(options.models / "digits", None, "cpu", options.precision)
    front = open_front()
    while (events := front.recv_batch(MAX_EVENTS)) is not None:
        calls = [(call_id, data) for _, call_id, _, data, _ in events if data is not None]
        pixels = [wire.decode_request(data, max_images=len(data)) for _, data in calls]
        images = np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, IMAGE_BYTES)
        probabilities = model.run(images)
        digits = probabilities.argmax(axis=1).astype(np.uint8)
        ends = accumulate((len(each) // IMAGE_BYTES for each in pixels), initial=0)
        for (call_id, _), (first, end) in zip(calls, pairwise(ends), strict=True):
            answer = (digits[first:end].tobytes(), probabilities[first:end].tobytes())
            front.respond(call_id, wire.encode_response(*answer, model.version))


if __name__ == "__main__":
    main()
