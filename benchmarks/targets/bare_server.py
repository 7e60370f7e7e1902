"""HTTP/2 and the model, nothing between: prices all else that our server does.

No queue, no limits, no cancellation, no metrics; a bad request ends it.

python -m benchmarks.targets.bare_server --models models
"""

import argparse
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from benchmarks.targets.small_loop import serve
from serving.images import IMAGE_BYTES
from serving.model.loaded_model import load_model
from serving.protocols.digits_v1 import wire


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    options = parser.parse_args()
    model = load_model(options.models / "digits", None, "cpu", options.precision)

    def classify(messages: list[bytes]) -> list[bytes]:
        pixels = [wire.decode_request(each, max_images=len(each)) for each in messages]
        images = np.frombuffer(b"".join(pixels), np.uint8).reshape(-1, IMAGE_BYTES)
        rows = model.run(images)
        digits = rows.argmax(axis=1).astype(np.uint8)
        ends = accumulate((len(each) // IMAGE_BYTES for each in pixels), initial=0)
        return [
            wire.encode_response(digits[a:b].tobytes(), rows[a:b].tobytes(), model.version)
            for a, b in pairwise(ends)
        ]

    serve(classify)


if __name__ == "__main__":
    main()
