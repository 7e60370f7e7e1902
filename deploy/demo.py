"""The last step of `make demo`: start a server, send it the 10,000 test images, print the result.

Also an example of the whole path: this is all it takes to ask a server.
"""

import argparse
import sys
import time
from pathlib import Path

from digit_classifier import Classifier
from serving import Server
from training.data.mnist import Mnist


def main(argv: list[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0 if the accuracy over gRPC is the manifest's, to the image; else 1.
    """
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--models", type=Path, default=Path("models"), help="model repository")
    parser.add_argument("--data-dir", type=Path, help="folder of the four MNIST files")
    options = parser.parse_args(argv)
    mnist = Mnist.load(options.data_dir)

    server = Server(models=options.models, http_port="off", metrics_port="off")
    with server, Classifier.connect(server.address) as client:
        print(f"serving {options.models} at {server.address}", flush=True)
        info = client.describe()
        client.classify(mnist.test_images[:1])  # connect first: the rate is that of the work
        start_s = time.perf_counter()
        predictions = client.classify(mnist.test_images)
        elapsed_s = time.perf_counter() - start_s

    num_images = len(mnist.test_labels)
    accuracy = info.test_accuracy or 0.0
    num_right = int((predictions.digits == mnist.test_labels).sum())
    print(f"""
{num_images:,} test images over gRPC, version {info.version} on the {info.device}
  test accuracy  {num_right / num_images:.2%} ({num_images - num_right} wrong)
  manifest says  {accuracy:.2%}
  rate           {num_images / elapsed_s:,.0f} images/s, one client

How to go on
  make serve                                    serve it; draw at http://127.0.0.1:8080
  .venv/bin/digit-serving classify PICTURE...   your own digits, PNG or JPEG
  artifacts/report.html                         how the training went
""")
    if num_right != round(accuracy * num_images):
        print("demo: the served accuracy is not the manifest's", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
