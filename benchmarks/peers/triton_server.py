"""Triton with an ONNX model, as its documentation lays out a repository, its batching on.

python triton_server.py MODEL.onnx grpc|http PORT

Needs `tritonserver` on the PATH; TRITON_BACKENDS names the folder of its backends, if it is not
the usual one. Of one model there is one instance with one thread, as of every server here.
"""

import os
import shutil
import sys
from pathlib import Path

CONFIG = """
backend: "onnxruntime"
max_batch_size: 64
dynamic_batching { }
instance_group [ { count: 1 kind: KIND_CPU } ]
parameters { key: "intra_op_thread_count" value: { string_value: "1" } }
parameters { key: "inter_op_thread_count" value: { string_value: "1" } }
"""


def main(model, kind, port):
    """Write the repository, and become the server."""
    program = shutil.which("tritonserver")
    if program is None:
        sys.exit("`tritonserver` is not on the PATH")
    name = Path(model).name.split(".")[0]
    # Under the folder of the model: the server ends by a signal, so nobody would remove another.
    folder = Path(model).parent / "triton" / name
    (folder / name / "1").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, folder / name / "1" / "model.onnx")
    (folder / name / "config.pbtxt").write_text(CONFIG)
    options = [f"--model-repository={folder}", "--allow-metrics=false", "--log-info=false"]
    if backends := os.environ.get("TRITON_BACKENDS"):
        options.append(f"--backend-directory={backends}")
    for each in ("grpc", "http"):
        if each == kind:
            options += [f"--{each}-port={port}", f"--{each}-address=127.0.0.1"]
        else:
            options.append(f"--allow-{each}=false")
    os.execv(program, [program, *options])


if __name__ == "__main__":
    main(*sys.argv[1:])
