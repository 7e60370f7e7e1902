"""Networks of Keras as ONNX models by Keras itself.

    python -m tests.proof.census.keras_exports FOLDER

The networks are those that this project's own export is tried with.
"""

import sys
from pathlib import Path

import keras
import numpy as np

from tests.proof.keras_exports import NETWORKS

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, (shape, dtype, network) in NETWORKS.items():
        keras.utils.set_random_seed(0)
        inputs = keras.Input(shape, dtype=dtype)
        try:
            model = keras.Model(inputs, network(inputs))
            model(np.zeros((2, *(size or 20 for size in shape)), dtype))
            model.export(str(folder / f"{name}.onnx"), format="onnx", verbose=False)
        except Exception as err:  # Keras and its converter raise anything
            print(f"{name}: {type(err).__name__}: {str(err)[:100]!r}", flush=True)
